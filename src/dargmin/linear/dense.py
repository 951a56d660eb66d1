"""The operator as a matrix: one factorisation, or a generalised inverse where it is singular."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.linear.factored import Factored, factor_matrix
from dargmin.linear.forming import materialise, materialise_blocks
from dargmin.linear.lanes import in_every_lane
from dargmin.linear.matrix import (
    Singular,
    Undetermined,
    general_scales,
    largest_column,
    singular,
    singular_threshold,
)
from dargmin.linear.solution import (
    AbstractLinearSolver,
    LinearInfo,
    amplification,
    failure,
    inconsistency,
    judge,
    samples,
)
from dargmin.types import LinearMap, Point


class Dense(AbstractLinearSolver):
    """K formed by d batched products; Cholesky if K is symmetric, LU otherwise; refined.

    Rows and columns are scaled first, so that the units of x are no ill-condition. A singular K
    falls back to its spectral (or singular value) decomposition, which solves a consistent system
    and recognises an inconsistent one; of its solutions it gives, for a symmetric K, the
    minimum-norm one, and otherwise the one that iterating with I - K gives (see
    `dargmin.linear.matrix.singular`).

    Parameters
    ----------
    undetermined : float, or `dargmin.linear.matrix.Beside`
        Where the lowest eigenvalue of a symmetric K is negative, but not more so than this, those
        below this are zero: at the solution K is positive semidefinite, and beside it not quite.
        May say instead where K is taken."""

    undetermined: Undetermined = 0.0

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
        if not symmetric:
            return _unravelled(unravel, *solve_matrix(matrix, flat, rtol=rtol))
        matrix = (matrix + matrix.T) / 2
        factor = factor_matrix(matrix, self.undetermined)
        return _unravelled(unravel, *_solve_once(factor, lambda v: matrix @ v, flat, rtol))


class BlockDense(AbstractLinearSolver):
    """K = diag(K_1, ..., K_B) formed by at most d products, d the size of a block; one Cholesky
    factor for each block, refined.

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
        factor = factor_matrix(materialise_blocks(operator, b, self.blocks))
        return _solve_once(factor, operator, b, rtol)


def _solve_once(factor: Factored, operator: LinearMap, b: Any, rtol: Any) -> tuple[Any, LinearInfo]:
    """A solve with a factor that is made for it."""
    x, info = factor.solve(operator, b, symmetric=True, start=None, preconditioner=None, rtol=rtol)
    cost = factor.cost
    return x, dataclasses.replace(info, products=cost.products, factorisations=cost.factorisations)


def _unravelled(unravel: Any, x: Any, info: LinearInfo) -> tuple[Point, LinearInfo]:
    doubt, null = jax.vmap(unravel)(info.doubt), unravel(info.null)
    return unravel(x), dataclasses.replace(info, doubt=doubt, null=null)


def solve_matrix(
    matrix: Float[Array, "d d"], b: Float[Array, " d"], *, rtol: Any
) -> tuple[Float[Array, " d"], LinearInfo]:
    """K x = b by an LU factor and refinement, or by a generalised inverse if K is singular."""
    kind, d = b.dtype, b.size
    rows, columns = general_scales(matrix)
    scaled = rows[:, None] * matrix * columns
    factor = jax.scipy.linalg.lu_factor(scaled)
    whole = tree.norm(rows * b)
    whole = jnp.where(whole > 0, whole, 1)

    def refine(_: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        """x ← x + K⁻¹(b - Kx), and beside it a power step v ← K⁻¹v / ‖K⁻¹v‖ for ‖K⁻¹‖."""
        x, v, _ = carry
        update = jax.scipy.linalg.lu_solve(factor, jnp.stack([rows * (b - matrix @ x), v], axis=1))
        inverse_norm = tree.norm(update[:, 1])
        return x + columns * update[:, 0], update[:, 1] / inverse_norm, inverse_norm

    v = tree.random_like(b)
    begin = jnp.zeros_like(b), v / tree.norm(v), jnp.zeros((), kind)
    x, direction, inverse_norm = jax.lax.fori_loop(0, 2, refine, begin)
    largest = largest_column(scaled)
    condition = largest * inverse_norm
    regular = jnp.isfinite(condition) & (condition * singular_threshold(kind, d) < 1)
    finite = jnp.isfinite(largest) & jnp.all(jnp.isfinite(b))
    none = jnp.zeros((), kind)

    def by_factor() -> Singular:
        left = tree.norm(rows * (b - matrix @ x)) / whole
        return Singular(x, jnp.zeros_like(b), condition, none, left)

    def by_decomposition() -> Singular:
        found = singular(scaled, rows, columns, b)
        return jax.tree.map(lambda new, old: jnp.where(regular, old, new), found, by_factor())

    # A branch also under vmap, see `factor_matrix`.
    found = jax.lax.cond(in_every_lane(regular | ~finite), by_factor, by_decomposition)
    x, condition = found.x, found.condition
    relative = found.left
    length = tree.norm(x / columns) / whole
    success = judge(relative, length, kind, rtol=rtol, largest=largest, condition=condition)
    # What lies outside the range of a singular K may be rounding of a consistent b.
    slack = inconsistency(kind)
    success = success | (~regular & (relative <= slack))
    finite = finite & jnp.isfinite(length)
    return x, LinearInfo(
        status=failure(
            success & (found.outside <= slack),
            finite=finite,
            indefinite=jnp.asarray(False),
            inconsistent=found.outside > slack,
        ),
        residual=relative,
        amplification=amplification(length, largest, condition),
        condition=condition,
        products=jnp.asarray(d),
        factorisations=jnp.where(regular, 1, 2),
        doubt=samples(x, columns * direction, columns * tree.random_like(b, seed=5)),
        null=found.null,
        lowest=jnp.asarray(jnp.inf, kind),
        slack=slack,
    )
