"""A step along a direction of descent, as long as f allows."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dargmin import tree
from dargmin.problems import Objective
from dargmin.types import Parameters, Point


class Landing(eqx.Module):
    """Where a step ended, with f and ∇f there, its size a, and the number of points tried."""

    x: Point
    value: Float[Array, ""]
    gradient: Point
    size: Float[Array, ""]
    trials: Int[Array, ""]

    @classmethod
    def at(cls, problem: Objective, x: Point, theta: Parameters) -> "Landing":
        """f and ∇f at x, no step taken."""
        value, gradient = problem.value_and_residual(x, theta)
        kind = tree.dtype(x)
        return cls(x, value.astype(kind), gradient, jnp.zeros((), kind), jnp.asarray(1))


def armijo(problem: Objective, theta: Parameters, start: Landing, direction: Point) -> Landing:
    """x + a d with the first a of 1, ½, ¼, ... at which f(x + a d) ≤ f(x) + 10⁻⁴ a ⟨∇f, d⟩, up to
    rounding of f. The gradient comes with the value: the next step begins with it. a is a constant
    of every derivative.

    References
    ----------
    Armijo (1966)."""
    return Landing(*_armijo(problem, theta, start, direction))


@eqx.filter_custom_jvp
def _armijo(problem: Objective, theta: Parameters, start: Landing, direction: Point) -> tuple:
    slope = tree.dot(start.gradient, direction)
    kind = slope.dtype
    slack = 10 * jnp.finfo(kind).eps * jnp.abs(start.value)

    def too_long(now: Landing) -> Any:
        enough = now.value <= start.value + 1e-4 * now.size * slope + slack
        return (now.trials == 0) | (~enough & (now.size > 1e-9))

    def shorter(now: Landing) -> Landing:
        size = jnp.exp2(-now.trials.astype(kind))
        x = tree.axpy(size, direction, start.x)
        value, gradient = problem.value_and_residual(x, theta)
        return Landing(x, value.astype(kind), gradient, size, now.trials + 1)

    begin = Landing(start.x, start.value, start.gradient, jnp.ones((), kind), jnp.asarray(0))
    end = jax.lax.while_loop(too_long, shorter, begin)
    return end.x, end.value, end.gradient, end.size, end.trials


@_armijo.def_jvp
def _armijo_jvp(primals: Any, tangents: Any) -> tuple[tuple, tuple]:
    problem, theta, start, direction = primals
    d_problem, d_theta, d_start, d_direction = tangents
    end = _armijo(problem, theta, start, direction)
    x, value, gradient, size, _ = end
    dx = tree.axpy(size, tree.fill(d_direction, direction), tree.fill(d_start.x, start.x))
    evaluate = lambda problem, theta, x: problem.value_and_residual(x, theta)
    _, (d_value, d_gradient) = eqx.filter_jvp(
        evaluate, (problem, theta, x), (d_problem, d_theta, dx)
    )
    moved = dx, tree.fill(d_value, value), tree.fill(d_gradient, gradient)
    return end, (*moved, jnp.zeros_like(size), None)
