"""Conjugate gradients and Newton-CG: methods that use Hessian-vector products."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.cost import Cost
from dargmin.linear import LinearOptions, jacobi, scaling, solve_linear_differentiably
from dargmin.linear.cg import run
from dargmin.methods.base import AbstractMethod
from dargmin.methods.line_search import Landing, armijo
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
        assert isinstance(problem, Objective)
        curvature = tree.dot(p, problem.curvature(x, theta, p))
        following = tree.axpy(_quotient(rho, curvature), p, x)
        # ∇f is a sum of terms of the size of ‖H‖‖x‖ and ‖∇f(x_0)‖, and rounded accordingly.
        x, p_, curvature = tree.stop_gradient((x, p, curvature))
        product = _quotient(curvature, tree.dot(p_, p_)) * tree.norm(x)
        size = jnp.maximum(size, jnp.maximum(product, jnp.sqrt(jax.lax.stop_gradient(rho))))
        return following, (p, rho, size), gradient

    def stays(self, x: Point, state: Any, following: tuple[Point, Any]) -> Bool[Array, ""]:
        _, (_, rho, _) = following
        return rho == 0

    def cost(self, state: Any, steps: Any) -> Cost:
        return Cost(gradients=steps, products=steps)


class NewtonCG(AbstractMethod):
    """x_{t+1} = x_t + a_t d_t,  ∇²f(x_t) d_t ≈ -∇f(x_t) by conjugate gradients.

    The linear solve is as inexact as superlinear convergence allows, ‖r‖ ≤ η_t ‖∇f‖ with η_0 = η
    and η_t = min(η, 0.9 ‖∇f(x_t)‖²/‖∇f(x_{t-1})‖²), and stops at negative curvature; a_t is the
    first of 1, ½, ¼, ... that decreases f enough (Armijo). The diagonal of the Hessian is the
    preconditioner where it pays. The derivative of a step is that of the exact Newton direction,
    with a_t held constant.

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
        assert isinstance(problem, Objective)
        here = Landing.at(problem, x, theta)
        return here, jnp.zeros((), tree.dtype(x)), Cost(gradients=1)

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        assert isinstance(problem, Objective)
        here, previous, cost = state
        norm = tree.norm(jax.lax.stop_gradient(here.gradient))
        ratio = jnp.where(previous > 0, norm / jnp.where(previous > 0, previous, 1), 1)
        eta = jnp.minimum(jnp.asarray(self.forcing, norm.dtype), 0.9 * ratio**2)
        limit = 10 * tree.size(x) if self.max_products is None else self.max_products
        point = problem, x, theta, here.gradient
        direction, products = _newton_direction(*point, (eta, limit))
        there = armijo(problem, theta, here, direction)
        cost = cost + Cost(gradients=there.trials, products=products)
        return there.x, (there, norm, cost), there.gradient

    def refresh(self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters) -> Any:
        assert isinstance(problem, Objective)
        here, previous, cost = state
        return here.refreshed(problem, theta), previous, cost

    def stays(self, x: Point, state: Any, following: tuple[Point, Any]) -> Bool[Array, ""]:
        _, (there, _, _) = following
        return there.size == 0

    def cost(self, state: Any, steps: Any) -> Cost:
        return state[2]


@eqx.filter_custom_jvp
def _newton_direction(
    problem: Objective, x: Point, theta: Parameters, gradient: Point, accuracy: Any
) -> tuple[Point, Int[Array, ""]]:
    """d with ‖∇²f d + ∇f‖ ≤ η ‖∇f‖, always a descent direction, and the products it took."""
    eta, limit = accuracy
    norm = tree.norm(gradient)
    unit = jnp.where(norm > 0, norm, 1)
    b = tree.scale(-1 / unit, gradient)
    system = problem.linear_system(x, theta)
    preconditioner = jacobi(scaling(problem, x, theta, system))
    own = lambda v: problem.curvature(x, theta, v)
    product = system.operator if problem.hvp is None else own
    found = run(product, b, preconditioner, rtol=eta, max_steps=limit)
    descends = (tree.dot(found.x, b) > 0) & tree.all_finite(found.x)
    return tree.scale(unit, tree.where(descends, found.x, b)), found.steps


@_newton_direction.def_jvp
def _newton_direction_jvp(primals: Any, tangents: Any) -> Any:
    """ḋ = -H⁻¹ (ġ + (d/dτ) H d with d held fixed), from H d = -g."""
    problem, x, theta, gradient, accuracy = primals
    direction, products = _newton_direction(problem, x, theta, gradient, accuracy)

    def product(problem: Objective, x: Point, theta: Parameters) -> Point:
        return problem.curvature(x, theta, direction)

    _, change = eqx.filter_jvp(product, (problem, x, theta), tangents[:3])
    change = tree.add(tree.fill(change, x), tree.fill(tangents[3], x))
    tangent = solve_linear_differentiably(
        problem, x, theta, tree.scale(-1.0, change), options=LinearOptions(), throw=False
    )
    return (direction, products), (tangent, None)


def _quotient(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    """a / b, or 0 where b is not positive: at the solution, 0/0 means that nothing is left."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
