"""What a right-hand side can hide: a few steps from a random vector look for slow directions, and
for negative curvature."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.linear.krylov import smallest_stretch
from dargmin.types import LinearMap, Point

STEPS = 12


class SecondOpinion(eqx.Module):
    """The smallest stretch of K that was met, of M⁻¹K with a preconditioner; whether its curvature
    is negative there, and the direction (zeros where it is not); and the products it took."""

    lowest: Float[Array, ""]
    negative: Bool[Array, ""]
    direction: Point
    products: Int[Array, ""]


def second_opinion(
    operator: LinearMap,
    start: Point,
    preconditioner: LinearMap | None,
    *,
    symmetric: bool,
    undetermined: Float[Array, ""] | float = 0.0,
    steps: int = STEPS,
) -> SecondOpinion:
    """Look at K from a random vector `start`: isolated small and negative eigenvalues show in a few steps,
    whatever the right-hand sides of the solves are. Curvature above -`undetermined` is not taken
    for negative."""
    if not symmetric:
        lowest, products = smallest_stretch(operator, start, steps)
        return SecondOpinion(lowest, jnp.asarray(False), tree.zeros_like(start), products)
    return _symmetric(operator, start, preconditioner, undetermined, min(steps, tree.size(start)))


def _symmetric(
    K: LinearMap, start: Point, preconditioner: LinearMap | None, undetermined: Any, steps: int
) -> SecondOpinion:
    """Lanczos on M⁻¹K, twice where the smallest Ritz value is negative: then for its vector."""
    kind = tree.dtype(like)
    eps, zero = jnp.asarray(jnp.finfo(kind).eps, kind), jnp.zeros((), kind)
    M = (lambda r: r) if preconditioner is None else preconditioner

    def step(carry: Any, weight: Float[Array, ""]) -> Any:
        v, q, before, beta, total, top, ended = carry
        total = tree.axpy(weight, q, total)
        w = tree.axpy(-beta, before, K(q))
        alpha = tree.dot(w, q)
        w = tree.axpy(-alpha, v, w)
        z = M(w)
        size = jnp.sqrt(jnp.maximum(tree.dot(w, z), 0))
        top = jnp.maximum(top, jnp.abs(alpha) + size)
        ended_now = ended | (size <= 100 * eps * top)
        unit = jnp.where(ended_now, 0, 1 / jnp.where(ended_now, 1, size))
        following = jnp.where(ended_now, 0, size)
        # Where the space has ended, a large value fills the rest.
        alpha = jnp.where(ended, top, alpha)
        carry = (tree.scale(unit, w), tree.scale(unit, z), v, following, total, top, ended_now)
        return carry, (alpha, following)

    z = M(start)
    size = 1 / jnp.sqrt(jnp.maximum(tree.dot(start, z), jnp.finfo(kind).tiny))
    none = tree.zeros_like(start)

    def attempt(state: Any) -> Any:
        _, weights, _, _, passes = state
        begin = (
            tree.scale(size, start), tree.scale(size, z), none, zero, none, zero, jnp.asarray(False),
        )  # fmt: skip
        end, (alphas, betas) = jax.lax.scan(step, begin, weights)
        off = betas[:-1]
        values, vectors = jnp.linalg.eigh(jnp.diag(alphas) + jnp.diag(off, 1) + jnp.diag(off, -1))
        return values[0], vectors[:, 0], end[4], end[5], passes + 1

    def unfinished(state: Any) -> Bool[Array, ""]:
        value, _, _, top, passes = state
        return (passes == 0) | ((passes == 1) & _is_negative(value, top))

    def _is_negative(value: Any, top: Any) -> Bool[Array, ""]:
        least = jnp.maximum(100 * eps * top, jnp.asarray(undetermined, kind))
        return value < -least

    first = (zero, jnp.zeros(steps, kind), none, zero, jnp.asarray(0))
    value, _, direction, top, passes = jax.lax.while_loop(unfinished, attempt, first)
    negative = _is_negative(value, top)
    lowest = jnp.maximum(value, eps * top)
    keep = tree.scale(jnp.where(negative, 1, 0), direction)
    return SecondOpinion(lowest, negative, keep, passes * steps)
