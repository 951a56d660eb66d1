"""Leaving a saddle: where the gradient says nothing, the value of f is looked at."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from dargmin import tree
from dargmin.problems import Objective
from dargmin.types import Parameters, Point

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
