"""The operator as a matrix: one factorisation, or the pseudo-inverse where it is singular."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.linear.solution import (
    AbstractLinearSolver,
    LinearInfo,
    failure,
    judge,
    solution_error,
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
        flat, unravel = ravel_pytree(b)
        matrix = materialise(operator, b)
        x, info = solve_matrix(matrix, flat, symmetric=symmetric, rtol=rtol)
        return unravel(x), info


def materialise(operator: LinearMap, like: Point) -> Float[Array, "d d"]:
    """The matrix of a linear map on pytrees like `like`, by d batched products."""
    flat, unravel = ravel_pytree(like)
    columns = jax.vmap(lambda e: ravel_pytree(operator(unravel(e)))[0])(
        jnp.eye(flat.size, dtype=flat.dtype)
    )
    return columns.T


def solve_matrix(
    matrix: Float[Array, "d d"], b: Float[Array, " d"], *, symmetric: bool, rtol: Any
) -> tuple[Float[Array, " d"], LinearInfo]:
    """K x = b by one factor and one refinement, or by the pseudo-inverse if that fails."""
    kind, d = b.dtype, b.size
    eps = jnp.asarray(jnp.finfo(kind).eps, kind)
    singular = 4 * jnp.sqrt(jnp.asarray(d, kind)) * eps
    if symmetric:
        matrix = (matrix + matrix.T) / 2
        factor = jnp.linalg.cholesky(matrix)
        apply = lambda r: jax.scipy.linalg.cho_solve((factor, True), r)  # noqa: E731
    else:
        factor = jax.scipy.linalg.lu_factor(matrix)
        apply = lambda r: jax.scipy.linalg.lu_solve(factor, r)  # noqa: E731
    x = apply(b)
    x = x + apply(b - matrix @ x)
    largest = jnp.sqrt(jnp.max(jnp.sum(jnp.square(matrix), axis=0)))  # ≤ ‖K‖₂, within √d of it
    condition = largest * _inverse_norm(apply, b)
    relative, success = judge(x, b - matrix @ x, rtol=rtol, largest=largest, condition=condition)
    # A property of K alone: with one K and many b under `vmap`, this stays a true branch.
    regular = jnp.isfinite(condition) & (condition * singular < 1)

    def by_factor() -> tuple[Any, ...]:
        no = jnp.asarray(False)
        return x, relative, condition, success, no, no

    def by_pseudo_inverse() -> tuple[Any, ...]:
        decompose = _spectral if symmetric else _singular_values
        x, kept, outside, indefinite = decompose(matrix, b, singular)
        condition = jnp.max(jnp.abs(kept)) / jnp.min(jnp.where(kept == 0, jnp.inf, jnp.abs(kept)))
        residual = b - matrix @ x
        relative, success = judge(x, residual, rtol=rtol, largest=largest, condition=condition)
        # What lies outside the range may be rounding of a consistent right-hand side.
        consistent = outside <= 10 * jnp.sqrt(eps)
        success = (success | (relative <= 10 * jnp.sqrt(eps))) & consistent
        return x, relative, condition, success, indefinite, ~consistent

    finite = jnp.all(jnp.isfinite(matrix)) & jnp.all(jnp.isfinite(b))
    x, relative, condition, success, indefinite, inconsistent = jax.lax.cond(
        regular | ~finite, by_factor, by_pseudo_inverse
    )
    return x, LinearInfo(
        status=failure(
            success,
            finite=finite & jnp.all(jnp.isfinite(x)),
            indefinite=indefinite,
            inconsistent=inconsistent,
        ),
        residual=relative,
        error=solution_error(x, relative, largest, condition),
        condition=condition,
        products=jnp.asarray(d),
        factorisations=jnp.where(regular, 1, 2),
    )


def _inverse_norm(apply: Any, like: Float[Array, " d"], steps: int = 3) -> Float[Array, ""]:
    """‖K⁻¹‖₂ from below, by power iteration on K⁻¹ from a fixed random start."""

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        v, _norm = carry
        w = apply(v)
        size = tree.norm(w)
        return (w / jnp.where(size > 0, size, 1), size), None

    v = tree.random_like(like)
    v = v / tree.norm(v)
    (_, size), _ = jax.lax.scan(step, (v, jnp.zeros((), like.dtype)), None, length=steps)
    return size


def _spectral(matrix: Any, b: Any, singular: Any) -> tuple[Any, Any, Any, Any]:
    """K⁺ b by K = V Λ Vᵀ: (x, kept eigenvalues, part of b outside the range, indefinite?)."""
    values, vectors = jnp.linalg.eigh(matrix)
    threshold = singular * jnp.max(jnp.abs(values))
    keep = jnp.abs(values) > threshold
    kept = jnp.where(keep, values, 0)
    coordinates = vectors.T @ b
    x = vectors @ jnp.where(keep, coordinates / jnp.where(keep, values, 1), 0)
    outside = tree.norm(jnp.where(keep, 0, coordinates))
    return x, kept, outside, jnp.min(values) < -threshold


def _singular_values(matrix: Any, b: Any, singular: Any) -> tuple[Any, Any, Any, Any]:
    """K⁺ b by K = U Σ Vᵀ: (x, kept singular values, part of b outside the range, False)."""
    left, values, right = jnp.linalg.svd(matrix)
    keep = values > singular * jnp.max(values)
    coordinates = left.T @ b
    x = right.T @ jnp.where(keep, coordinates / jnp.where(keep, values, 1), 0)
    outside = tree.norm(jnp.where(keep, 0, coordinates))
    return x, jnp.where(keep, values, 0), outside, jnp.asarray(False)
