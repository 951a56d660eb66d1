"""The default linear solver: chosen by size and structure, and by how the first attempt went."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.linear.cg import CG
from dargmin.linear.dense import BlockDense, Dense
from dargmin.linear.krylov import GMRES
from dargmin.linear.lanes import in_every_lane
from dargmin.linear.matrix import Undetermined
from dargmin.linear.recycling import Pairs
from dargmin.linear.solution import AbstractLinearSolver, LinearInfo, inconsistency, samples
from dargmin.linear.work import MEDIUM, SMALL
from dargmin.status import Status, is_ok
from dargmin.types import LinearMap, Point


class Auto(AbstractLinearSolver):
    """A factorisation for small d, CG or GMRES for large d, and in between the one, then the other.

    Up to `small` coordinates the matrix is formed and factored at once. Up to `medium` a Krylov
    solver goes first, with as many steps as a factorisation is worth; if the condition asks for
    more, the matrix is formed. Beyond `medium` nothing d x d is ever formed. `pairs` are for CG;
    for GMRES, `error` is a residual of a twentieth of it. `undetermined` is for the factorisation
    (see `Dense`), `lowest` for the Krylov solvers.

    `blocks` says that a symmetric system is that many systems, stacked along the first axis of
    every leaf of x: d is then the size of one, and each has a factor of its own."""

    small: int = SMALL
    medium: int = MEDIUM
    pairs: Pairs | None = None
    blocks: int | None = None
    error: Float[Array, ""] | float | None = None
    undetermined: Undetermined = 0.0
    lowest: Float[Array, ""] | float | None = None

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
        kind, blocks = tree.dtype(b), self.blocks if symmetric else None
        d = tree.size(b) // (blocks or 1)
        direct = Dense(self.undetermined) if blocks is None else BlockDense(blocks)

        def solve(solver: AbstractLinearSolver) -> tuple[Point, LinearInfo]:
            return solver.solve(
                operator,
                b,
                symmetric=symmetric,
                start=start,
                preconditioner=preconditioner,
                rtol=rtol,
            )

        if d <= self.small:
            return solve(direct)
        if not symmetric and self.error is not None:  # GMRES knows residuals only
            rtol = jnp.maximum(jnp.asarray(rtol, kind), 0.05 * jnp.asarray(self.error, kind))
        gmres = GMRES(lowest=self.lowest)
        if d > self.medium:
            return solve(CG(None, self.pairs, self.error, self.lowest) if symmetric else gmres)
        # A product with all blocks is one with several vectors, which d at once hardly speed up.
        worth = max(d // (2 if blocks else 4), 64)
        cg = CG(worth, self.pairs, self.error, self.lowest)
        first = cg if symmetric else dataclasses.replace(gmres, max_restarts=4)
        x, info = solve(first)

        def factor() -> tuple[Point, LinearInfo]:
            y, dense = solve(direct)
            return y, _after(dense, info)

        return jax.lax.cond(in_every_lane(is_ok(info.status)), lambda: (x, info), factor)


def _after(info: LinearInfo, earlier: LinearInfo) -> LinearInfo:
    """The report of a second attempt, with what the first one cost and learnt."""
    return dataclasses.replace(info, products=info.products + earlier.products, pairs=earlier.pairs)


def trivial(b: Point) -> tuple[Point, LinearInfo]:
    """The solution of a system of no equations."""
    kind = tree.dtype(b)
    zero = jnp.asarray(0)
    info = LinearInfo(
        Status.ok, jnp.zeros((), kind), jnp.zeros((), kind), jnp.ones((), kind), zero, zero,
        samples(b, b, b), b, jnp.asarray(jnp.inf, kind), slack=inconsistency(kind),
    )  # fmt: skip
    return tree.zeros_like(b), info
