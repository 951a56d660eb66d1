"""Constants of smoothness, convexity and contraction, from a few products with the Jacobian."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.linear.forming import materialise
from dargmin.linear.lanczos import (
    LANCZOS_STEPS,
    MARGIN,
    STEP_SIZE_STEPS,
    lanczos,
    largest_eigenvalue,
)
from dargmin.problems import AbstractProblem, Composite, FixedPoint, Objective
from dargmin.status import Status, first_failure, is_ok
from dargmin.types import Parameters, Point

_Problem = TypeVar("_Problem", bound=AbstractProblem)


class Spectrum(eqx.Module):
    """Where the eigenvalues of a Hessian lie, and how well that is known.

    Attributes
    ----------
    mu : array
        μ, the smallest eigenvalue. The estimate is never below it but for `mu_error`.
    L : array
        The largest eigenvalue, over- rather than underestimated: too small an L diverges.
    mu_error, L_error : array
        Within this distance of the estimate there is an eigenvalue; zero for a declared constant.
    products : array
        Hessian-vector products spent.
    status : Status
        `not_positive_definite` where a negative eigenvalue was found: not convex there."""

    mu: Float[Array, "*batch"]
    L: Float[Array, "*batch"]
    mu_error: Float[Array, "*batch"]
    L_error: Float[Array, "*batch"]
    products: Int[Array, "*batch"]
    status: Any

    @property
    def ok(self) -> Bool[Array, "*batch"]:
        return is_ok(self.status)

    @property
    def condition(self) -> Float[Array, "*batch"]:
        """L/μ."""
        return self.L / self.mu


class Contraction(eqx.Module):
    """How a fixed-point map A contracts at a point, by its Jacobian B = ∂ₓA.

    Attributes
    ----------
    rate : array
        The spectral radius of B: the error shrinks by this factor a step, in the end.
    rate_error : array
        How much the estimate still moved over the last half of the iterations.
    norm : array
        ‖B‖₂, over- rather than underestimated: the ρ of worst-case bounds. Above 1 where B is not
        normal, though the iteration may converge.
    products : array
        Products with B and its transpose."""

    rate: Float[Array, "*batch"]
    rate_error: Float[Array, "*batch"]
    norm: Float[Array, "*batch"]
    products: Int[Array, "*batch"]


def hessian_spectrum(
    problem: AbstractProblem, x: Point, theta: Parameters, *, steps: int = 64
) -> Spectrum:
    """μ and L of the Hessian at x, by Lanczos; of a `Composite`: on the range of ∂prox.

    Up to d = `steps`, the Hessian is formed and its eigenvalues are exact. What an `Objective`
    declares is taken as it is. A constant of every derivative. For the problems of
    `dargmin.problems.zoo`, `instance.spectrum(theta)` has bounds that hold at every x.

    Parameters
    ----------
    problem : Objective or Composite
    x : pytree
    theta : pytree
    steps : int, >= 1
        Hessian-vector products. The smallest eigenvalue needs about √(L/μ) of them or more:
        see `mu_error`.

    Raises
    ------
    ValueError
        If the problem is neither, or steps < 1."""
    if not isinstance(problem, Objective | Composite):
        raise ValueError(
            f"A {type(problem).__name__} has no symmetric Hessian and so no (mu, L). Use "
            "contraction(problem, x, theta), or give an Objective or a Composite."
        )
    if steps < 1:
        raise ValueError(f"steps={steps}, but Lanczos needs steps >= 1.")
    return _hessian_spectrum(problem, tree.as_point(x), tree.as_arrays(theta), steps)


@eqx.filter_jit
def _hessian_spectrum(
    problem: Objective | Composite, x: Point, theta: Parameters, steps: int
) -> Spectrum:
    problem, x, theta = tree.stop_gradient((prepare(problem, x, theta), x, theta))
    kind, d = tree.dtype(x), tree.size(x)
    start = tree.random_like(x)
    operator = problem.linear_system(x, theta).operator
    unit = jnp.ones((), kind)
    if isinstance(problem, Composite):
        # K = P - P² + hPHP; for projections P, that is h H on the support and zero elsewhere.
        start, unit = problem.linear_system(x, theta).after(start), problem.step.astype(kind)
    exact = isinstance(problem, Objective) and d <= steps
    if d == 0:
        values, bounds, products = jnp.ones(1, kind), jnp.zeros(1, kind), 0
    elif exact:
        values, bounds, products = jnp.linalg.eigvalsh(materialise(operator, x)), jnp.zeros(d), d
    else:
        products = min(steps, d)
        values, bounds = (u / unit for u in lanczos(operator, start, products))
    mu, L = values[0], (values[-1] + bounds[-1].astype(kind)) * (1 if exact else MARGIN)
    rounding = 10 * jnp.finfo(kind).eps * jnp.abs(L)
    mu_error, L_error = bounds[0].astype(kind) + rounding, bounds[-1].astype(kind) + rounding
    convex = mu + mu_error >= 0
    if isinstance(problem, Objective) and problem.mu is not None:
        mu, mu_error = problem.mu.astype(kind), jnp.zeros((), kind)
    if isinstance(problem, Objective) and problem.L is not None:
        L, L_error = problem.L.astype(kind), jnp.zeros((), kind)
    status = Status.where(jnp.isfinite(mu) & jnp.isfinite(L), Status.ok, Status.nonfinite)
    status = first_failure(status, Status.where(convex, Status.ok, Status.not_positive_definite))
    return Spectrum(mu, L, mu_error, L_error, jnp.asarray(products), status)


def contraction(
    problem: AbstractProblem, x: Point, theta: Parameters, *, steps: int = 64
) -> Contraction:
    """The rate at which A(·, θ) contracts at x: spectral radius and 2-norm of ∂ₓA.

    The radius by power iteration, as the growth ‖Bᵏv‖ over the last half of the steps, which a
    complex pair of eigenvalues does not disturb; the norm by Lanczos on BᵀB.

    Raises
    ------
    ValueError
        If the problem is no FixedPoint, or steps < 4."""
    if not isinstance(problem, FixedPoint):
        raise ValueError(
            f"A contraction rate belongs to a FixedPoint, but this is a {type(problem).__name__}."
        )
    if steps < 4:
        raise ValueError(f"steps={steps}, but the power iteration needs steps >= 4.")
    return _contraction(problem, tree.as_point(x), tree.as_arrays(theta), steps)


@eqx.filter_jit
def _contraction(problem: FixedPoint, x: Point, theta: Parameters, steps: int) -> Contraction:
    problem, x, theta = tree.stop_gradient((prepare(problem, x, theta), x, theta))
    _, forward = jax.linearize(lambda x: problem.image(x, theta), x)
    backward = jax.linear_transpose(forward, x)
    v = tree.random_like(x)

    def step(v, _):
        w = forward(v)
        growth = tree.norm(w)
        safe = jnp.where(growth > 0, growth, 1)
        return tree.scale(1 / safe, w), growth

    _, growths = jax.lax.scan(step, tree.scale(1 / tree.norm(v), v), None, length=steps)
    logs, half = jnp.log(growths), steps // 2
    rate, before = (jnp.exp(jnp.mean(part)) for part in (logs[half:], logs[half // 2 : half]))
    squared = largest_eigenvalue(lambda u: backward(forward(u))[0], x)
    count = jnp.asarray(steps + 2 * min(LANCZOS_STEPS, tree.size(x)))
    return Contraction(rate, jnp.abs(rate - before), jnp.sqrt(squared), count)


def smoothness(problem: AbstractProblem, x: Point, theta: Parameters) -> Float[Array, ""]:
    """L: as declared on the problem, or estimated at x; a constant of every derivative.

    Raises
    ------
    ValueError
        If the Jacobian of the residual is not symmetric: then there is no such constant."""
    steps = LANCZOS_STEPS
    if isinstance(problem, Composite):
        if problem.step_size is not None:
            return jax.lax.stop_gradient(1 / problem.step_size)
        problem, steps = problem.smooth, STEP_SIZE_STEPS
    if not isinstance(problem, Objective):
        raise ValueError(
            f"A step size can be estimated for an Objective or a Composite, but this is a "
            f"{type(problem).__name__}. Give the method a step_size."
        )
    if problem.L is not None:
        return jax.lax.stop_gradient(problem.L)
    problem, x, theta = tree.stop_gradient((problem, x, theta))
    estimate = largest_eigenvalue(problem.linear_system(x, theta).operator, x, steps)
    return jnp.where(estimate > 0, estimate, jnp.ones((), estimate.dtype))


def prepare(problem: _Problem, x: Point, theta: Parameters) -> _Problem:
    """The problem with its closures converted and its step size, if it has one, settled.

    Done once where a computation begins, so that residual, tolerance, derivative and certificate
    all mean the same F. What the closures hold stays data to the compiler, which would otherwise
    spend seconds on working out XᵀX beforehand."""
    arrays, functions = eqx.partition(problem.convert_closures(x, theta), eqx.is_array)
    problem = eqx.combine(jax.lax.optimization_barrier(arrays), functions)
    if isinstance(problem, Objective) and problem.hvp is not None and problem.agrees is None:
        agrees = problem.product_agrees(x, theta)
        problem = eqx.tree_at(
            lambda p: p.agrees, problem, agrees, is_leaf=lambda leaf: leaf is None
        )
    if isinstance(problem, Composite) and problem.step_size is None:
        step = 1 / smoothness(problem, x, theta)
        problem = eqx.tree_at(
            lambda p: p.step_size, problem, step, is_leaf=lambda leaf: leaf is None
        )
    return problem
