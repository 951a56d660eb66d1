"""What a linear solve reports, and the interface that every linear solver has."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.linear.recycling import Pairs
from dargmin.status import Status, is_ok
from dargmin.types import LinearMap, Point


class LinearInfo(eqx.Module):
    """How a linear solve went.

    `residual` is the true relative residual ‖b - Kx‖ / ‖b‖, and `error` the relative error of x
    that it allows: `amplification` ‖K⁺‖ ‖b‖ / ‖x‖ times larger; in the norm that the solver scales
    to. That and `condition` come from cheap estimates of ‖K⁺‖, from below; a solve that took no
    step has learnt nothing, and both are 1. `doubt` holds two samples of where an error of x may
    point, as long as x (leaves (2, ...)); `null` is a vector that K maps to zero, where one was
    met, or zeros. `products` counts applications of K, `factorisations` dense ones. `pairs` is
    what the next, similar solve may recycle, where the solver was given some; `lowest` the smallest
    stretch ‖Kv‖ / ‖v‖ that a Krylov solver met (of M⁻¹K, with a preconditioner), else infinite;
    `slack` how much of b may lie outside the range of a singular K."""

    status: Any
    residual: Float[Array, "*batch"]
    amplification: Float[Array, "*batch"]
    condition: Float[Array, "*batch"]
    products: Int[Array, "*batch"]
    factorisations: Int[Array, "*batch"]
    doubt: Point
    null: Point
    lowest: Float[Array, "*batch"]
    pairs: Pairs | None = None
    slack: Float[Array, "*batch"] | None = None

    @property
    def error(self) -> Float[Array, "*batch"]:
        return self.amplification * self.residual

    @property
    def ok(self) -> Bool[Array, "*batch"]:
        return is_ok(self.status)


class AbstractLinearSolver(eqx.Module):
    """Solves K x = b for ‖b‖ = 1, and judges its own answer by the true residual."""

    @abstractmethod
    def solve(
        self,
        operator: LinearMap,
        b: Point,
        *,
        symmetric: bool,
        start: Point | None,
        preconditioner: LinearMap | None,
        rtol: float | Float[Array, ""],
    ) -> tuple[Point, LinearInfo]:
        """x with ‖b - Kx‖ ≤ rtol ‖b‖, and how it went."""


def default_rtol(dtype: Any) -> float:
    """1e-10 in float64, 1e-5 in float32."""
    return 1e-10 if jnp.finfo(dtype).eps < 1e-10 else 1e-5


def rounding(dtype: Any, condition: Float[Array, ""]) -> Float[Array, ""]:
    """κ ε: what rounding alone may do to a solution, relative to it."""
    return jnp.asarray(jnp.finfo(dtype).eps, dtype) * condition


def samples(x: Point, *directions: Point) -> Point:
    """The directions, each as long as x, stacked along a new first axis."""
    length = tree.norm(x)

    def scaled(v: Point) -> Point:
        size = tree.norm(v)
        return tree.scale(jnp.where(size > 0, length / jnp.where(size > 0, size, 1), 0), v)

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(scaled, directions))


def inconsistency(dtype: Any) -> Float[Array, ""]:
    """10 √ε: more of b than this outside the range of a singular K cannot be rounding."""
    return 10 * jnp.sqrt(jnp.asarray(jnp.finfo(dtype).eps, dtype))


def amplification(
    length: Float[Array, ""], largest: Float[Array, ""], condition: Float[Array, ""]
) -> Float[Array, ""]:
    """‖K⁺‖ / ‖x‖, by which a relative residual is multiplied at worst, for ‖b‖ = 1."""
    size = largest * length
    return jnp.where(size > 0, condition / jnp.where(size > 0, size, 1), 1)


def judge(
    relative: Float[Array, ""],
    length: Float[Array, ""],
    dtype: Any,
    *,
    rtol: float | Float[Array, ""],
    largest: Float[Array, ""],
    condition: Float[Array, ""],
) -> Bool[Array, ""]:
    """Whether the relative residual of a solution x of `length` ‖x‖ is small enough, for ‖b‖ = 1.

    Small enough is rtol, or as small as the precision allows: a backward error
    ‖r‖ / (‖K‖‖x‖ + ‖b‖) of a few ε, as long as κ ε leaves correct digits."""
    eps = jnp.asarray(jnp.finfo(dtype).eps, dtype)
    backward = relative / (largest * length + 1)
    stable = (backward <= 30 * eps) & (rounding(dtype, condition) <= 0.1)
    return (relative <= jnp.asarray(rtol, dtype)) | stable


def failure(
    success: Bool[Array, ""],
    *,
    finite: Bool[Array, ""],
    indefinite: Bool[Array, ""],
    inconsistent: Bool[Array, ""],
) -> Any:
    """Name what went wrong, the most specific first."""
    status = Status.where(inconsistent, Status.inconsistent, Status.linear_solve_failed)
    status = Status.where(indefinite, Status.not_positive_definite, status)
    status = Status.where(finite, status, Status.nonfinite)
    return Status.where(success & finite & ~indefinite, Status.ok, status)
