"""A step along a direction of descent, as long as f allows."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.methods.base import with_derivative_of
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

    def refreshed(self, problem: Objective, theta: Parameters) -> "Landing":
        """The same, with the derivatives of f and ∇f in θ."""
        here = Landing.at(problem, self.x, theta)
        value, gradient = with_derivative_of(
            (self.value, self.gradient), (here.value, here.gradient)
        )
        return Landing(self.x, value, gradient, self.size, self.trials)


TRIALS = 50
"""Points that a line search tries: enough for a step that is 1e13 times too long."""


def armijo(problem: Objective, theta: Parameters, start: Landing, direction: Point) -> Landing:
    """x + a d with the first a of 1, ½, ¼, ... at which f(x + a d) ≤ f(x) + 10⁻⁴ a ⟨∇f, d⟩, up to
    rounding of f. The gradient comes with the value: the next step begins with it. a is a constant
    of every derivative.

    Where f or ∇f is not finite, a is divided by 2, 4, 8, 16, 16, ... instead. Where f can no longer
    tell, its slope decides (Hager and Zhang). If no a will do, a = 0: x stays.

    References
    ----------
    Armijo (1966); Hager and Zhang (2005), approximate Wolfe conditions."""
    return Landing(*_armijo(problem, theta, start, direction))


@eqx.filter_custom_jvp
def _armijo(problem: Objective, theta: Parameters, start: Landing, direction: Point) -> tuple:
    slope = tree.dot(start.gradient, direction)
    kind = slope.dtype
    rounding = jnp.finfo(kind).eps * jnp.abs(start.value)

    def enough(now: Landing) -> Bool[Array, ""]:
        falls = now.value <= start.value + 1e-4 * now.size * slope + 10 * rounding
        level = now.value <= start.value + 1e3 * rounding
        flattens = tree.dot(now.gradient, direction) <= (2e-4 - 1) * slope
        return usable(now) & (falls | (level & flattens))

    def goes_on(state: tuple[Landing, Any]) -> Bool[Array, ""]:
        now, _ = state
        # Where even the predicted fall is rounding, a shorter step tells no more.
        tells = ~usable(now) | (now.size * jnp.abs(slope) > 10 * rounding)
        more = (now.trials < TRIALS) & tells & jnp.isfinite(start.value)
        return (now.trials == 0) | (~enough(now) & more)

    def shorter(state: tuple[Landing, Any]) -> tuple[Landing, Any]:
        now, factor = state
        factor = jnp.where(usable(now), 2, jnp.minimum(2 * factor, 16)).astype(kind)
        size = jnp.where(now.trials == 0, 1, now.size / factor)
        x = tree.axpy(size, direction, start.x)
        value, gradient = problem.value_and_residual(x, theta)
        return Landing(x, value.astype(kind), gradient, size, now.trials + 1), factor

    begin = Landing(start.x, start.value, start.gradient, jnp.ones((), kind), jnp.asarray(0))
    end, _ = jax.lax.while_loop(goes_on, shorter, (begin, jnp.ones((), kind)))
    nowhere = Landing(start.x, start.value, start.gradient, jnp.zeros((), kind), end.trials)
    end = tree.where(enough(end), end, nowhere)
    return end.x, end.value, end.gradient, end.size, end.trials


def usable(landing: Landing) -> Bool[Array, ""]:
    """Whether f and ∇f are finite there."""
    return jnp.isfinite(landing.value) & tree.all_finite(landing.gradient)


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
