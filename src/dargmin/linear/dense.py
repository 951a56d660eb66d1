"""The operator as a matrix: one factorisation, or the pseudo-inverse where it is singular."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.linear.forming import materialise
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


class Dense(AbstractLinearSolver):
    """K formed by d batched products; Cholesky if K is symmetric, LU otherwise; one refinement.

    A singular K falls back to its spectral (or singular value) decomposition, which gives the
    minimum-norm solution of a consistent system and recognises an inconsistent one."""

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
        flat, unravel = tree.ravel(b)
        matrix = materialise(operator, b)
        x, info = solve_matrix(matrix, flat, symmetric=symmetric, rtol=rtol)
        return unravel(x), info


def solve_matrix(
    matrix: Float[Array, "d d"], b: Float[Array, " d"], *, symmetric: bool, rtol: Any
) -> tuple[Float[Array, " d"], LinearInfo]:
    """K x = b by one factor and one refinement, or by the pseudo-inverse if K is singular."""
    kind, d = b.dtype, b.size
    singular = singular_threshold(kind, d)
    if symmetric:
        matrix = (matrix + matrix.T) / 2
        factor = jnp.linalg.cholesky(matrix), True
        apply = jax.scipy.linalg.cho_solve
    else:
        factor = jax.scipy.linalg.lu_factor(matrix)
        apply = jax.scipy.linalg.lu_solve

    def refine(_: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        """x ← x + K⁻¹(b - Kx), and beside it a power step v ← K⁻¹v / ‖K⁻¹v‖ for ‖K⁻¹‖."""
        x, v, _ = carry
        update = apply(factor, jnp.stack([b - matrix @ x, v], axis=1))
        inverse_norm = tree.norm(update[:, 1])
        return x + update[:, 0], update[:, 1] / inverse_norm, inverse_norm

    v = tree.random_like(b)
    begin = jnp.zeros_like(b), v / tree.norm(v), jnp.zeros((), kind)
    x, _, inverse_norm = jax.lax.fori_loop(0, 2, refine, begin)
    largest = largest_column(matrix)
    condition = largest * inverse_norm
    # A property of K alone: with one K and many b under `vmap`, this stays a true branch.
    regular = jnp.isfinite(condition) & (condition * singular < 1)
    finite = jnp.isfinite(largest) & jnp.all(jnp.isfinite(b))

    def by_factor() -> tuple[Any, ...]:
        no = jnp.asarray(False)
        return x, condition, no, jnp.zeros((), kind)

    def by_pseudo_inverse() -> tuple[Any, ...]:
        decompose = spectral_solve if symmetric else _singular_values
        return decompose(matrix, b, singular)

    x, condition, indefinite, outside = jax.lax.cond(
        regular | ~finite, by_factor, by_pseudo_inverse
    )
    relative, length = tree.norm(b - matrix @ x), tree.norm(x)
    success = judge(relative, length, kind, rtol=rtol, largest=largest, condition=condition)
    # What lies outside the range of a singular K may be rounding of a consistent b.
    slack = inconsistency(kind)
    success = success | (~regular & (relative <= slack))
    return x, LinearInfo(
        status=failure(
            success & (outside <= slack),
            finite=finite & jnp.isfinite(length),
            indefinite=indefinite,
            inconsistent=outside > slack,
        ),
        residual=relative,
        amplification=amplification(length, largest, condition),
        condition=condition,
        products=jnp.asarray(d),
        factorisations=jnp.where(regular, 1, 2),
    )


def spectral_solve(matrix: Any, b: Any, singular: Any) -> tuple[Any, Any, Any, Any]:
    """K⁺ b by K = V Λ Vᵀ: (x, condition on the range, indefinite?, part of b outside the range)."""
    values, vectors = jnp.linalg.eigh(matrix)
    threshold = singular * jnp.max(jnp.abs(values))
    x, condition, outside = _invert(jnp.abs(values) > threshold, values, vectors, vectors.T @ b)
    return x, condition, jnp.min(values) < -threshold, outside


def _singular_values(matrix: Any, b: Any, singular: Any) -> tuple[Any, Any, Any, Any]:
    """K⁺ b by K = U Σ Vᵀ, likewise; nothing is known of the sign of a non-symmetric K."""
    left, values, right = jnp.linalg.svd(matrix)
    keep = values > singular * jnp.max(values)
    x, condition, outside = _invert(keep, values, right.T, left.T @ b)
    return x, condition, jnp.asarray(False), outside


def _invert(keep: Any, values: Any, vectors: Any, coordinates: Any) -> tuple[Any, Any, Any]:
    """Σ over the values kept of v c / λ, their spread, and the norm of the coordinates dropped."""
    sizes = jnp.abs(values)
    spread = jnp.max(sizes) / jnp.min(jnp.where(keep, sizes, jnp.inf))
    x = vectors @ jnp.where(keep, coordinates / jnp.where(keep, values, 1), 0)
    return x, jnp.maximum(spread, 1), tree.norm(jnp.where(keep, 0, coordinates))
