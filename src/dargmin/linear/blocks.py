"""Many small symmetric systems at once: one factorisation for each block of a block diagonal."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.linear.dense import spectral_solve
from dargmin.linear.forming import in_blocks, materialise_blocks
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
from dargmin.types import LinearMap, Point


class BlockDense(AbstractLinearSolver):
    """K = diag(K_1, ..., K_B) formed by at most d products, d the size of a block; one Cholesky
    factor for each block, one refinement.

    For folds or tasks that are stacked along the first axis of x and do not interact: nothing of
    the size (B d)² is formed. The products of K with eⱼ in every block at once are the columns of
    all blocks, so that blocks that do interact are found out by the residual. A singular block is
    solved by its spectral decomposition, as `Dense` does.

    Parameters
    ----------
    blocks : int >= 1
        B, the length of the first axis of every leaf of x."""

    blocks: int = eqx.field(static=True)

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
        del start, preconditioner
        if not symmetric:
            raise ValueError("BlockDense() factors symmetric systems: use Dense() or GMRES().")
        K = materialise_blocks(operator, b, self.blocks)
        split, join = in_blocks(b)
        rhs = split(b)
        x, parts = _solve_blocks((K + K.mT) / 2, rhs)
        relative, length = tree.norm(rhs - split(operator(join(x)))), tree.norm(x)
        return join(x), _report(relative, length, parts, rhs, rtol)


def _solve_blocks(
    K: Float[Array, "B d d"], b: Float[Array, "B d"]
) -> tuple[Float[Array, "B d"], tuple[Array, ...]]:
    """x, and (largest ‖K‖, largest condition, indefinite?, ‖b‖ outside the range, regular?)."""
    singular = singular_threshold(b.dtype, b.shape[1])
    factor = jnp.linalg.cholesky(K)
    inverse = lambda r: jax.vmap(lambda c, r: jax.scipy.linalg.cho_solve((c, True), r))(factor, r)
    times = lambda v: jnp.einsum("bij,bj->bi", K, v)
    norms = lambda v: jnp.linalg.norm(v, axis=-1)

    def refine(_: Any, carry: Any) -> Any:
        """x ← x + K⁻¹(b - Kx), and beside it a power step for ‖K⁻¹‖."""
        x, v, _ = carry
        update = inverse(jnp.stack([b - times(x), v], axis=-1))
        size = norms(update[..., 1])
        return x + update[..., 0], update[..., 1] / size[:, None], size

    v = tree.random_like(b)
    begin = jnp.zeros_like(b), v / norms(v)[:, None], jnp.zeros(b.shape[0], b.dtype)
    x, _, inverse_norms = jax.lax.fori_loop(0, 2, refine, begin)
    largest = largest_column(K)
    conditions = largest * inverse_norms
    regular = jnp.all(jnp.isfinite(conditions) & (conditions * singular < 1))
    finite = jnp.all(jnp.isfinite(K)) & jnp.all(jnp.isfinite(b))

    def by_factor() -> Any:
        return x, jnp.max(conditions), jnp.asarray(False), jnp.zeros((), b.dtype)

    def by_spectrum() -> Any:
        x, conditions, indefinite, outside = jax.vmap(spectral_solve, (0, 0, None))(K, b, singular)
        return x, jnp.max(conditions), jnp.any(indefinite), tree.norm(outside)

    x, condition, indefinite, outside = jax.lax.cond(regular | ~finite, by_factor, by_spectrum)
    return x, (jnp.max(largest), condition, indefinite, outside, regular)


def _report(relative: Any, length: Any, parts: Any, b: Any, rtol: Any) -> LinearInfo:
    largest, condition, indefinite, outside, regular = parts
    kind = b.dtype
    slack = inconsistency(kind)
    success = judge(relative, length, kind, rtol=rtol, largest=largest, condition=condition)
    success = success | (~regular & (relative <= slack))
    return LinearInfo(
        status=failure(
            success & (outside <= slack),
            finite=jnp.isfinite(largest) & jnp.isfinite(length),
            indefinite=indefinite,
            inconsistent=outside > slack,
        ),
        residual=relative,
        amplification=amplification(length, largest, condition),
        condition=condition,
        products=jnp.asarray(b.shape[1]),
        factorisations=jnp.where(regular, 1, 2),
    )
