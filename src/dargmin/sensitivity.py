"""sensitivity: derivatives of the solution along tangents, to the accuracy asked for."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool

from dargmin import show, tree
from dargmin.accuracy import (
    Goal,
    batch_of_one,
    estimation_cost,
    make_goal,
    progress,
    reach,
    refuse_derivatives,
    unbatch,
)
from dargmin.certificate import Certificate, withheld
from dargmin.checks import blames_arguments, check_theta
from dargmin.cost import Cost
from dargmin.linear import LinearOptions, prepare, solve_linear
from dargmin.methods import AbstractMethod
from dargmin.modes import Implicit
from dargmin.modes.implicit import parameter_change
from dargmin.problems import AbstractProblem
from dargmin.quantity import AbstractQuantity, Derivative
from dargmin.solve import check_arguments
from dargmin.status import is_ok, raise_if_failed
from dargmin.strategy import choose_strategy, describe
from dargmin.types import Parameters, Point


class Sensitivity(eqx.Module):
    """∂x*(θ) θ̇ with its error bar, for one tangent θ̇ or a batch of them.

    Attributes
    ----------
    tangent : pytree like x0, with the batch axis first
        ∂x*(θ) θ̇.
    x, certificate, cost, reason
        As in `Hypergradient`; the certificate's errors and scales have the batch's shape."""

    tangent: Point
    x: Point
    certificate: Certificate
    cost: Cost
    reason: str = eqx.field(static=True)

    def __repr__(self) -> str:
        return show.lines(
            f"Sensitivity: {show.in_words(self.status)}",
            {
                "tangent": self.tangent,
                "error": f"{show.numbers(self.certificate.error)} of the tangent, estimated",
                "x": self.x,
                "cost": show.spent(self.cost),
                "reason": self.reason,
            },
        )

    @property
    def status(self) -> Any:
        return self.certificate.status

    @property
    def ok(self) -> Bool[Array, "*batch"]:
        return self.certificate.ok


@blames_arguments
def sensitivity(
    problem: AbstractProblem,
    x0: Point,
    theta: Parameters,
    tangent: Any,
    *,
    rtol: ArrayLike = 1e-3,
    atol: ArrayLike = 0.0,
    method: AbstractMethod | None = None,
    mode: Implicit | None = None,
    steps: int = 10_000,
    throw: bool = True,
) -> Sensitivity:
    """∂x*(θ) θ̇ to the accuracy asked for, with its certificate.

    Parameters
    ----------
    tangent : pytree like the floating leaves of theta, or with one more axis in front of each
        θ̇, or a batch of them: `jnp.eye(p)` gives the certified Jacobian, transposed.
    mode : Implicit, optional
    problem, x0, theta, rtol, atol, method, steps, throw
        As in `hypergradient`. Every tangent of a batch is worked on until it is accurate.

    Returns
    -------
    Sensitivity

    Raises
    ------
    ValueError, DargminError
        As in `hypergradient`."""
    check_arguments(problem, method, steps, rtol, atol)
    x0 = tree.as_point(x0)
    theta = tree.in_precision_of(x0, tree.as_arrays(theta))
    check_theta(theta)
    tangent, batched = _tangents(tangent, eqx.filter(theta, eqx.is_inexact_array))
    if mode is not None and not isinstance(mode, Implicit):
        raise ValueError(
            f"sensitivity is implicit, but mode={mode!r}. For derivatives of the iterations use "
            "jax.jvp of dargmin.solve(..., mode=...) and dargmin.certify."
        )
    options = LinearOptions() if mode is None else mode.options
    goal = make_goal(rtol, atol, steps, x0)
    result = _sensitivity(problem, x0, theta, tangent, batched, goal, method, options)
    return raise_if_failed(result, detail=progress(result)) if throw else result


class _Tangents(AbstractQuantity):
    """-(∂ₓF)⁻¹ ∂_θF θ̇, for tangents with a leading axis."""

    tangents: Any

    def __call__(
        self,
        problem: AbstractProblem,
        x: Point,
        theta: Parameters,
        start: Point,
        options: LinearOptions,
    ) -> Derivative:
        def one(tangent: Any, start: Point) -> Any:
            nothing = jax.tree.map(lambda _: None, problem)
            change = parameter_change(problem, x, theta, (nothing, tangent))
            return solve_linear(
                problem, x, theta, tree.scale(-1.0, change), start=start, options=options
            )

        count = jax.tree.leaves(self.tangents)[0].shape[0]
        if count == 1:
            first = lambda t: jax.tree.map(lambda u: u[0], t)
            solution = batch_of_one(one(first(self.tangents), first(start)))
        else:
            solution = jax.vmap(one)(self.tangents, start)
        info, sizes = solution.info, jax.vmap(tree.norm)(solution.value)
        return Derivative(
            value=solution.value,
            implicit=sizes,
            spread=sizes,
            residual=info.residual,
            amplification=info.amplification,
            unknown=solution.unknown,
            condition=jnp.max(info.condition),
            lowest=jnp.min(info.lowest),
            null=jax.tree.map(lambda u: u[0], info.null),
            status=_worst(info.status),
            cost=Cost(0, jnp.sum(info.products) + count, jnp.max(info.factorisations)),
        )


@eqx.filter_jit
def _sensitivity(
    problem: AbstractProblem,
    x0: Point,
    theta: Parameters,
    tangent: Any,
    batched: bool,
    goal: Goal,
    method: AbstractMethod | None,
    options: LinearOptions,
) -> Sensitivity:
    estimated = estimation_cost(problem, x0)
    problem, x0, theta = refuse_derivatives((prepare(problem, x0, theta), x0, theta))
    strategy = choose_strategy(problem, x0, theta, method, options)
    count = jax.tree.leaves(tangent)[0].shape[0]
    start = jax.tree.map(lambda u: jnp.zeros((count, *u.shape), u.dtype), x0)
    outcome = reach(
        problem, strategy, _Tangents(tangent), x0, theta, start, goal, options,
    )  # fmt: skip
    certificate = outcome.certificate
    value = withheld(outcome.derivative.value, certificate.absolute_error)
    if not batched:
        value = jax.tree.map(lambda u: u[0], value)
        certificate = unbatch(certificate)
    reason = describe(problem, x0, strategy, options)
    return Sensitivity(value, outcome.x, certificate, outcome.cost + estimated, reason)


def _tangents(tangent: Any, like: Any) -> tuple[Any, bool]:
    """Tangents with a leading axis, and whether they came with one."""
    tangent = eqx.filter(tree.as_arrays(tangent), eqx.is_inexact_array)
    if jax.tree.structure(tangent) != jax.tree.structure(like):
        raise ValueError(
            f"tangent must be a pytree with structure {jax.tree.structure(like)}, but has "
            f"{jax.tree.structure(tangent)}."
        )
    pairs = list(zip(jax.tree.leaves(tangent), jax.tree.leaves(like), strict=True))
    if all(t.shape == u.shape for t, u in pairs):
        return jax.tree.map(lambda t, u: t.astype(u.dtype)[None], tangent, like), False
    counts = {t.shape[0] for t, u in pairs if t.ndim == u.ndim + 1 and t.shape[1:] == u.shape}
    if len(counts) == 1 and all(t.ndim == u.ndim + 1 for t, u in pairs) and counts != {0}:
        return jax.tree.map(lambda t, u: t.astype(u.dtype), tangent, like), True
    raise ValueError(
        "tangent must have the shapes of theta's floating leaves, or one more axis in front of "
        f"each, but has {[t.shape for t, _ in pairs]}, and theta {[u.shape for _, u in pairs]}."
    )


def _worst(status: Any) -> Any:
    """One status for a batch: the first that is not ok."""
    index = jnp.argmax(~is_ok(status))
    return jax.tree.map(lambda u: u[index], status)
