"""What unrolling will do on a given problem, from the problem's linear model at its solution."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.linear import contraction, hessian_spectrum
from dargmin.linear.dense import materialise
from dargmin.methods import (
    AbstractMethod,
    Chebyshev,
    FixedPointIteration,
    GradientDescent,
    HeavyBall,
    Nesterov,
)
from dargmin.problems import AbstractProblem, FixedPoint, Objective
from dargmin.status import Status, is_ok
from dargmin.theory.exact import derivative_error
from dargmin.theory.fixed_point import forward_bound
from dargmin.theory.residual import check_linear, residual_polynomial
from dargmin.theory.worst_case import worst_case_error
from dargmin.types import Parameters, Point

_CLOSED = (GradientDescent, HeavyBall, Nesterov, Chebyshev)  # no grid needed, or seldom

MOST_NODES = 4000
"""Eigenvalues among which the worst is looked for."""

LARGEST = 3e7
"""Numbers that the exact prediction may hold: (T + 1) d²."""


class Prediction(eqx.Module):
    """The unrolled derivative's error at t = 0..T, from constants that are known before it runs.

    Attributes
    ----------
    errors : array, shape (T + 1,), or None
        ‖dx_t - dx*‖ of the linear model at x*: exact on quadratics, near x* on others. None where
        the model is too large to form.
    bound : array, shape (T + 1,)
        The worst case for these constants: over the directions of a and c, for a spectrum in
        [μ, L] and commuting H and dH; on a fixed point, `theory.forward_bound`.
    implicit : array, shape (T + 1,)
        ‖(∂ₓF)⁻¹ dH (x_t - x*)‖, the error of an implicit derivative at x_t: of the linear model, or
        where that is too large to form its bound ‖c‖ max|P_t| / μ.
    mu, L : arrays
        The spectrum at x*; on a fixed point 1 - ρ and 1, with ρ = ‖∂ₓA‖₂.
    A, C : arrays
        ‖dx_0 - dx*‖ and ‖c‖, c = dH (x_0 - x*): what drives the derivative away at first."""

    errors: Float[Array, " times"] | None
    bound: Float[Array, " times"]
    implicit: Float[Array, " times"]
    mu: Float[Array, ""]
    L: Float[Array, ""]
    A: Float[Array, ""]
    C: Float[Array, ""]


class LinearModel(NamedTuple):
    """The constants that drive an unrolled derivative: the spectrum [μ, L] at x*, and ‖a‖ and ‖c‖
    for every direction, a = dx_0 - dx* with dx_0 = 0, c = dH (x_0 - x*)."""

    mu: Float[Array, ""]
    L: Float[Array, ""]
    A: Float[Array, " k"]
    C: Float[Array, " k"]


def linear_model(
    problem: AbstractProblem,
    x0: Point,
    theta: Parameters,
    *,
    solution: Point,
    tangents: Parameters,
    derivatives: Point,
) -> LinearModel | str:
    """The constants of the linear model at x*, or the reason why there is none.

    On a fixed point, μ = 1 - ‖∂ₓA‖₂ and L = 1. Parameters as in `predict`.

    Returns
    -------
    LinearModel or str"""
    if isinstance(problem, FixedPoint):
        found = contraction(problem, solution, theta)
        if found.norm >= 1:
            contracts = "it converges in the end" if found.rate < 1 else "no contraction there"
            return (
                f"‖∂ₓA‖ = {float(found.norm):.3g} is not below 1, which the bound needs; the "
                f"spectral radius is {float(found.rate):.3g}: {contracts}"
            )
        mu, L = 1 - found.norm, jnp.ones_like(found.norm)
    elif isinstance(problem, Objective):
        spectrum = hessian_spectrum(problem, solution, theta)
        mu, L = spectrum.mu, spectrum.L
        if spectrum.status == Status.not_positive_definite:
            return f"the Hessian has the eigenvalue {float(mu):.2g}: not convex there"
        if not is_ok(spectrum.status) or not mu > 0:
            return f"the smallest eigenvalue of the Hessian is {float(mu):.2g}, not positive"
    else:
        return f"there is no theory of unrolling for a {type(problem).__name__}"
    error = tree.sub(x0, solution)
    return LinearModel(mu, L, *_drives(problem, solution, theta, error, tangents, derivatives))


def predict(
    problem: AbstractProblem,
    method: AbstractMethod,
    x0: Point,
    theta: Parameters,
    *,
    solution: Point,
    tangents: Parameters,
    derivatives: Point,
    steps: int,
) -> Prediction | str:
    """The prediction, or the reason why theory has none for this problem and method.

    Parameters
    ----------
    problem : AbstractProblem
    method : AbstractMethod
    x0, theta : pytrees
    solution : pytree like x0
        x*.
    tangents, derivatives : pytrees like the floating leaves of theta and like x0
        θ̇ and dx* = ∂x*(θ) θ̇, each with a leading axis of k.
    steps : int, >= 1

    Returns
    -------
    Prediction or str"""
    if why := _uncovered(problem, method, steps):
        return why
    model = linear_model(
        problem, x0, theta, solution=solution, tangents=tangents, derivatives=derivatives
    )
    if isinstance(model, str):
        return model
    if isinstance(problem, FixedPoint):
        return _predict_fixed_point(model, steps)
    assert isinstance(problem, Objective)
    mu, L, A, C = model
    error = tree.sub(x0, solution)
    grid = None if isinstance(method, _CLOSED) else _nodes(mu, L, steps)
    worst = partial(worst_case_error, method, mu, L, steps, eigenvalues=grid)
    bound = jnp.linalg.norm(jnp.stack([worst(A=a, C=b) for a, b in zip(A, C, strict=True)]), axis=0)
    A, C = jnp.linalg.norm(A), jnp.linalg.norm(C)
    errors, implicit = None, None
    if (steps + 1) * tree.size(x0) ** 2 <= LARGEST:
        errors, implicit = _exact(
            problem, method, solution, theta, error, tangents, derivatives, steps
        )
    if implicit is None:
        implicit = C / mu * worst(A=1.0, C=0.0)
    return Prediction(errors, bound, implicit, mu, L, A, C)


def _uncovered(problem: AbstractProblem, method: AbstractMethod, steps: int) -> str | None:
    """Why theory has no prediction for a method, if so."""
    if isinstance(problem, FixedPoint):
        plain = isinstance(method, FixedPointIteration)
        plain |= isinstance(method, GradientDescent) and bool(jnp.all(method.step_size == 1))
        kind = type(method).__name__
        return (
            None if plain else f"theory predicts the plain iteration x ← A(x), and this is {kind}"
        )
    if not isinstance(problem, Objective):
        return f"there is no theory of unrolling for a {type(problem).__name__}"
    try:
        check_linear(method, steps)
    except ValueError:
        return (
            "theory predicts gradient descent with a given step, heavy ball, Nesterov, Chebyshev "
            f"and Sobolev, and this is {type(method).__name__}"
        )
    return None


def _nodes(mu: Float[Array, ""], L: Float[Array, ""], steps: int) -> Float[Array, " n"]:
    """Chebyshev's extrema on [μ, L]: about 16 to a step, up to a few thousand."""
    n = min(max(16 * steps, 512), MOST_NODES)
    angles = jnp.linspace(0, jnp.pi, n + 1, dtype=mu.dtype)
    return mu + (L - mu) * (1 - jnp.cos(angles)) / 2


