"""Conjugate gradients and Newton-CG: methods that use Hessian-vector products."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dargmin import tree
from dargmin.cost import Cost
from dargmin.linear import LinearOptions, solve_linear_differentiably
from dargmin.linear.cg import run
from dargmin.methods.base import AbstractMethod
from dargmin.problems import AbstractProblem, Objective
from dargmin.types import Parameters, Point


class ConjugateGradient(AbstractMethod):
    """x_{t+1} = x_t + α_t p_t,  p_t = -∇f(x_t) + β_t p_{t-1}   (Hestenes and Stiefel, 1952).

    α_t = ‖∇f(x_t)‖² / ⟨p_t, H p_t⟩, β_t = ‖∇f(x_t)‖² / ‖∇f(x_{t-1})‖². For quadratic objectives.
    The residual is computed anew at every step, so that it cannot drift; the coefficients depend
    on the iterates and are differentiated. Once ∇f is rounding, x stays: α and β would be
    quotients of noise, and their derivatives anything."""

    def prepare(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        if not (isinstance(problem, Objective) and problem.is_quadratic(x, theta)):
            raise ValueError(
                "ConjugateGradient runs on quadratic objectives, and this one is not, as far as "
                "its program shows. Use NewtonCG(), or declare Objective(f, quadratic=True)."
            )
        return self

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        zero = jnp.zeros((), tree.dtype(x))
        return tree.zeros_like(x), zero, zero

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        previous, squared, size = state
        gradient = problem.residual(x, theta)
        rho = tree.dot(gradient, gradient)
        rho = jnp.where(rho > (10 * jnp.finfo(rho.dtype).eps * size) ** 2, rho, 0)
        p = tree.axpy(_quotient(rho, squared), previous, tree.scale(-1.0, gradient))
        curvature = tree.dot(p, problem.linear_system(x, theta).operator(p))
        following = tree.axpy(_quotient(rho, curvature), p, x)
        # ∇f is a sum of terms of the size of ‖H‖‖x‖ and ‖∇f(x_0)‖, and rounded accordingly.
        x, p_, curvature = tree.stop_gradient((x, p, curvature))
        product = _quotient(curvature, tree.dot(p_, p_)) * tree.norm(x)
        size = jnp.maximum(size, jnp.maximum(product, jnp.sqrt(jax.lax.stop_gradient(rho))))
        return following, (p, rho, size), gradient

    def cost(self, state: Any, steps: Any) -> Cost:
        return Cost(gradients=steps, products=steps)


class NewtonCG(AbstractMethod):
    """x_{t+1} = x_t + a_t d_t,  ∇²f(x_t) d_t ≈ -∇f(x_t) by conjugate gradients.

    The linear solve is as inexact as superlinear convergence allows, ‖r‖ ≤ η_t ‖∇f‖ with η_0 = η
    and η_t = min(η, 0.9 ‖∇f(x_t)‖²/‖∇f(x_{t-1})‖²), and stops at negative curvature; a_t is the
    first of 1, ½, ¼, ... that decreases f enough (Armijo). The derivative of a step is that of the
    exact Newton direction.

    Parameters
    ----------
    forcing : float
        η, the largest relative residual of a linear solve.
    max_products : int, optional
        Hessian-vector products in a step. 10 d if None.

    References
    ----------
    Dembo, Eisenstat, Steihaug (1982); Eisenstat and Walker (1996)."""

    forcing: float = eqx.field(static=True, default=0.1)
    max_products: int | None = eqx.field(static=True, default=None)

    def prepare(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        if not isinstance(problem, Objective):
            raise ValueError(
                f"NewtonCG runs on Objective(f), but this problem is {type(problem).__name__}."
            )
        return self

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        return jnp.zeros((), tree.dtype(x)), Cost()

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        assert isinstance(problem, Objective)
        previous, cost = state
        gradient = problem.residual(x, theta)
        norm = tree.norm(jax.lax.stop_gradient(gradient))
        ratio = jnp.where(previous > 0, norm / jnp.where(previous > 0, previous, 1), 1)
        eta = jnp.minimum(jnp.asarray(self.forcing, norm.dtype), 0.9 * ratio**2)
        limit = 10 * tree.size(x) if self.max_products is None else self.max_products
        direction, products = _newton_direction(problem, x, theta, (eta, limit))
        size, trials = armijo(*tree.stop_gradient((problem, x, theta, gradient, direction)))
        cost = cost + Cost(gradients=1 + trials, products=products)
        return tree.axpy(size, direction, x), (norm, cost), gradient

    def cost(self, state: Any, steps: Any) -> Cost:
        return state[1]


@eqx.filter_custom_jvp
def _newton_direction(
    problem: Objective, x: Point, theta: Parameters, accuracy: Any
) -> tuple[Point, Int[Array, ""]]:
    """d with ‖∇²f d + ∇f‖ ≤ η ‖∇f‖, always a descent direction, and the products it took."""
    eta, limit = accuracy
    gradient = problem.residual(x, theta)
    norm = tree.norm(gradient)
    unit = jnp.where(norm > 0, norm, 1)
    b = tree.scale(-1 / unit, gradient)
    operator = problem.linear_system(x, theta).operator
    found = run(operator, b, rtol=eta, max_steps=limit)
    descends = (tree.dot(found.x, b) > 0) & tree.all_finite(found.x)
    return tree.scale(unit, tree.where(descends, found.x, b)), found.steps


@_newton_direction.def_jvp
def _newton_direction_jvp(primals: Any, tangents: Any) -> Any:
    """ḋ = -H⁻¹ (d/dτ) [∇f + H d] with d held fixed, from H d = -∇f."""
    problem, x, theta, accuracy = primals
    direction, products = _newton_direction(problem, x, theta, accuracy)

    def equation(problem: Objective, x: Point, theta: Parameters) -> Point:
        product = problem.linear_system(x, theta).operator(direction)
        return tree.add(problem.residual(x, theta), product)

    _, change = eqx.filter_jvp(equation, (problem, x, theta), tangents[:3])
    rhs = tree.scale(-1.0, tree.fill(change, x))
    tangent = solve_linear_differentiably(
        problem, x, theta, rhs, options=LinearOptions(), throw=False
    )
    return (direction, products), (tangent, None)


def armijo(
    problem: Objective, x: Point, theta: Parameters, gradient: Point, direction: Point
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The first of 1, ½, ¼, ... with f(x + a d) ≤ f(x) + 10⁻⁴ a ⟨∇f, d⟩, up to rounding
    of f; and the number of values tried."""
    value = problem.value(x, theta)
    slope = tree.dot(gradient, direction)
    kind = slope.dtype
    slack = 10 * jnp.finfo(kind).eps * jnp.abs(value).astype(kind)

    def too_long(carry: Any) -> Any:
        size, _ = carry
        trial = problem.value(tree.axpy(size, direction, x), theta).astype(kind)
        enough = trial <= value.astype(kind) + 1e-4 * size * slope + slack
        return ~enough & (size > 1e-9)

    start = jnp.ones((), kind), jnp.asarray(1)
    return jax.lax.while_loop(too_long, lambda carry: (carry[0] / 2, carry[1] + 1), start)


def _quotient(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    """a / b, or 0 where b is not positive: at the solution, 0/0 means that nothing is left."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
