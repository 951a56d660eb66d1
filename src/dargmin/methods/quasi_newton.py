"""L-BFGS: one gradient a step, and the curvature from how the gradients change."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.cost import Cost
from dargmin.linear import scaling
from dargmin.methods.base import AbstractMethod, with_derivative_of
from dargmin.methods.line_search import Landing, armijo
from dargmin.problems import AbstractProblem, Objective
from dargmin.types import Parameters, Point


class LBFGS(AbstractMethod):
    """x_{t+1} = x_t - a_t H_t ∇f(x_t), with H_t from the last steps and changes of the gradient.

    H_t is the inverse Hessian of least change that maps the changes of the gradient to the steps;
    a_t is the first of 1, ½, ¼, ... that decreases f enough (Armijo). Where the Hessian at x_0 has
    a diagonal of large spread, as with features of different units, the coordinates are scaled by
    it first. What is computed from the iterates is differentiated; a_t and that scale are
    constants of the derivative.

    Parameters
    ----------
    memory : int
        Steps remembered, of 2 d numbers each.

    References
    ----------
    Liu and Nocedal (1989); Byrd, Nocedal, Schnabel (1994), theorem 2.2."""

    memory: int = eqx.field(static=True)
    scale: Float[Array, " d"] | None

    def __init__(self, memory: int = 10, *, scale: Float[Array, " d"] | None = None):
        if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
            raise ValueError(f"LBFGS(memory={memory!r}) needs an integer memory >= 1.")
        self.memory, self.scale = memory, scale

    def prepare(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        if not isinstance(problem, Objective):
            raise ValueError(
                f"LBFGS runs on Objective(f), but this problem is {type(problem).__name__}."
            )
        diagonal = scaling(problem, x, theta)
        scale = None if diagonal is None else jnp.sqrt(tree.ravel(diagonal)[0])
        return LBFGS(self.memory, scale=scale)

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        assert isinstance(problem, Objective)
        here = Landing.at(problem, x, theta)
        gradient = self._scaled(here.gradient)
        # the curvature along the gradient: the first step is as long as a line search would make it
        direction = self._direction(gradient, x)
        curvature = tree.dot(direction, problem.curvature(x, theta, direction))
        squared = jnp.vdot(gradient, gradient)
        exact = squared / jnp.where(curvature > 0, curvature, 1)
        unit = 1 / jnp.sqrt(jnp.where(squared > 0, squared, 1))
        gamma = jnp.where(curvature > 0, exact, unit)
        memory = _Memory.empty(self.memory, gradient, gamma)
        return here, memory, Cost(gradients=1, products=1)

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        assert isinstance(problem, Objective)
        here, memory, cost = state
        gradient = self._scaled(here.gradient)
        step = memory.times(gradient)
        direction = tree.scale(-1.0, self._direction(step, x))
        there = armijo(problem, theta, here, direction)
        memory = memory.after(-there.size * step, gradient, self._scaled(there.gradient))
        return there.x, (there, memory, cost + Cost(gradients=there.trials)), there.gradient

    def refresh(self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters) -> Any:
        assert isinstance(problem, Objective)
        here, memory, cost = state
        here = here.refreshed(problem, theta)
        return here, memory.refreshed(self._scaled(here.gradient)), cost

    def stays(self, x: Point, state: Any, following: tuple[Point, Any]) -> Bool[Array, ""]:
        _, (there, _, _) = following
        return there.size == 0

    def cost(self, state: Any, steps: Any) -> Cost:
        return state[2]

    def _scaled(self, gradient: Point) -> Float[Array, " d"]:
        """∂f/∂z in the coordinates z = scale ∘ x, as a vector."""
        flat, _ = tree.ravel(gradient)
        return flat if self.scale is None else flat / self.scale

    def _direction(self, z: Float[Array, " d"], like: Point) -> Point:
        """A direction in z as one in x."""
        return tree.ravel(like)[1](z if self.scale is None else z / self.scale)


class _Memory(eqx.Module):
    """The last m steps s and changes of the gradient y, as rows, in a ring; what of their inner
    products is needed; and those with the gradient at the end of the last step."""

    steps: Float[Array, "m d"]  # S
    changes: Float[Array, "m d"]  # Y
    SY: Float[Array, "m m"]  # of older steps with newer changes
    YY: Float[Array, "m m"]
    Sg: Float[Array, " m"]
    Yg: Float[Array, " m"]
    gamma: Float[Array, ""]  # H_0 = γ I
    count: Int[Array, ""]

    @classmethod
    def empty(cls, m: int, gradient: Float[Array, " d"], gamma: Float[Array, ""]) -> "_Memory":
        kind = gradient.dtype
        rows, square = jnp.zeros((m, gradient.size), kind), jnp.zeros((m, m), kind)
        none = jnp.zeros(m, kind)
        return cls(rows, rows, square, square, none, none, gamma.astype(kind), jnp.asarray(0))

    def refreshed(self, gradient: Float[Array, " d"]) -> "_Memory":
        """The same, with the derivative of the products with the gradient at the last end."""
        Sg, Yg = with_derivative_of(
            (self.Sg, self.Yg), (self.steps @ gradient, self.changes @ gradient)
        )
        return dataclasses.replace(self, Sg=Sg, Yg=Yg)

    def times(self, gradient: Float[Array, " d"]) -> Float[Array, " d"]:
        """H g, for the gradient that S g and Y g belong to.

        H = γI + Sᵀ R⁻ᵀ (D + γ Y Yᵀ) R⁻¹ S - γ Sᵀ R⁻ᵀ Y - γ Yᵀ R⁻¹ S, with R the upper triangle and
        D the diagonal of S Yᵀ, the oldest first."""
        m = self.Sg.size
        order = (jnp.arange(m) + self.count) % m
        SY = self.SY[order][:, order]
        known = jnp.diagonal(SY)
        R = jnp.triu(SY) + jnp.diag(jnp.where(known > 0, 0, 1).astype(known.dtype))
        w = solve_triangular(R, self.Sg[order])
        inner = known * w + self.gamma * (self.YY[order][:, order] @ w - self.Yg[order])
        top = solve_triangular(R, inner, trans=1)
        back = lambda v: jnp.zeros_like(v).at[order].set(v)
        return self.gamma * (gradient - back(w) @ self.changes) + back(top) @ self.steps

    def after(
        self,
        step: Float[Array, " d"],
        before: Float[Array, " d"],
        gradient: Float[Array, " d"],
    ) -> "_Memory":
        """With a step and the gradients at its ends, in place of the oldest; unless its curvature
        is not positive."""
        change = gradient - before
        curvature, squared = jnp.vdot(step, change), jnp.vdot(change, change)
        least = jnp.sqrt(jnp.finfo(step.dtype).eps * squared) * jnp.linalg.norm(step)
        good = (curvature > least) & jnp.isfinite(squared)
        place = self.count % self.Sg.size
        put = lambda rows, v: rows.at[place].set(jnp.where(good, v, rows[place]))
        steps, changes = put(self.steps, step), put(self.changes, change)
        Sg, Yg = steps @ gradient, changes @ gradient
        # S y = S g_{t+1} - S g_t, of which all but the newest entry is known
        column = Sg - put(self.Sg, jnp.vdot(step, before))
        SY = self.SY.at[:, place].set(jnp.where(good, column, self.SY[:, place]))
        column = jnp.where(good, Yg - put(self.Yg, jnp.vdot(change, before)), self.YY[:, place])
        YY = self.YY.at[:, place].set(column).at[place, :].set(column)
        gamma = jnp.where(good, curvature / jnp.where(good, squared, 1), self.gamma)
        count = self.count + good.astype(self.count.dtype)
        return _Memory(steps, changes, SY, YY, Sg, Yg, gamma, count)
