"""One Cholesky factor for many solves: with this matrix, and with those near it."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.cost import Cost
from dargmin.linear.forming import in_blocks, materialise, materialise_blocks
from dargmin.linear.solution import (
    AbstractLinearSolver,
    LinearInfo,
    amplification,
    failure,
    inconsistency,
    judge,
    largest_column,
    singular_threshold,
)
from dargmin.linear.work import SMALL
from dargmin.types import LinearMap, Point

MAX_REFINEMENTS = 12


class Factored(AbstractLinearSolver):
    """x ← x + M⁻¹(b - Kx) until the true residual is small, with a factor of M = K₀ + σI, or with
    one for each block of a block diagonal K₀.

    K₀ is the symmetric matrix that was factored, K itself or a neighbour: every step takes a
    product with K off the residual's error, and with K = K₀ one is enough. σ is zero but where K₀
    is singular; then it is so small that two steps find the minimum-norm solution of a consistent
    system, and what stays of the residual tells an inconsistent one.

    Attributes
    ----------
    factor : array, shape (d, d) or (B, d, d)
        C with M = C Cᵀ, lower, for each of B blocks if there are such; or, for small d, C⁻¹: two
        products are then quicker than two triangular solves, and worth the inversion.
    largest, condition : arrays
        Estimates of ‖K₀‖ and of its condition number.
    singular, indefinite : bool arrays
        Whether σ > 0; whether a σ at the level of rounding was not enough."""

    factor: Float[Array, "*blocks d d"]
    largest: Float[Array, ""]
    condition: Float[Array, ""]
    singular: Bool[Array, ""]
    indefinite: Bool[Array, ""]

    @property
    def cost(self) -> Cost:
        """What forming and factoring took."""
        return Cost(0, self.factor.shape[-1], 1 + self.singular.astype(int))

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
        del symmetric, preconditioner
        kind = tree.dtype(b)
        x = tree.zeros_like(b) if start is None else start
        r = b if start is None else tree.sub(b, operator(start))
        zero = jnp.asarray(0)
        begin = _Refined(x, r, tree.norm(r), zero + int(start is not None), jnp.asarray(True))

        def unfinished(c: _Refined) -> Bool[Array, ""]:
            small = c.size <= jnp.asarray(rtol, kind)
            return ~small & c.falling & (c.products < MAX_REFINEMENTS)

        def refine(c: _Refined) -> _Refined:
            x = tree.add(c.x, self.inverse(c.residual))
            r = tree.sub(b, operator(x))
            size = tree.norm(r)
            better = size < c.size
            return _Refined(
                x=tree.where(better, x, c.x),
                residual=tree.where(better, r, c.residual),
                size=jnp.where(better, size, c.size),
                products=c.products + 1,
                falling=size < 0.5 * c.size,
            )

        end = jax.lax.while_loop(unfinished, refine, begin)
        length = tree.norm(end.x)
        slack = inconsistency(kind)
        success = judge(
            end.size, length, kind, rtol=rtol, largest=self.largest, condition=self.condition
        )
        # What lies outside the range of a singular K may be rounding of a consistent b.
        success = success | (self.singular & (end.size <= slack))
        return end.x, LinearInfo(
            status=failure(
                success,
                finite=jnp.isfinite(end.size + length + self.largest),
                indefinite=self.indefinite,
                inconsistent=self.singular & (end.size > slack),
            ),
            residual=end.size,
            amplification=amplification(length, self.largest, self.condition),
            condition=self.condition,
            products=end.products,
            factorisations=zero,
        )

    def inverse(self, v: Point) -> Point:
        """M⁻¹ v."""
        if self.factor.ndim == 3:
            split, join = in_blocks(v)
            return join(_inverse(self.factor, split(v)))
        flat, unravel = tree.ravel(v)
        return unravel(_inverse(self.factor, flat))


class _Refined(eqx.Module):
    x: Point
    residual: Point
    size: Float[Array, ""]
    products: Int[Array, ""]
    falling: Bool[Array, ""]


def factored(operator: LinearMap, like: Point, blocks: int | None = None) -> Factored:
    """Form a symmetric operator by d batched products, and factor it; or each of its blocks, of
    size d, where it is block diagonal in the first axis of all leaves.

    σ is the first of 0, √ε, √ε·10³, ... times ‖K‖ with which that goes well: the second where K is
    singular, a later one where it is indefinite (M⁻¹ then still gives directions of descent). The
    condition number comes from two power steps with M⁻¹."""
    if blocks is None:
        matrix = materialise(operator, like)
    else:
        matrix = materialise_blocks(operator, like, blocks)
    kind, d = matrix.dtype, matrix.shape[-1]
    eps = jnp.asarray(jnp.finfo(kind).eps, kind)
    matrix = (matrix + matrix.mT) / 2
    largest = largest_column(matrix)
    v = tree.random_like(matrix[..., 0])
    identity = jnp.broadcast_to(jnp.eye(d, dtype=kind), matrix.shape)
    threshold = 1 / singular_threshold(kind, d)

    def unfit(state: tuple) -> Bool[Array, "*blocks"]:
        _, inverse_norm, tries = state
        fits = jnp.isfinite(inverse_norm) & (largest * inverse_norm < threshold)
        return ~fits & (tries < 6) & jnp.isfinite(largest)

    def attempt(state: tuple) -> tuple:
        """A factor of K + σI, and ‖(K + σI)⁻¹‖ from below."""
        tries = state[2] + unfit(state).astype(int)
        raised = jnp.sqrt(eps) * jnp.max(largest) * 1e3 ** (tries - 2).astype(kind)
        shift = jnp.where(tries == 1, 0, raised)[..., None, None]
        factor = jax.lax.linalg.cholesky(matrix + shift * identity, symmetrize_input=False)
        if d <= SMALL:
            factor = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
        once = _inverse(factor, v)
        twice = _inverse(factor, once)
        return factor, jnp.linalg.norm(twice, axis=-1) / jnp.linalg.norm(once, axis=-1), tries

    start = identity, jnp.full_like(largest, jnp.nan), jnp.zeros(largest.shape, int)
    factor, inverse_norm, tries = jax.lax.while_loop(lambda s: jnp.any(unfit(s)), attempt, start)
    largest, tries = jnp.max(largest), jnp.max(tries)
    return Factored(factor, largest, largest * jnp.max(inverse_norm), tries > 1, tries > 2)


def _inverse(
    factor: Float[Array, "*blocks d d"], v: Float[Array, "*blocks d"]
) -> Float[Array, "*blocks d"]:
    """M⁻¹ v."""
    if v.shape[-1] <= SMALL:
        return jnp.einsum("...ij,...i->...j", factor, jnp.einsum("...ij,...j->...i", factor, v))
    return jax.scipy.linalg.cho_solve((factor, True), v[..., None])[..., 0]
