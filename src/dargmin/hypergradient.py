"""hypergradient: d φ(x*(θ), θ) / dθ to the accuracy asked for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

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
from dargmin.certificate import (
    Certificate,
    certify,
    implicit_vjp,
    outer_gradients,
    withheld,
)
from dargmin.checks import blames_arguments, check_like, check_outer, check_theta
from dargmin.cost import Cost
from dargmin.linear import CG, Auto, LinearOptions, prepare
from dargmin.linear.recycling import Pairs
from dargmin.methods import AbstractMethod
from dargmin.modes import AbstractMode, Implicit
from dargmin.problems import AbstractProblem
from dargmin.quantity import AbstractQuantity, Derivative
from dargmin.solve import check_arguments, solve
from dargmin.status import first_failure, raise_if_failed
from dargmin.strategy import choose_strategy, describe
from dargmin.types import Parameters, Point


class WarmStart(eqx.Module):
    """Where the next, similar computation may start; a pytree that `scan` can carry.

    The adjoint is started from its extrapolation 2 v₁ - v₂ once there are two of them. The pairs
    (p, ∇²f p) of earlier conjugate gradient runs precondition those to come."""

    x: Point
    adjoint: Point
    previous: Point
    amplification: Float[Array, "*batch"]  # how much a residual is worth, see `LinearInfo`
    pairs: Pairs | None = None

    @classmethod
    def zeros(cls, x0: Point, pairs: int = 0) -> "WarmStart":
        """No knowledge but a starting point, and room for that many pairs (2 d numbers each)."""
        x0 = tree.as_point(x0)
        zeros = tree.zeros_like(x0)
        known = Pairs.zeros(x0, pairs) if pairs else None
        return cls(x0, zeros, zeros, jnp.ones((), tree.dtype(x0)), known)

    def extrapolated(self) -> Point:
        return tree.axpy(2.0, self.adjoint, tree.scale(-1.0, self.previous))

    def following(
        self, x: Point, adjoint: Point, amplification: Float[Array, ""], pairs: Pairs | None
    ) -> "WarmStart":
        """The warm start after this one. The first adjoint is its own predecessor."""
        first = tree.norm(self.adjoint) == 0
        previous = tree.where(first, adjoint, self.adjoint)
        return WarmStart(x, adjoint, previous, amplification, pairs)


class Hypergradient(eqx.Module):
    """d φ(x*(θ), θ) / dθ with its error bar.

    Attributes
    ----------
    value : array
        φ(x, θ).
    gradient : pytree like the floating leaves of theta
    x : pytree like x0
        The (corrected) inner solution.
    certificate : Certificate
    cost : Cost
        Gradients, Hessian-vector products and factorisations, over all rounds.
    warm_start : WarmStart
    reason : str
        Why it was computed this way."""

    value: Float[Array, "*batch"]
    gradient: Any
    x: Point
    certificate: Certificate
    cost: Cost
    warm_start: WarmStart | None
    reason: str = eqx.field(static=True)

    def __repr__(self) -> str:
        return show.lines(
            f"Hypergradient: {show.in_words(self.status)}",
            {
                "value": self.value,
                "gradient": self.gradient,
                "error": f"{show.numbers(self.certificate.error)} of the gradient, estimated",
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
def hypergradient(
    outer: Callable,
    problem: AbstractProblem,
    x0: Point,
    theta: Parameters,
    *,
    rtol: ArrayLike = 1e-3,
    atol: ArrayLike = 0.0,
    method: AbstractMethod | None = None,
    mode: AbstractMode | None = None,
    steps: int = 10_000,
    warm_start: WarmStart | None = None,
    throw: bool = True,
) -> Hypergradient:
    """d φ(x*(θ), θ) / dθ to the accuracy asked for, with its certificate.

    The certificate is a conservative estimate: the correction that measures the error also
    removes most of it. The gradient is not differentiable again.

    Parameters
    ----------
    outer : callable (x, theta) -> scalar
        φ.
    problem : AbstractProblem
    x0 : pytree
        Where the inner solve starts, unless there is a warm start.
    theta : pytree
        Computed with in the precision of x0; the gradient comes in its own.
    rtol, atol : float
        Work until the estimated error is at most atol + rtol·scale. A gradient that is zero needs
        an `atol`.
    method : AbstractMethod, optional
        The inner method; chosen by the structure of the problem if None.
    mode : AbstractMode, optional
        `Implicit(...)`, or None, is refined until the accuracy is reached. Any other mode is run
        once, for all `steps`, and certified.
    steps : int
        Budget of inner steps, over all rounds.
    warm_start : WarmStart, optional
        From an earlier, similar call.
    throw : bool
        Raise if the accuracy is not reached, or anything fails. If False, read `.status`.

    Returns
    -------
    Hypergradient

    Raises
    ------
    ValueError
        If an argument is off: `outer` gives no scalar, or x0 is not what the problem's function
        takes as x, for instance.
    DargminError
        If `throw` and the status is not ok; `.result` is the Hypergradient so far."""
    check_arguments(problem, method, steps, rtol, atol)
    check_outer(outer)
    x0, theta = tree.as_point(x0), tree.as_arrays(theta)
    if warm_start is not None:
        if not isinstance(warm_start, WarmStart):
            raise ValueError(f"warm_start must be a WarmStart, not {type(warm_start).__name__}.")
        check_like(warm_start.x, x0, "warm_start", "x0")
    check_theta(theta)
    goal = make_goal(rtol, atol, steps, x0)
    given, theta = theta, tree.in_precision_of(x0, theta)
    if mode is None or isinstance(mode, Implicit):
        mode = Implicit() if mode is None else mode
        result = _implicit_hypergradient(
            outer, problem, x0, theta, goal, method, mode.options, warm_start
        )
    else:
        if method is None:
            raise ValueError(
                f"mode={mode!r} differentiates the iterations of a method: give method= too."
            )
        result = hypergradient_in_mode(outer, problem, x0, theta, goal, method, mode)
    gradient = tree.in_dtypes_of(given, result.gradient)
    result = eqx.tree_at(lambda h: h.gradient, result, gradient)
    return raise_if_failed(result, detail=progress(result)) if throw else result


class _Unknown(eqx.Module):
    """Where an adjoint solve starts, and what it recycles."""

    adjoint: Point
    pairs: Pairs | None


class _OuterGradient(AbstractQuantity):
    """∂_θφ - ∂_θFᵀ λ, with ∂ₓFᵀ λ = ∇ₓφ."""

    outer: Callable

    def __call__(
        self,
        problem: AbstractProblem,
        x: Point,
        theta: Parameters,
        start: Point,
        options: LinearOptions,
    ) -> Derivative:
        cotangent, direct = outer_gradients(self.outer, x, theta)
        known = jax.tree.map(lambda u: u[0], start)
        found = implicit_vjp(
            problem, x, theta, cotangent,
            start=known.adjoint, options=_recycle(options, known.pairs),
        )  # fmt: skip
        kind, info = tree.dtype(x), found.info
        pairs = known.pairs if info.pairs is None else info.pairs
        return Derivative(
            value=batch_of_one(tree.add(direct, found.value)),
            implicit=tree.norm(found.value).astype(kind)[None],
            spread=found.spread[None],
            residual=info.residual[None],
            amplification=info.amplification[None],
            unknown=batch_of_one(_Unknown(found.solution.unknown, pairs)),
            condition=info.condition,
            lowest=info.lowest,
            null=info.null,
            status=info.status,
            cost=Cost(0, info.products + 1, info.factorisations, adjoint=info.products),
        )


def _recycle(options: LinearOptions, pairs: Pairs | None) -> LinearOptions:
    """The same options, the solver preconditioned by `pairs` if it is one that can be."""
    solver = Auto() if options.solver is None else options.solver
    if pairs is None or not isinstance(solver, CG | Auto):
        return options
    return dataclasses.replace(options, solver=dataclasses.replace(solver, pairs=pairs))


@eqx.filter_jit
def _implicit_hypergradient(
    outer: Callable,
    problem: AbstractProblem,
    x0: Point,
    theta: Parameters,
    goal: Goal,
    method: AbstractMethod | None,
    options: LinearOptions,
    warm_start: WarmStart | None,
) -> Hypergradient:
    warm = WarmStart.zeros(x0) if warm_start is None else warm_start
    estimated = estimation_cost(problem, x0)
    outer = eqx.filter_closure_convert(outer, x0, theta)
    problem = prepare(problem, warm.x, theta)
    problem, theta, warm, outer = refuse_derivatives((problem, theta, warm, outer))
    strategy = choose_strategy(problem, warm.x, theta, method, _recycle(options, warm.pairs))
    outcome = reach(
        problem, strategy, _OuterGradient(outer), warm.x, theta,
        batch_of_one(_Unknown(warm.extrapolated(), warm.pairs)), goal,
        _recycle(options, warm.pairs),
        amplification=warm.amplification, newton_first=warm_start is not None,
    )  # fmt: skip
    first = lambda t: jax.tree.map(lambda u: u[0], t)
    derivative = outcome.derivative
    unknown = first(derivative.unknown)
    return Hypergradient(
        value=jnp.asarray(outer(outcome.x, theta)),
        gradient=first(withheld(derivative.value, outcome.certificate.absolute_error)),
        x=outcome.x,
        certificate=unbatch(outcome.certificate),
        cost=outcome.cost + estimated,
        warm_start=warm.following(
            outcome.x, unknown.adjoint, derivative.amplification[0], unknown.pairs
        ),
        reason=describe(problem, x0, strategy, options),
    )


@eqx.filter_jit
def hypergradient_in_mode(
    outer: Callable,
    problem: AbstractProblem,
    x0: Point,
    theta: Parameters,
    goal: Goal,
    method: AbstractMethod,
    mode: AbstractMode,
) -> Hypergradient:
    """One run in a mode that nothing refines, certified."""
    outer = eqx.filter_closure_convert(outer, x0, theta)
    problem = prepare(problem, x0, theta)
    problem, x0, theta, outer = refuse_derivatives((problem, x0, theta, outer))
    dynamic, static = eqx.partition(theta, eqx.is_inexact_array)

    def value(dynamic: Any) -> Any:
        theta = eqx.combine(dynamic, static)
        solution = solve(problem, method, x0, theta, steps=goal.steps, mode=mode, throw=False)
        return jnp.asarray(outer(solution.x, theta)), solution

    (objective, solution), gradient = jax.value_and_grad(value, has_aux=True)(dynamic)
    certificate = certify(
        problem, solution.x, theta, outer=outer, gradient=gradient, rtol=goal.rtol, atol=goal.atol
    )
    status = first_failure(solution.status, certificate.status)
    return Hypergradient(
        value=objective,
        gradient=withheld(gradient, certificate.absolute_error),
        x=solution.x,
        certificate=eqx.tree_at(lambda c: c.status, certificate, status),
        cost=Cost(gradients=solution.steps),
        warm_start=None,
        reason=f"{mode!r} of {goal.steps} steps of {type(method).__name__} was asked for; "
        "it is certified, not refined.",
    )
