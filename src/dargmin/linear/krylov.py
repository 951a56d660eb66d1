"""Krylov solvers for non-symmetric systems, each judged by the true residual."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
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

DOUBT = 4.0
"""By how much ‖K⁻¹‖ may be underestimated."""

BLOCK = 8
"""Rows of the basis that a new vector is orthogonalised against at once."""


class GMRES(AbstractLinearSolver):
    """Restarted GMRES (Saad and Schultz, 1986), for any square operator.

    min ‖b - Kx‖ over x_0 + span{r, Kr, K²r, ...}. A cycle ends where its residual is small enough,
    by the recursion of its QR factors; then the true residual decides.

    Parameters
    ----------
    restart : int
        Dimension of the Krylov space between restarts, and vectors of memory.
    max_restarts : int, optional
        10 d / restart, at least 10, if None.
    lowest : float, optional
        A value of ‖Kv‖ / ‖v‖ that is known from elsewhere to occur: b may hide it."""

    restart: int = 60
    max_restarts: int | None = None
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
        del symmetric
        kind, m = tree.dtype(b), min(self.restart, max(tree.size(b), 1))
        cycles = self.max_restarts or max(10, 10 * tree.size(b) // m)
        rhs, unravel = tree.ravel(b)
        flat = lambda f: lambda v: tree.ravel(f(unravel(v)))[0]
        K = flat(operator)
        M = (lambda v: v) if preconditioner is None else flat(preconditioner)
        target = jnp.asarray(rtol, kind)

        def unfinished(s: _Restart) -> Bool[Array, ""]:
            return (s.size > target) & (s.cycles < cycles) & s.falling

        def restarted(s: _Restart) -> _Restart:
            dx, steps = _cycle(lambda v: K(M(v)), s.residual, target, m)
            x = s.x + M(dx)
            r = rhs - K(x)
            size = jnp.linalg.norm(r)
            better = size < s.size  # False if it is NaN
            return _Restart(
                x=jnp.where(better, x, s.x),
                residual=jnp.where(better, r, s.residual),
                size=jnp.where(better, size, s.size),
                cycles=s.cycles + 1,
                products=s.products + steps + 1,
                falling=size < 0.999 * s.size,
                finite=jnp.isfinite(size),
            )

        x = jnp.zeros_like(rhs) if start is None else tree.ravel(start)[0]
        r = rhs if start is None else rhs - K(x)
        size, products = jnp.linalg.norm(r), jnp.asarray(int(start is not None))
        begin = _Restart(
            x, r, size, jnp.asarray(0), products, jnp.asarray(True), jnp.isfinite(size)
        )
        end = jax.lax.while_loop(unfinished, restarted, begin)
        info = _report(
            b, end.x, end.residual, rtol, end.products, finite=end.finite, lowest=self.lowest
        )
        return unravel(end.x), info


def smallest_stretch(
    operator: LinearMap, start: Point, steps: int
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """An estimate of min ‖Kv‖ / ‖v‖ from a random right-hand side r, and the products it took.

    √d ‖x‖ / ‖r‖ with x = argmin ‖r - Kx‖ over a Krylov space of that dimension comes near ‖K⁻¹‖
    where few directions are slow: r has a part of ‖r‖/√d along each."""
    r, unravel = tree.ravel(start)
    K = lambda v: tree.ravel(operator(unravel(v)))[0]
    m = min(steps, r.size)
    x, used = _cycle(K, r, jnp.zeros((), r.dtype), m)
    length = jnp.linalg.norm(x)
    size = jnp.linalg.norm(r) / jnp.sqrt(jnp.asarray(r.size, r.dtype))
    return jnp.where(length > 0, size / jnp.where(length > 0, length, 1), jnp.inf), used


class _Restart(eqx.Module):
    x: Float[Array, " d"]
    residual: Float[Array, " d"]
    size: Float[Array, ""]
    cycles: Int[Array, ""]
    products: Int[Array, ""]
    falling: Bool[Array, ""]
    finite: Bool[Array, ""]


def _cycle(
    K: LinearMap, r: Float[Array, " d"], target: Float[Array, ""], m: int
) -> tuple[Float[Array, " d"], Int[Array, ""]]:
    """argmin ‖r - Kx‖ over the Krylov space of r, of dimension m at most; and its dimension.

    Q H = R by a rotation for each column, Q kept as a matrix: the residual is then
    ‖r‖ |Q_{k+1,1}|."""
    kind, eps = r.dtype, jnp.finfo(r.dtype).eps
    size = jnp.linalg.norm(r)
    rows = -(-(m + 1) // BLOCK) * BLOCK
    basis = jnp.zeros((rows, r.size), kind).at[0].set(r / jnp.where(size > 0, size, 1))

    def unfinished(state: tuple) -> Bool[Array, ""]:
        _, Q, _, k, grows = state
        return (k < m) & grows & (size * jnp.abs(Q[k, 0]) > target)

    def extend(state: tuple) -> tuple:
        V, Q, R, k, _ = state
        w = K(V[k])
        whole = jnp.linalg.norm(w)
        w, h = _orthogonalised(V, w, k)
        h, length = h[: m + 1], jnp.linalg.norm(w)
        grows = length > 10 * eps * whole  # or the space is invariant: the solution is in it
        V = V.at[k + 1].set(jnp.where(grows, w / jnp.where(grows, length, 1), 0))
        column = Q @ h.at[k + 1].set(jnp.where(grows, length, 0))
        top, below = column[k], column[k + 1]
        radius = jnp.hypot(top, below)
        safe = jnp.where(radius > 0, radius, 1)
        cos, sin = jnp.where(radius > 0, top / safe, 1), below / safe
        pair = jnp.stack([cos * Q[k] + sin * Q[k + 1], cos * Q[k + 1] - sin * Q[k]])
        Q = jax.lax.dynamic_update_slice(Q, pair, (k, jnp.zeros_like(k)))
        R = R.at[:, k].set(column.at[k].set(radius)[:m])
        return V, Q, R, k + 1, grows & jnp.isfinite(length)

    begin = basis, jnp.eye(m + 1, dtype=kind), jnp.zeros((m, m), kind), jnp.asarray(0), size > 0
    V, Q, R, k, _ = jax.lax.while_loop(unfinished, extend, begin)
    used = jnp.arange(m) < k
    # A column that was not used, or whose image is zero, takes no part.
    idle = ~used | (jnp.abs(jnp.diagonal(R)) <= 10 * eps * jnp.max(jnp.abs(R)))
    triangle = jnp.where(idle[None, :], jnp.eye(m, dtype=kind), R)
    y = jax.scipy.linalg.solve_triangular(triangle, jnp.where(idle, 0, size * Q[:m, 0]))
    return y @ V[:m], k


def _orthogonalised(
    V: Float[Array, "rows d"], w: Float[Array, " d"], k: Int[Array, ""]
) -> tuple[Float[Array, " d"], Float[Array, " rows"]]:
    """w - Vᵀh with the rows of V up to the k-th, block after block, and a second time if much of w
    went the first (Daniel, Gragg, Kaufman, Stewart, 1976); and h."""
    begin = lambda i: (i * BLOCK, jnp.zeros_like(i))

    def block(i: Any, carry: tuple) -> tuple:
        w, h = carry
        rows = jax.lax.dynamic_slice(V, begin(i), (BLOCK, w.size))
        part = rows @ w
        known = jax.lax.dynamic_slice(h, begin(i)[:1], (BLOCK,))
        return w - part @ rows, jax.lax.dynamic_update_slice(h, known + part, begin(i)[:1])

    def once(state: tuple) -> tuple:
        w, h, after, _, passes = state
        w, h = jax.lax.fori_loop(jnp.zeros_like(k), k // BLOCK + 1, block, (w, h))
        return w, h, jnp.linalg.norm(w), after, passes + 1

    def unfinished(state: tuple) -> Bool[Array, ""]:
        *_, after, before, passes = state
        return (passes == 0) | ((passes < 2) & (after < 0.7 * before))

    whole = jnp.linalg.norm(w)
    start = w, jnp.zeros(V.shape[0], w.dtype), whole, whole, jnp.asarray(0)
    w, h, *_ = jax.lax.while_loop(unfinished, once, start)
    return w, h


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
    products = (first + second) * products_per_step + 4
    flat = lambda v: tree.ravel(v)[0]
    return x, _report(b, flat(x), flat(tree.sub(b, operator(x))), rtol, products)


def _report(
    like: Point,
    x: Float[Array, " d"],
    r: Float[Array, " d"],
    rtol: Any,
    products: Any,
    *,
    finite: Any = True,
    lowest: Any = None,
) -> LinearInfo:
    """‖Kx‖ / ‖x‖ and ‖x‖ / ‖b‖ are all that such a solve has seen of ‖K‖ and ‖K⁻¹‖, from below:
    hence the DOUBT. `lowest` may say more."""
    b, unravel = tree.ravel(like)
    kind, length, relative = b.dtype, jnp.linalg.norm(x), jnp.linalg.norm(r)
    largest = jnp.linalg.norm(b - r) / jnp.maximum(length, jnp.finfo(kind).tiny)
    inverse = length if lowest is None else jnp.maximum(length, 1 / jnp.asarray(lowest, kind))
    condition = jnp.maximum(largest * inverse, jnp.ones((), kind))
    success = judge(relative, length, kind, rtol=rtol, largest=largest, condition=condition)
    no = jnp.asarray(False)
    finite = finite & jnp.isfinite(relative) & jnp.isfinite(length)
    doubt = samples(x, r, tree.random_like(b, seed=5))
    return LinearInfo(
        status=failure(success, finite=finite, indefinite=no, inconsistent=no),
        residual=relative,
        amplification=DOUBT * amplification(length, largest, condition),
        condition=condition,
        products=products,
        factorisations=jnp.asarray(0),
        doubt=jax.vmap(unravel)(doubt),
        null=tree.zeros_like(like),
        lowest=1 / jnp.maximum(inverse, jnp.finfo(kind).tiny),
        slack=inconsistency(kind),
    )
