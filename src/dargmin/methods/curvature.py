"""A smoothness constant that is estimated once and watched from then on."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.linear import smoothness
from dargmin.problems import AbstractProblem, Objective
from dargmin.types import Parameters, Point


class Curvature(eqx.Module):
    """L̂, raised whenever two gradients show more: L̂ ← max(L̂, 1.05 ‖∇f(x) - ∇f(x')‖ / ‖x - x'‖).

    An estimate at x0 says nothing of the curvature elsewhere, and too small an L diverges. The
    gradients are those that the method evaluates anyway. A constant of every derivative."""

    L: Float[Array, ""]
    point: Point | None  # None: the Hessian is the same everywhere, nothing to watch
    gradient: Point | None

    @property
    def step_size(self) -> Float[Array, ""]:
        return 1 / self.L

    def observe(self, x: Point, gradient: Point) -> "Curvature":
        if self.point is None:
            return self
        x, gradient = jax.lax.stop_gradient((x, gradient))
        moved = tree.norm(tree.sub(x, self.point))
        changed = tree.norm(tree.sub(gradient, self.gradient))
        # Over a distance of rounding the quotient is noise, and would raise L̂ without end; the 1
        # is for x* near 0, where ‖x‖ sets no scale. Steps that do need a larger L̂ grow, and show.
        far = moved > 1e3 * jnp.finfo(moved.dtype).eps * (1 + tree.norm(x))
        seen = jnp.where(far, 1.05 * changed / jnp.where(far, moved, 1), 0)
        usable = jnp.isfinite(seen)
        return Curvature(jnp.maximum(self.L, jnp.where(usable, seen, 0)), x, gradient)


def estimated_curvature(problem: AbstractProblem, x: Point, theta: Parameters) -> Curvature:
    """L̂ at x0, to be watched unless the problem is quadratic or declares its L."""
    L = jnp.asarray(smoothness(problem, x, theta), tree.dtype(x))
    known = isinstance(problem, Objective) and (problem.L is not None or bool(problem.quadratic))
    if known:
        return Curvature(L, None, None)
    x = jax.lax.stop_gradient(x)
    # At the first step x = x0: nothing has moved, and nothing is concluded.
    return Curvature(L, x, tree.zeros_like(x))
