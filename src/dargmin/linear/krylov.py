"""Krylov solvers for non-symmetric systems, from lineax, each judged by the true residual."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.linear.solution import (
    AbstractLinearSolver,
    LinearInfo,
    amplification,
    failure,
    judge,
)
from dargmin.types import LinearMap, Point


class GMRES(AbstractLinearSolver):
    """Restarted GMRES (Saad and Schultz, 1986), for any square operator.

    Parameters
    ----------
    restart : int
        Dimension of the Krylov space between restarts.
    max_restarts : int, optional
        10 d / restart, at least 10, if None."""

    restart: int = 60
    max_restarts: int | None = None

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
        restart = min(self.restart, max(tree.size(b), 1))
        cycles = self.max_restarts or max(10, 10 * tree.size(b) // restart)

        def make(tolerance: Any) -> lx.AbstractLinearSolver:
            return lx.GMRES(0.0, tolerance, norm=tree.norm, max_steps=cycles, restart=restart)

        return _solve_with(make, restart, operator, b, start, preconditioner, rtol)


class BiCGStab(AbstractLinearSolver):
    """Stabilised biconjugate gradients (van der Vorst, 1992), for any square operator.

    Parameters
    ----------
    max_steps : int, optional
        10 d if None."""

    max_steps: int | None = None

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
        limit = self.max_steps or max(10, 10 * tree.size(b))

        def make(tolerance: Any) -> lx.AbstractLinearSolver:
            return lx.BiCGStab(0.0, tolerance, norm=tree.norm, max_steps=limit)

        return _solve_with(make, 2, operator, b, start, preconditioner, rtol)


def _solve_with(
    make: Any,
    products_per_step: int,
    operator: LinearMap,
    b: Point,
    start: Point | None,
    preconditioner: LinearMap | None,
    rtol: Any,
) -> tuple[Point, LinearInfo]:
    """One lineax solve and one refinement, both by absolute tolerance, since ‖b‖ = 1."""
    kind = tree.dtype(b)
    struct = jax.eval_shape(lambda: b)
    linear = lx.FunctionLinearOperator(operator, struct)
    options: dict[str, Any] = {}
    if preconditioner is not None:
        options["preconditioner"] = lx.FunctionLinearOperator(
            preconditioner, struct, lx.positive_semidefinite_tag
        )

    def attempt(b: Point, y0: Point) -> tuple[Point, Any]:
        # lineax also asks the update of x to fall below the tolerance: give it one that the
        # residual reaches first, and judge by the true residual.
        solution = lx.linear_solve(
            linear, b, make(jnp.asarray(rtol, kind)), options={**options, "y0": y0}, throw=False
        )
        usable = tree.all_finite(solution.value)
        return tree.where(usable, solution.value, y0), solution.stats["num_steps"]

    x, first = attempt(b, tree.zeros_like(b) if start is None else start)
    r = tree.sub(b, operator(x))

    def refine() -> tuple[Point, Any]:
        dx, steps = attempt(r, tree.zeros_like(b))
        better = tree.norm(tree.sub(r, operator(dx))) < tree.norm(r)
        return tree.where(better, tree.add(x, dx), x), steps

    met = tree.norm(r) <= jnp.asarray(rtol, kind)
    x, second = jax.lax.cond(met, lambda: (x, jnp.zeros_like(first)), refine)
    # ‖Kx‖ / ‖x‖ and ‖x‖ / ‖b‖: all that this solve has seen of ‖K‖ and ‖K⁻¹‖.
    r, length = tree.sub(b, operator(x)), tree.norm(x)
    largest = tree.norm(tree.sub(b, r)) / jnp.maximum(length, jnp.finfo(kind).tiny)
    condition = jnp.maximum(largest * length, jnp.ones((), kind))
    relative = tree.norm(r)
    success = judge(relative, length, kind, rtol=rtol, largest=largest, condition=condition)
    no = jnp.asarray(False)
    finite = jnp.isfinite(relative) & jnp.isfinite(length)
    return x, LinearInfo(
        status=failure(success, finite=finite, indefinite=no, inconsistent=no),
        residual=relative,
        amplification=amplification(length, largest, condition),
        condition=condition,
        products=(first + second) * products_per_step + 4,
        factorisations=jnp.asarray(0),
    )
