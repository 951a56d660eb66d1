"""What the direct solvers do with matrices: scale them first, then judge what is singular."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dargmin import tree
from dargmin.types import Point

FLOOR = 1e-3
"""Of an indefinite matrix, and along what a singular one does not see, a direction of descent is
taken as if no |λ| were below this share of the largest."""


def largest_column(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch"]:
    """The largest norm of a column: at most ‖K‖₂, and within √d of it."""
    return jnp.sqrt(jnp.max(jnp.sum(jnp.square(matrix), axis=-2), axis=-1))


def singular_threshold(dtype: Any, d: int) -> Float[Array, ""]:
    """4 √d ε: singular values below this share of the largest are rounding."""
    return 4 * jnp.sqrt(jnp.asarray(d, dtype)) * jnp.asarray(jnp.finfo(dtype).eps, dtype)


def power_of_two(size: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The power of two nearest to 1/size, so that scaling by it rounds nothing; 1 for zeros."""
    usable = (size > 0) & jnp.isfinite(size)
    return jnp.where(usable, jnp.exp2(-jnp.round(jnp.log2(jnp.where(usable, size, 1)))), 1)


def symmetric_scale(matrix: Float[Array, "*batch d d"]) -> Float[Array, "*batch d"]:
    """s with |s_i K_ii s_i| near 1 (van der Sluis, 1969: within d of the best condition number that
    a diagonal scaling of a positive definite K can have). What an indefinite K has beside a small
    K_ii counts too: K_ij² ≤ K_ii K_jj where K is positive semidefinite."""
    diagonal = jnp.abs(jnp.diagonal(matrix, axis1=-2, axis2=-1))
    safe = jnp.where(diagonal > 0, diagonal, jnp.inf)
    beside = jnp.max(jnp.square(matrix / jnp.sqrt(safe)[..., None, :]), axis=-1)
    return power_of_two(jnp.sqrt(jnp.maximum(diagonal, beside)))


