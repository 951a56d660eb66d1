"""The operators: each class is one formula, with h the step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from dargmin import tree
from dargmin.prox.parameters import require_group_weight, spread
from dargmin.types import Parameters, Point


class SoftThreshold(eqx.Module):
    """x_i = sign(v_i) max(|v_i| - h w_i, 0): the operator of `l1`."""

    weight: Callable

    def __call__(self, v: Point, theta: Parameters, step: ArrayLike) -> Point:
        v = tree.as_point(v, "v")
        weight = spread("weight", self.weight(theta), v)
        return jax.tree.map(lambda u, w: _soft_threshold(u, _times(step, w)), v, weight)


class ShrunkSoftThreshold(eqx.Module):
    """x_i = sign(v_i) max(|v_i| - h w_i, 0) / (1 + h u_i): the operator of `elastic_net`."""

    l1: Callable
    l2: Callable

    def __call__(self, v: Point, theta: Parameters, step: ArrayLike) -> Point:
        v = tree.as_point(v, "v")
        l1, l2 = spread("l1", self.l1(theta), v), spread("l2", self.l2(theta), v)

        def shrink(u: Array, w1: Array, w2: Array) -> Array:
            return _soft_threshold(u, _times(step, w1)) / (1 + _times(step, w2))

        return jax.tree.map(shrink, v, l1, l2)


class BlockSoftThreshold(eqx.Module):
    """x_G = max(1 - h w_G / ‖v_G‖, 0) v_G: the operator of `group_lasso`."""

    weight: Callable
    groups: Any
    count: int = eqx.field(static=True)

    def __call__(self, v: Point, theta: Parameters, step: ArrayLike) -> Point:
        v = tree.as_point(v, "v")
        kind = tree.dtype(v)
        weight = self.weight(theta)
        require_group_weight(weight, self.count)
        threshold = _times(step, jnp.asarray(weight, kind))
        groups = spread("groups", self.groups, v, int)

        def sum_of_squares(u: Array, labels: Array) -> Array:
            squares = jnp.square(u.astype(kind)).ravel()
            labels = jnp.broadcast_to(labels, u.shape).ravel()
            return jax.ops.segment_sum(squares, labels, self.count)

        parts = jax.tree.leaves(jax.tree.map(sum_of_squares, v, groups))
        squared = sum(parts[1:], start=parts[0])
        inactive = jnp.sqrt(jax.lax.stop_gradient(squared)) < threshold
        # the square root has no derivative at 0, and an overflowing one where it is tiny: both
        # branches of the second `where` must be finite for its derivative to be
        norm = jnp.sqrt(jnp.where(inactive | (squared == 0), 1.0, squared))
        factor = jnp.where(inactive, 0.0, 1 - threshold / norm)
        return jax.tree.map(lambda u, labels: u * factor[labels].astype(u.dtype), v, groups)


class NonnegativeProjection(eqx.Module):
    """x_i = max(v_i, 0): the operator of `nonnegative`."""

    def __call__(self, v: Point, theta: Parameters, step: ArrayLike) -> Point:
        return jax.tree.map(lambda u: jnp.where(u <= 0, 0.0, u), tree.as_point(v, "v"))


class BoxProjection(eqx.Module):
    """x_i = min(max(v_i, l_i), u_i): the operator of `box`."""

    lower: Callable
    upper: Callable

    def __call__(self, v: Point, theta: Parameters, step: ArrayLike) -> Point:
        v = tree.as_point(v, "v")
        lower, upper = spread("lower", self.lower(theta), v), spread("upper", self.upper(theta), v)

        def clip(u: Array, low: Array, high: Array) -> Array:
            # on a bound a coordinate counts as fixed, so that low == high has no derivative in v
            clipped = jnp.where(u <= low, low, jnp.where(u >= high, high, u))
            return jnp.where(low <= high, clipped, jnp.nan)

        return jax.tree.map(clip, v, lower, upper)


class SimplexProjection(eqx.Module):
    """x_i = max(v_i - τ, 0) with τ such that Σ_i x_i = total: the operator of `simplex`.

    References
    ----------
    Held, Wolfe, Crowder (1974); Duchi, Shalev-Shwartz, Singer, Chandra (2008), ICML.
    """

    total: Callable

    def __call__(self, v: Point, theta: Parameters, step: ArrayLike) -> Point:
        v = tree.as_point(v, "v")
        leaves, treedef = jax.tree.flatten(v)
        kind = tree.dtype(v)
        total = jnp.asarray(self.total(theta), kind)
        if total.shape != () or tree.size(v) == 0:
            raise ValueError(
                f"simplex(total): total has shape {total.shape} and v {tree.size(v)} coordinates, "
                "but total must be a scalar and v must not be empty. Map the operator with "
                "jax.vmap to project onto several simplices."
            )
        flat = jnp.concatenate([leaf.astype(kind).ravel() for leaf in leaves])
        x = _project_on_simplex(flat, jnp.where(total > 0, total, jnp.nan))
        pieces = jnp.split(x, np.cumsum([leaf.size for leaf in leaves])[:-1])
        parts = [p.reshape(u.shape).astype(u.dtype) for p, u in zip(pieces, leaves, strict=True)]
        return jax.tree.unflatten(treedef, parts)


def _times(step: ArrayLike, weight: Array) -> Array:
    """The threshold h w, or NaN where w is negative."""
    return jnp.asarray(step, weight.dtype) * jnp.where(weight >= 0, weight, jnp.nan)


def _soft_threshold(v: Array, threshold: Array) -> Array:
    # a NaN threshold fails the comparison and comes out as NaN; a threshold of 0 is the identity,
    # with derivative 1 at v = 0 too (an unpenalised intercept that starts there)
    return jnp.where(jnp.abs(v) < threshold, 0.0, v - jnp.sign(v) * threshold)


def _project_on_simplex(v: Array, total: Array) -> Array:
    """Project onto {x >= 0, Σ x = total}; the support is locally constant, and so held constant."""
    v = v - jax.lax.stop_gradient(jnp.max(v))  # the same x, and large entries do not cancel
    ordered, sum_to = jax.lax.stop_gradient((jnp.flip(jnp.sort(v)), total))
    excess = jnp.cumsum(ordered) - sum_to
    ranks = jnp.arange(1, v.size + 1, dtype=v.dtype)
    size = jnp.sum(ordered * ranks > excess)
    support = v > excess[size - 1] / size.astype(v.dtype)
    tau = (jnp.sum(jnp.where(support, v, 0.0)) - total) / jnp.sum(support).astype(v.dtype)
    return jnp.where(v <= tau, 0.0, v - tau)
