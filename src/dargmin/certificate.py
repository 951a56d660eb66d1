"""How far a derivative is from ∂x*(θ): the estimators, and `certify`.

A derivative is compared with the implicit one at the Newton-corrected point x̂, in whose error the
distance of x from the solution enters squared. That makes the difference an estimate of the error
of the derivative that was given, the burn-in included: an estimate, not a bound."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from dargmin import show, tree
from dargmin.checks import blames_arguments, check_outer
from dargmin.descent import descend
from dargmin.kinks import nonsmooth_within
from dargmin.linear import (
    Correction,
    LinearOptions,
    newton_correction,
    prepare,
    solve_linear,
)
from dargmin.linear.second_opinion import hides, second_opinion
from dargmin.linear.solution import LinearInfo, default_rtol, inconsistency, rounding
from dargmin.linear.work import SMALL
from dargmin.loop import Run, freeze
from dargmin.methods import ProximalGradient
from dargmin.problems import AbstractProblem, Composite, FixedPoint, Objective, Root
from dargmin.stationary import degeneracy
from dargmin.status import Status, first_failure, is_ok, raise_if_failed
from dargmin.types import Parameters, Point


class Certificate(eqx.Module):
    """The estimated error of a derivative.

    Attributes
    ----------
    error : array
        Estimated relative error of the derivative: `absolute_error / scale`. A pytree like the
        derivative if it was asked for per leaf. Infinite where nothing could be estimated.
    absolute_error, scale : arrays
        Estimated ‖derivative - truth‖₂ and ‖truth‖₂.
    status : Status
        `.ok`, or why the estimate cannot be trusted, or that the accuracy asked for was missed.
    residual : array
        ‖F(x, θ)‖₂ at the point that was given.
    inner_error : array
        Estimated ‖x - x*(θ)‖₂."""

    error: Any
    absolute_error: Any
    scale: Any
    status: Any
    residual: Float[Array, "*batch"]
    inner_error: Float[Array, "*batch"]

    @property
    def ok(self) -> Bool[Array, "*batch"]:
        return is_ok(self.status)

    def __repr__(self) -> str:
        return show.lines(
            f"Certificate: {show.in_words(self.status)}",
            {
                "error": f"{show.numbers(self.error)} of the derivative, estimated",
                "absolute": f"{show.numbers(self.absolute_error)}, of {show.numbers(self.scale)}",
                "residual": self.residual,
                "inner error": self.inner_error,
            },
        )

    def raise_if_failed(self) -> "Certificate":
        """Return self, or raise `DargminError` if the status is not ok anywhere."""
        detail = "" if self.status.is_traced() else f"Estimated relative error: {self.error}."
        return raise_if_failed(self, detail=detail)


@blames_arguments
def certify(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    *,
    tangent: Any = None,
    jvp: Any = None,
    cotangent: Any = None,
    vjp: Any = None,
    outer: Callable | None = None,
    gradient: Any = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike = 0.0,
    per_leaf: bool = False,
    throw: bool = False,
) -> Certificate:
    """Estimate the error of a derivative that comes from anywhere.

    Give exactly one of the pairs (tangent, jvp), (cotangent, vjp), (outer, gradient). Near the
    solution it costs a Newton correction and one linear solve; far from it, what it takes to come
    near. It works inside `jit` and `vmap`.

    Parameters
    ----------
    problem : AbstractProblem
    x : pytree
        The point at which the derivative was taken: a solution, or an iterate on the way.
    theta : pytree
    tangent, jvp : pytrees like theta and like x
        θ̇ and the derivative of x along it.
    cotangent, vjp : pytrees like x and like theta
        w and wᵀ ∂x/∂θ.
    outer, gradient : callable (x, theta) -> scalar, and pytree like theta
        φ and d φ(x*(θ), θ)/dθ. Only this form sees the error from ∇φ(x) ≠ ∇φ(x*).
    rtol, atol : float, optional
        If given, an estimated error above atol + rtol·scale makes the status not ok. Without
        `rtol`, `ok` says only that the estimate can be trusted.
    per_leaf : bool
        Errors and scales for each leaf of the derivative.
    throw : bool
        Raise if the status is not ok. By default it does not, other than `hypergradient`: a
        derivative that is found to be wrong is what a certificate is there to report. The same
        as `.raise_if_failed()`.

    Returns
    -------
    Certificate

    Raises
    ------
    ValueError
        If not exactly one complete pair is given, or it does not fit theta or x.
    DargminError
        If `throw` and the status is not ok; `.result` is the Certificate."""
    form = _form(tangent, jvp, cotangent, vjp, outer, gradient)
    x = tree.as_point(x, "x")
    theta = tree.in_precision_of(x, tree.as_arrays(theta))
    direction, claim = {
        "jvp": (tangent, jvp),
        "vjp": (cotangent, vjp),
        "gradient": (outer, gradient),
    }[form]
    parameters = eqx.filter(theta, eqx.is_inexact_array)
    if form == "gradient":
        check_outer(outer)
    else:
        like = parameters if form == "jvp" else x
        direction = _fit(direction, like, {"jvp": "tangent", "vjp": "cotangent"}[form])
    claim = _fit(claim, x if form == "jvp" else parameters, form)
    if rtol is not None:
        rtol, atol = jnp.asarray(rtol), jnp.asarray(atol)
    certificate = _certify(problem, x, theta, form, direction, claim, rtol, atol, per_leaf)
    return certificate.raise_if_failed() if throw else certificate


@eqx.filter_jit
def _certify(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    form: str,
    direction: Any,
    claim: Any,
    rtol: Any,
    atol: Any,
    per_leaf: bool,
) -> Certificate:
    problem = prepare(problem, x, theta)
    kind = tree.dtype(x)
    options = LinearOptions(rtol=max(1e-6, default_rtol(kind)))
    residual = tree.norm(problem.residual(x, theta))
    at = settle(problem, x, theta, options)
    options = options.beside(problem, at.x, theta)
    if form == "jvp":
        error, implicit, info = _tangent_error(problem, at.x, theta, direction, claim, options)
        reference, shared = implicit, info.error * tree.norm(error)
    else:
        # Here the solve is the reference itself, not a correction to the claim: to full accuracy.
        # What it misses, a claim that comes from the same solver misses too.
        cotangent, direct = direction, None
        if form == "gradient":
            cotangent, direct = outer_gradients(direction, at.x, theta)
        found = implicit_vjp(
            problem, at.x, theta, cotangent, options=dataclasses.replace(options, rtol=None)
        )
        implicit, info = found.value, found.info
        shared = info.error * found.spread
        reference = implicit if direct is None else tree.add(direct, implicit)
        error = tree.sub(claim, reference)
    finite = Status.where(tree.all_finite(claim), Status.ok, Status.nonfinite)
    status = first_failure(finite, trust(problem, at, theta, info.status))
    if hides(problem, x, options):
        said = second_opinion(problem, at.x, theta, options)
        missed = jnp.isfinite(info.lowest) & (said.lowest < info.lowest)
        shared = shared * jnp.where(missed, info.lowest / said.lowest, 1)
        saddle = Status.where(said.negative, Status.not_positive_definite, Status.ok)
        status = first_failure(status, saddle)
    inverse = lambda r: solve_linear(problem, at.x, theta, r, options=options).value
    status = first_failure(status, degeneracy(problem, at.x, theta, info.null, inverse))
    condition = jnp.maximum(at.condition, info.condition)
    blind = jnp.isinf(info.lowest) & (rounding(kind, condition) > BLIND)
    blind = Status.where(blind, Status.linear_solve_failed, Status.ok)
    status = first_failure(status, blind)
    usable = is_ok(status) | (status == Status.weakly_active)
    measure = (lambda t: jax.tree.map(tree.norm, t)) if per_leaf else tree.norm
    scale = measure(reference)
    floor = rounding_error(x, condition)

    def estimated(error: Array, scale: Array) -> Array:
        least = (floor * scale + shared).astype(scale.dtype)
        return jnp.where(usable, jnp.maximum(error, least), jnp.inf)

    absolute = jax.tree.map(estimated, measure(error), measure(implicit))
    relative = jax.tree.map(relative_error, absolute, scale)
    if rtol is not None:
        status = first_failure(status, accuracy_status(absolute, scale, rtol, atol))
    return Certificate(relative, absolute, scale, status, residual, at.distance)


def settle(
    problem: AbstractProblem, x: Point, theta: Parameters, options: LinearOptions
) -> Correction:
    """x̂, by damped Newton steps from x; on a composite problem with proximal gradient steps before
    them where they get stuck, since a Newton step finds the kinks only from nearby."""
    if isinstance(problem, Objective) and 0 < tree.size(x) <= SMALL:
        return descend(problem, x, theta, near=_near(tree.dtype(x)), max_rounds=FAR)
    if not isinstance(problem, Composite):
        return newton_correction(
            problem, x, theta, options=options, max_rounds=FAR, near=_near(tree.dtype(x))
        )
    run = Run(problem, ProximalGradient().prepare(problem, x, theta), theta)

    def unsettled(state: Any) -> Bool[Array, ""]:
        at, _, attempts = state
        return ~at.settled & jnp.isfinite(at.residual) & (attempts < 10)

    def attempt(state: Any) -> Any:
        at, tol, attempts = state
        near, _ = freeze(run, run.begin(at.x), 1000, tol)
        at = newton_correction(problem, near.x, theta, options=options, near=_near(tree.dtype(x)))
        return at, 0.1 * jnp.minimum(tol, at.residual), attempts + 1

    # The first attempt takes no steps: nothing is above an infinite tolerance.
    kind = tree.dtype(x)
    zero = jnp.zeros((), kind)
    first = Correction.none(x, zero, settled=False), zero + jnp.inf, jnp.asarray(0)
    at, _, _ = jax.lax.while_loop(unsettled, attempt, first)
    return eqx.tree_at(lambda c: c.distance, at, tree.norm(tree.sub(at.x, x)))


BLIND = 0.007
"""From εκ = this on, by an estimate of κ that may be ten times too small, no digits are left for an
estimate to be taken from."""

FAR = 100
"""Newton steps that a point far from a solution gets: of e^x, each comes nearer by one."""


def _near(dtype: Any) -> float:
    """How close x̂ has to be, relative to ‖x̂‖, for a derivative there to be the reference."""
    return 1e-8 if jnp.finfo(dtype).eps < 1e-10 else 3e-6


def rounding_error(x: Point, condition: Float[Array, ""]) -> Float[Array, ""]:
    """ε (0.3 κ + √d): the relative error that rounding alone makes in an implicit derivative.

    It is what was measured in float32 for linear solves with one refinement, and beside it what
    sums of d terms do when nothing is ill-conditioned."""
    kind = tree.dtype(x)
    return jnp.asarray(jnp.finfo(kind).eps, kind) * (0.3 * condition + tree.size(x) ** 0.5)


def relative_error(
    absolute: Float[Array, "*batch"], scale: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """absolute / scale, with 0/0 = 0: a derivative that is zero, and known to be."""
    inexact = jnp.where(absolute > 0, jnp.inf, 0.0).astype(absolute.dtype)
    return jnp.where(scale > 0, absolute / jnp.where(scale > 0, scale, 1), inexact)


def accuracy_status(absolute: Any, scale: Any, rtol: Any, atol: Any) -> Any:
    """Whether every absolute error is at most atol + rtol·scale."""
    met = jax.tree.map(
        lambda e, s: jnp.all(e <= jnp.asarray(atol, e.dtype) + jnp.asarray(rtol, e.dtype) * s),
        absolute,
        scale,
    )
    all_met = jnp.all(jnp.stack(jax.tree.leaves(met)))
    return Status.where(all_met, Status.ok, Status.accuracy_not_reached)


def trust(problem: AbstractProblem, at: Correction, theta: Parameters, solve_status: Any) -> Any:
    """Whether an estimate at the corrected point can be trusted, or why not."""
    converged = Status.where(at.settled, Status.ok, Status.not_converged)
    status = first_failure(at.status, solve_status, converged)
    at_kink = Status.weakly_active if isinstance(problem, Composite) else Status.nonsmooth
    kink = nonsmooth_within(problem, at.x, theta, at.remaining)
    return first_failure(status, Status.where(kink, at_kink, Status.ok))


def withheld(derivative: Any, error: Float[Array, "*batch"]) -> Any:
    """The derivative, or NaN where nothing is known of its error: no estimate, no number."""

    def withhold(u: Array) -> Array:
        unknown = ~jnp.isfinite(error).reshape(error.shape + (1,) * (u.ndim - error.ndim))
        return jnp.where(unknown, jnp.asarray(jnp.nan, u.dtype), u)

    return jax.tree.map(withhold, derivative)


def outer_gradients(outer: Callable, x: Point, theta: Parameters) -> tuple[Point, Any]:
    """∇ₓφ(x, θ) and ∂_θφ(x, θ), the latter like the floating leaves of theta."""
    dynamic, static = eqx.partition(theta, eqx.is_inexact_array)

    def value(x: Point, dynamic: Any) -> Float[Array, ""]:
        return jnp.asarray(outer(x, eqx.combine(dynamic, static)))

    return jax.grad(value, argnums=(0, 1))(x, dynamic)


def implicit_vjp(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    cotangent: Point,
    *,
    start: Point | None = None,
    options: LinearOptions | None = None,
) -> "ImplicitGradient":
    """-∂_θFᵀ λ with ∂ₓFᵀ λ = w at (x, θ), and the linear solution that it came from.

    Where ∂ₓF is singular and not symmetric, w may leave the range of ∂ₓFᵀ: as long as θ does not
    move what ∂ₓF conserves, the derivative along that exists all the same."""
    solution = solve_linear(
        problem, x, theta, cotangent, transpose=True, start=start, options=options
    )
    info = solution.info
    dynamic, static = eqx.partition(theta, eqx.is_inexact_array)
    _, pullback = jax.vjp(lambda d: problem.residual(x, eqx.combine(d, static)), dynamic)
    with_samples = jax.tree.map(
        lambda u, samples, null: jnp.concatenate([-u[None], samples, null[None]]),
        solution.value, info.doubt, info.null,
    )  # fmt: skip
    (images,) = jax.vmap(pullback)(with_samples)
    sizes = jax.vmap(tree.norm)(images)
    value, spread = jax.tree.map(lambda u: u[0], images), jnp.max(sizes[:3])
    if isinstance(problem, FixedPoint | Root):
        share = inconsistency(tree.dtype(x)) * tree.norm(info.null)
        unmoved = sizes[3] * tree.norm(solution.value) <= share * spread
        forgiven = (info.status == Status.inconsistent) & unmoved
        status = Status.where(forgiven, Status.ok, info.status)
        info = dataclasses.replace(info, status=status)
    return ImplicitGradient(value, spread.astype(tree.dtype(x)), solution, info)


class ImplicitGradient(eqx.Module):
    """-∂_θFᵀ λ; the size of ∂_θFᵀ e for errors e as large as λ, at least that of λ itself; the
    linear solution, and how it went."""

    value: Any
    spread: Float[Array, ""]
    solution: Any
    info: LinearInfo


def _tangent_error(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    tangent: Any,
    claim: Point,
    options: LinearOptions,
) -> tuple[Point, Point, Any]:
    """δv = (∂ₓF)⁻¹ (∂ₓF v + ∂_θF θ̇), the corrected derivative v - δv, and how the solve went."""
    dynamic, static = eqx.partition(theta, eqx.is_inexact_array)

    def residual(x: Point, dynamic: Any) -> Point:
        return problem.residual(x, eqx.combine(dynamic, static))

    _, defect = jax.jvp(residual, (x, dynamic), (claim, tangent))
    solution = solve_linear(problem, x, theta, defect, options=options)
    return solution.value, tree.sub(claim, solution.value), solution.info


def _form(tangent: Any, jvp: Any, cotangent: Any, vjp: Any, outer: Any, gradient: Any) -> str:
    pairs = {"jvp": (tangent, jvp), "vjp": (cotangent, vjp), "gradient": (outer, gradient)}
    begun = [name for name, pair in pairs.items() if any(part is not None for part in pair)]
    complete = [name for name, pair in pairs.items() if all(part is not None for part in pair)]
    if len(begun) == 1 and begun == complete:
        return begun[0]
    raise ValueError(
        "certify needs exactly one complete pair of tangent= and jvp=, cotangent= and vjp=, or "
        f"outer= and gradient=, but got {', '.join(begun) or 'none'} "
        f"({'incomplete' if len(begun) == 1 else 'pick one'})."
    )


def _fit(value: Any, like: Any, name: str) -> Any:
    """`value` as arrays of the dtypes of `like`, or an error that says what does not fit."""
    value = eqx.filter(tree.as_arrays(value), eqx.is_inexact_array)
    got, want = jax.tree.structure(value), jax.tree.structure(like)
    if got != want:
        raise ValueError(f"{name} must be a pytree with structure {want}, but has {got}.")

    def leaf(v: Array, target: Array) -> Array:
        if v.shape != target.shape:
            raise ValueError(f"{name}: a leaf has shape {v.shape}, but {target.shape} is needed.")
        return v.astype(target.dtype)

    return jax.tree.map(leaf, value, like)