def general_scales(
    matrix: Float[Array, "d d"],
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """r and c with the largest entries of every row and column of diag(r) K diag(c) near 1."""
    rows = power_of_two(jnp.max(jnp.abs(matrix), axis=1))
    columns = power_of_two(jnp.max(jnp.abs(rows[:, None] * matrix), axis=0))
    return rows, columns


class Beside(eqx.Module):
    """A Hessian that is taken at x, where the gradient is F, and not at the solution.

    Motions that change nothing have the curvature zero at the solution; beside it, one of the size
    of ‖F‖ / ‖x‖ and of either sign: from ⟨F(x), Gx⟩ = 0 for all x follows ⟨Gx, ∇²f Gx⟩ =
    -⟨F, G²x⟩. Points that are the rows of an array are counted from their mean, around which they
    may turn."""

    F: Float[Array, " d"]
    x: Float[Array, " d"]

    @classmethod
    def at(cls, F: Point, x: Point) -> "Beside":
        center = lambda u: u - jnp.mean(u, axis=0) if u.ndim > 1 and u.shape[0] > 1 else u
        return cls(tree.ravel(F)[0], tree.ravel(jax.tree.map(center, x))[0])

    def band(self, scale: Float[Array, " d"]) -> Float[Array, ""]:
        """3 ‖SF‖ / ‖S⁻¹x‖: the same where the unknowns are counted in the units of S."""
        size = tree.norm(self.x / scale)
        return jnp.where(size > 0, 3 * tree.norm(scale * self.F) / jnp.where(size > 0, size, 1), 0)


Undetermined = Beside | Float[Array, ""] | float
"""Below which size eigenvalues of K are zero, where some are negative: a curvature, in the units of
K; or where K was taken."""

LARGEST_BAND = 1e-2
"""Of the largest eigenvalue: no point is so far from a solution that more may be zero."""


def decomposition_scale(
    matrix: Float[Array, "d d"], undetermined: Undetermined
) -> Float[Array, " d"]:
    """The symmetric scale, which takes a coordinate of little curvature for one in large units.

    Where x is known, it is large in large units: with |x_i| / s_i far below the others, the
    curvature is little, and to raise it would raise what is undetermined with it."""
    scale = symmetric_scale(matrix)
    if not isinstance(undetermined, Beside):
        return scale
    x = jnp.abs(undetermined.x)
    typical = jnp.max(x / scale)
    allowed = 3 * x / jnp.where(typical > 0, typical, 1)
    limited = jnp.clip(scale, jnp.min(scale), jnp.maximum(allowed, jnp.min(scale)))
    return jnp.where(typical > 0, 1 / power_of_two(limited), scale)


class Spectral(NamedTuple):
    """What the spectral decomposition of a scaled symmetric matrix S K S says.

    `factor` is W with K⁺ = WᵀW where K is positive semidefinite, and WᵀW positive definite where it
    is not; `basis` is N with NNᵀ the projection on the null space, which may be turned by the angle
    `blur`; `null` a vector in it, and `lowest` the direction of the most negative curvature, or
    zeros; `scale` is the diagonal of S."""

    factor: Float[Array, "d d"]
    basis: Float[Array, "d d"]
    blur: Float[Array, ""]
    scale: Float[Array, " d"]
    null: Float[Array, " d"]
    lowest: Float[Array, " d"]
    condition: Float[Array, ""]
    indefinite: Bool[Array, ""]


def spectral(matrix: Float[Array, "d d"], undetermined: Undetermined = 0.0) -> Spectral:
    """The minimum-norm inverse of K from S K S = V Λ Vᵀ.

    Eigenvalues of rounding are zero: then K⁺ = P S V Λ⁺ Vᵀ S P, with P the orthogonal projection on
    the range of K, whose complement S V₀ spans. Where the lowest is negative beyond rounding, but
    not beyond what is `undetermined`, all of that size are zero: a positive definite K loses
    none."""
    kind, d = matrix.dtype, matrix.shape[0]
    scale = decomposition_scale(matrix, undetermined)
    scaled = scale[:, None] * matrix * scale
    finite = jnp.all(jnp.isfinite(scaled))
    values, vectors = jnp.linalg.eigh(jnp.where(finite, scaled, jnp.eye(d, dtype=kind)))
    top = jnp.max(jnp.abs(values))
    rounding = singular_threshold(kind, d) * top
    if isinstance(undetermined, Beside):
        band = jnp.broadcast_to(undetermined.band(scale), (d,))
    else:  # vᵀ(SKS)v = ‖Sv‖² times the curvature of K along Sv
        squares = jnp.square(scale[:, None] * vectors)
        band = jnp.asarray(undetermined, kind) * jnp.sum(squares, axis=0)
    band = jnp.minimum(band, LARGEST_BAND * top)
    indefinite = jnp.any(values < -jnp.maximum(rounding, band))
    seen = (values[0] < -rounding) & ~indefinite
    null = (jnp.abs(values) <= jnp.where(seen, jnp.maximum(band, rounding), rounding)) & ~indefinite
    least = jnp.where(indefinite, FLOOR * top, 0)
    sizes = jnp.maximum(jnp.abs(values), least)
    weights = jnp.where(null | (sizes == 0), 0, 1 / jnp.where(sizes > 0, sizes, 1))
    factor = jnp.sqrt(weights)[:, None] * vectors.T * scale
    basis = orthonormal(scale[:, None] * vectors, ~null)
    smallest = jnp.min(jnp.where(null, jnp.inf, jnp.abs(values)))
    return Spectral(
        factor=factor - (factor @ basis) @ basis.T,
        basis=basis,
        blur=jnp.where(seen, jnp.max(band) / smallest, 0),
        scale=scale,
        null=basis @ tree.random_like(values, seed=4),
        lowest=jnp.where(indefinite, scale * vectors[:, 0], 0),
        condition=jnp.maximum(top / smallest, 1),
        indefinite=indefinite & finite,
    )


def orthonormal(vectors: Float[Array, "d d"], without: Bool[Array, " d"]) -> Float[Array, "d d"]:
    """The columns, made orthonormal, and zeros in place of those that are left out."""
    lengths = jnp.linalg.norm(vectors, axis=0)
    vectors = jnp.where(without, 0, vectors / jnp.where(lengths > 0, lengths, 1))
    gram = vectors.T @ vectors + jnp.diag(without.astype(vectors.dtype))
    cholesky = jnp.linalg.cholesky(gram)
    return jax.scipy.linalg.solve_triangular(cholesky, vectors.T, lower=True).T


class Singular(NamedTuple):
    """What the singular value decomposition of a scaled general matrix says: K⁺ b, a vector that K
    maps to zero, the spread of the singular values that count, and, relative to b, the part of it
    outside the range and what is left of the rest, b - Kx."""

    x: Float[Array, " d"]
    null: Float[Array, " d"]
    condition: Float[Array, ""]
    outside: Float[Array, ""]
    left: Float[Array, ""]


def singular(
    scaled: Float[Array, "d d"],
    rows: Float[Array, " d"],
    columns: Float[Array, " d"],
    b: Float[Array, " d"],
) -> Singular:
    """K x = b by diag(r) K diag(c) = U Σ Vᵀ where K is singular.

    Of the solutions, the one without a part that K conserves: with orthonormal bases N and W of the
    null spaces of K and Kᵀ, x = P K⁻P b with P = I - N (WᵀN)⁻¹ Wᵀ (the group inverse). For
    K = I - ∂A it is what iterating x ← A(x) does, whose invariants W are, and for a symmetric K the
    minimum-norm solution. Where WᵀN is nearly singular there is no such inverse of moderate size,
    and the minimum-norm solution (I - NNᵀ) K⁻(I - WWᵀ) b is taken. The same formulas serve Kᵀ, so
    that both are transposes of each other."""
    kind, d = scaled.dtype, scaled.shape[0]
    finite = jnp.all(jnp.isfinite(scaled))
    left, values, right = jnp.linalg.svd(jnp.where(finite, scaled, jnp.eye(d, dtype=kind)))
    keep = values > singular_threshold(kind, d) * values[0]
    N, W = orthonormal(columns[:, None] * right.T, keep), orthonormal(rows[:, None] * left, keep)
    rest = jnp.diag(keep.astype(kind))
    inverse = jnp.linalg.inv(W.T @ N + rest) - rest
    exists = jnp.linalg.norm(inverse) <= 1e3  # of Kᵀ it is the transpose
    inverse = jnp.where(exists, inverse, 0)

    def onto(v: Float[Array, " d"], null: Float[Array, "d d"]) -> Float[Array, " d"]:
        return v - jnp.where(exists, N @ (inverse @ (W.T @ v)), null @ (null.T @ v))

    coordinates = left.T @ (rows * b)
    inside = left.T @ (rows * onto(b, W))
    x = columns * (right.T @ jnp.where(keep, inside / jnp.where(keep, values, 1), 0))
    size = tree.norm(coordinates)
    size = jnp.where(size > 0, size, 1)
    x = onto(x, N)
    unsolved = inside - left.T @ (scaled @ (x / columns))
    return Singular(
        x=x,
        null=N @ tree.random_like(values, seed=4),
        condition=jnp.maximum(values[0] / jnp.min(jnp.where(keep, values, jnp.inf)), 1),
        outside=tree.norm(jnp.where(keep, 0, coordinates)) / size,
        left=tree.norm(jnp.where(keep, unsolved, 0)) / size,
    )