@eqx.filter_jit
def _drives(
    problem: AbstractProblem, x: Point, theta: Parameters, error: Point, tangents: Parameters,
    derivatives: Point,
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:  # fmt: skip
    """‖a‖ and ‖c‖ for every direction."""
    change = _forcing_change(problem, x, theta)
    c = jax.vmap(lambda t, dx: change(t, dx, error))(tangents, derivatives)
    return jax.vmap(tree.norm)(derivatives), jax.vmap(tree.norm)(c)


def _forcing_change(problem: AbstractProblem, x: Point, theta: Parameters):
    """(θ̇, dx*, v) ↦ ∂ₓ(∂ₓF dx* + ∂_θF θ̇) v at x*: dH v, on quadratics."""
    dynamic, static = eqx.partition(theta, eqx.is_inexact_array)
    residual = lambda x, dynamic: problem.residual(x, eqx.combine(dynamic, static))

    def change(tangent: Parameters, dx: Point, v: Point) -> Point:
        forcing = lambda x: jax.jvp(residual, (x, dynamic), (dx, tangent))[1]
        return jax.jvp(forcing, (x,), (v,))[1]

    return change


@eqx.filter_jit
def _exact(
    problem: Objective, method: AbstractMethod, x: Point, theta: Parameters, error: Point,
    tangents: Parameters, derivatives: Point, steps: int,
) -> tuple[Float[Array, " times"], Float[Array, " times"]]:  # fmt: skip
    """The errors of the unrolled and of the implicit derivative at x_t."""
    change = _forcing_change(problem, x, theta)
    H = materialise(problem.linear_system(x, theta).operator, x)
    flat_error = tree.ravel(error)[0]

    values, vectors = jnp.linalg.eigh(H)
    P, _ = residual_polynomial(method, values, steps)
    x_errors = P * (vectors.T @ flat_error)  # in the eigenbasis

    def along(tangent: Parameters, dx: Point) -> tuple[Float[Array, "times d"], ...]:
        dH = materialise(lambda v: change(tangent, dx, v), x)
        dH = (dH + dH.T) / 2
        unrolled = derivative_error(method, H, dH, -tree.ravel(dx)[0], flat_error, steps)
        return unrolled, x_errors @ (vectors.T @ dH @ vectors) / values

    unrolled, implicit = jax.vmap(along)(tangents, derivatives)
    return jnp.linalg.norm(unrolled, axis=(0, 2)), jnp.linalg.norm(implicit, axis=(0, 2))


def _predict_fixed_point(model: LinearModel, steps: int) -> Prediction:
    mu, L, A, C = model
    t, rate = jnp.arange(steps + 1), 1 - mu
    bounds = jax.vmap(lambda a, c: forward_bound(rate, t, M=c, e0=1.0, delta0=a))(A, C)
    A, C = jnp.linalg.norm(A), jnp.linalg.norm(C)
    implicit = C * rate ** t.astype(rate.dtype) / mu
    return Prediction(None, jnp.linalg.norm(bounds, axis=0), implicit, mu, L, A, C)
