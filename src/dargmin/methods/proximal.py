"""Proximal gradient, plain and accelerated, and fixed-point iteration."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dargmin import tree
from dargmin.methods.base import AbstractMethod, positive
from dargmin.methods.curvature import Curvature, estimated_curvature
from dargmin.methods.first_order import restarted_momentum
from dargmin.problems import AbstractProblem, Composite, FixedPoint
from dargmin.types import Parameters, Point


class ProximalGradient(AbstractMethod):
    """x_{t+1} = prox_{hg}(y_t - h ∇f(y_t)),  y_{t+1} = x_{t+1} + β_t (x_{t+1} - x_t).

    β_t = 0 without acceleration; with it, FISTA's momentum, set back to zero whenever
    ⟨y_t - x_{t+1}, x_{t+1} - x_t⟩ > 0. The residual is (y_t - x_{t+1}) / h.

    Parameters
    ----------
    step_size : float, optional
        h, at most 1/L. If None, the problem's, lowered where the iterates meet more curvature.
        Either way a constant of the derivative, unless `Unrolled(hyperparameters=True)`.
    accelerate : bool
        Momentum with restart. Without restart the derivative lags far behind the iterate.

    References
    ----------
    Beck and Teboulle (2009); O'Donoghue and Candès (2015), gradient restart."""

    step_size: Float[Array, "*batch"] | None
    accelerate: bool = eqx.field(static=True)
    curvature: Curvature | None

    def __init__(
        self,
        step_size: ArrayLike | None = None,
        accelerate: bool = True,
        *,
        curvature: Curvature | None = None,
    ):
        self.step_size = None if step_size is None else positive(step_size, "ProximalGradient")
        self.accelerate, self.curvature = accelerate, curvature

    def prepare(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        _require(problem, Composite, "ProximalGradient", "Composite(f, prox)")
        if self.step_size is not None:
            return self
        curvature = estimated_curvature(problem, x, theta)
        return type(self)(accelerate=self.accelerate, curvature=curvature)

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        return x, jnp.ones((), tree.dtype(x)), self.curvature

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        assert isinstance(problem, Composite)
        y, s, curvature = state
        gradient = problem.smooth.residual(y, theta)
        step_size = self.step_size
        if curvature is not None:
            curvature = curvature.observe(y, gradient)
            step_size = curvature.step_size
        step_size = jnp.asarray(step_size, tree.dtype(x))
        z = problem.prox(tree.axpy(-step_size, gradient, y), theta, step_size)
        back, moved = tree.sub(y, z), tree.sub(z, x)
        residual = tree.scale(1 / step_size, back)
        if not self.accelerate:
            return z, (z, s, curvature), residual
        beta, s = restarted_momentum(s, tree.dot(back, moved) > 0)
        return z, (tree.axpy(beta, moved, z), s, curvature), residual


class FixedPointIteration(AbstractMethod):
    """x_{t+1} = A(x_t, θ)   (Banach, 1922); a proximal gradient step on a composite problem."""

    def prepare(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        _require(problem, FixedPoint | Composite, "FixedPointIteration", "FixedPoint(A)")
        return self

    def step(
        self, problem: AbstractProblem, x: Point, state: None, theta: Parameters
    ) -> tuple[Point, None, Point]:
        # Not x - h F(x, θ): its rounding is that of x, and it blurs exact zeros.
        if isinstance(problem, Composite):
            following = problem.proximal_step(x, theta)
            return following, None, tree.scale(1 / problem.step, tree.sub(x, following))
        assert isinstance(problem, FixedPoint)
        following = problem.image(x, theta)
        return following, None, tree.sub(x, following)


def _require(problem: AbstractProblem, kind: Any, method: str, wanted: str) -> None:
    if not isinstance(problem, kind):
        raise ValueError(
            f"{method} runs on {wanted}, but this problem is {type(problem).__name__}."
        )
