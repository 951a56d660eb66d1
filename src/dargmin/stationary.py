"""What a point where F vanishes is besides: a saddle, which is left, or a degenerate solution."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from dargmin import tree
from dargmin.linear.lanes import in_every_lane
from dargmin.problems import AbstractProblem, Composite, Objective
from dargmin.status import Status
from dargmin.types import LinearMap, Parameters, Point

CORRECTIONS = 12
"""How many corrections a point beside a solution gets to become one."""

LENGTHS = 20
"""Steps that are tried, each a quarter of the one before."""


def escape(
    problem: Objective, theta: Parameters, x: Point, direction: Point
) -> tuple[Point, Bool[Array, ""], int]:
    """The lowest of the points x ± 2 · 4⁻ᵏ max(‖x‖, 1) d, k = 0, 1, ..., d of length 1; whether f
    is lower there than at x, beyond rounding; and how often f was evaluated."""
    kind = tree.dtype(x)
    length = tree.norm(direction)
    unit = tree.scale(1 / jnp.where(length > 0, length, 1), direction)
    longest = 2 * jnp.maximum(tree.norm(x), 1)
    sizes = longest * 4.0 ** -jnp.arange(LENGTHS, dtype=kind)
    # x itself comes first
    sizes = jnp.concatenate([jnp.zeros(1, kind), sizes, -sizes])
    values = jax.lax.map(lambda a: problem.value(tree.axpy(a, unit, x), theta), sizes)
    values = jnp.where(jnp.isfinite(values), values, jnp.inf).astype(kind)
    best = jnp.argmin(values)
    here = values[0]
    fell = values[best] < here - 10 * jnp.finfo(kind).eps * jnp.abs(here)
    return tree.axpy(sizes[best], unit, x), fell, len(sizes)


def degeneracy(
    problem: AbstractProblem, x: Point, theta: Parameters, null: Point, inverse: LinearMap
) -> Any:
    """The status `degenerate` if x is a multiple root, else ok; looked at where a linear solve has
    met a `null` vector that is not zero. On a `Composite`, K is singular wherever the prox is
    flat, which says nothing."""
    if isinstance(problem, Composite):
        return Status.ok
    singular = tree.norm(null) > 0
    degenerate = singular & jax.lax.cond(
        in_every_lane(~singular),
        lambda: jnp.asarray(False),
        lambda: is_degenerate(problem, x, theta, inverse),
    )
    return Status.where(degenerate, Status.degenerate, Status.ok)


def is_degenerate(
    problem: AbstractProblem, x: Point, theta: Parameters, inverse: LinearMap
) -> Bool[Array, ""]:
    """Whether K = ∂ₓF is singular at the solution x as that is a multiple root; K⁺ is `inverse`.

    x is moved by a hundredth along a null vector of K, and corrected by K⁺. Where solutions form a
    curve, or a total is conserved, that leads to another solution; where x is a multiple root, as
    of (x - θ)³, it does not: F stays, and the derivative is not what K says."""
    F = lambda y: problem.residual(y, theta)
    kind, r = tree.dtype(x), tree.random_like(x, seed=9)
    Kr = problem.linear_system(x, theta).operator(r)
    null = tree.sub(r, inverse(Kr))
    length, size = tree.norm(null), tree.norm(x)
    step = 0.01 * jnp.where(size > 0, size, 1) / jnp.where(length > 0, length, 1)

    def correct(state: Any) -> Any:
        y, Fy, begin, _, count = state
        y = tree.sub(y, inverse(Fy))
        now = tree.norm(Fy)
        return y, F(y), jnp.where(count == 0, now, begin), now, count + 1

    def falls(state: Any) -> Bool[Array, ""]:
        _, Fy, _, before, count = state
        return (count < CORRECTIONS) & (tree.norm(Fy) < 0.5 * before)

    y = tree.axpy(step, null, x)
    zero = jnp.zeros((), kind)
    start = (y, F(y), zero, zero + jnp.inf, jnp.asarray(0))
    y, Fy, begin, _, _ = jax.lax.while_loop(falls, correct, start)
    left, steepness = tree.norm(Fy), tree.norm(Kr) / jnp.maximum(tree.norm(r), 1e-30)
    rounding = 1e3 * jnp.finfo(kind).eps * steepness * tree.norm(y)
    return (left > rounding) & (left > 1e-3 * begin) & (length > 0)
