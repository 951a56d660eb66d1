"""The interface that every mode has."""

from abc import abstractmethod
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.loop import Carry, Run
from dargmin.problems import AbstractProblem, Objective
from dargmin.solution import Solution
from dargmin.status import Status
from dargmin.types import Parameters, Point

FAILED = (
    "The derivative is NaN or infinite. Usual causes: iterations or a series that diverge (step "
    "size), a linear solve that fails (singular Hessian), a point that solves nothing, or a step "
    "that has no derivative where it stands, as the square root of a zero gradient in Adam has "
    "none. Use Implicit(), another start, or regularisation."
)


class AbstractMode(eqx.Module):
    """Which derivative `solve` has. Never asks which method runs."""

    @abstractmethod
    def solve(
        self, run: Run, x0: Point, steps: int, tol: Float[Array, ""] | None, throw: bool
    ) -> Solution:
        """x_T, the same in every mode, with this mode's derivative."""

    def reason(
        self,
        problem: AbstractProblem,
        x: Point,
        theta: Parameters,
        tangent: tuple[Any, Any] | None,
        cotangent: Point | None,
    ) -> str:
        """Why the derivative along a tangent of (problem, θ), or a cotangent of x, failed."""
        return FAILED


def conclude(
    run: Run,
    carry: Carry,
    tol: Float[Array, ""] | None,
    x: Point | None = None,
    start: Int[Array, ""] | None = None,
) -> Solution:
    """Evaluate F(x_T, θ) once, and say how the run ended. `x` is x_T with its derivative."""
    x = carry.x if x is None else x
    frozen = tree.stop_gradient((run, carry.x))
    residual = tree.norm(frozen[0].problem.residual(frozen[1], frozen[0].theta))
    finite = jnp.isfinite(residual) & tree.all_finite(frozen[1])
    status = Status.where(finite, Status.ok, Status.nonfinite)
    if tol is not None:
        reached = (carry.residual <= tol) | (residual <= tol)
        status = Status.where(finite & ~reached, Status.not_converged, status)
    elif isinstance(run.problem, Objective):
        status = Status.where(finite & _falls_straight(carry, residual), Status.unbounded, status)
    aux = tree.as_arrays(run.problem.aux(x, run.theta))
    residual = jax.lax.stop_gradient(residual)
    return Solution(x, status, carry.steps, residual, tol, start, aux)


def _falls_straight(carry: Carry, residual: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether ‖F‖ is to the last digit what it was in the beginning, though the steps went
    somewhere: a function without curvature, such as -θx, which no step brings nearer to an end."""
    eps = jnp.finfo(residual.dtype).eps
    same = jnp.abs(residual - carry.first) <= 4 * eps * carry.first
    far = carry.longest > 1e-3 * (1 + tree.norm(carry.x))
    return jax.lax.stop_gradient(same & (carry.first > 0) & far & (carry.steps > 1))


def no_derivative(bad: Bool[Array, ""], like: Point, why: str, throw: bool) -> Float[Array, ""]:
    """The factor by which a derivative is multiplied: 1, or NaN where it is `bad`, or an error
    that says why if `throw`. A factor: reverse mode passes by a NaN that `where` has chosen."""
    factor = jnp.where(bad, jnp.nan, 1).astype(tree.dtype(like))
    return eqx.error_if(factor, bad, why) if throw else factor


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def withhold(x: Point, bad: Bool[Array, ""], why: str, throw: bool) -> Point:
    """x as it is, without a derivative where it would be `bad`."""
    return x


@withhold.defjvp
def _withhold_jvp(why: str, throw: bool, primals: Any, tangents: Any) -> tuple[Point, Point]:
    x, bad = primals
    return withhold(x, bad, why, throw), tree.scale(no_derivative(bad, x, why, throw), tangents[0])


def is_whole(value: Any, least: int) -> bool:
    """Whether a value is an integer that is at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
