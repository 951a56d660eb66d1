"""Conjugate gradients for symmetric positive semidefinite systems (Hestenes and Stiefel, 1952)."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.linear.recycling import Pairs
from dargmin.linear.solution import (
    AbstractLinearSolver,
    LinearInfo,
    failure,
    inconsistency,
    judge,
    samples,
)
from dargmin.types import LinearMap, Point

NEGLIGIBLE = 100
"""Curvature below this many ε of the largest is rounding. Above 30, the backward error in ε that
`judge` forgives: x then stops before it has run so far along a null vector that any residual
looks small beside it."""


NULL = 4
"""Curvature below this many ε is that of a null vector."""

SPREAD = 4
"""The directions never point along the last eigenvector alone: their smallest Rayleigh quotient is
typically 3 to 6 times the smallest eigenvalue that b sees."""

DOUBT = 2.5
"""A run that stops early has seen less: of the errors of x that it reports, a few in a hundred
are 3 to 6 times too small without this factor (see `benchmarks/calibration.py`)."""


class CG(AbstractLinearSolver):
    """x_{k+1} = x_k + α p_k, with α = ⟨r, z⟩ / ⟨p, Kp⟩ and z = M⁻¹r, then one refinement.

    From a zero start it finds the minimum-norm solution of a singular consistent system. It stops
    before 0/0, on the true residual, and names indefinite and inconsistent systems.

    Parameters
    ----------
    max_steps : int, optional
        Steps in a run. 10 d if None.
    pairs : Pairs, optional
        Of earlier, similar solves: they precondition this one (on top of the preconditioner, if
        there is one), and those of this one come back with its report.
    error : float, optional
        Stop also where the estimated relative error of x is this: the (preconditioned) residual,
        times what it is worth by the smallest curvature that was met.
    lowest : float, optional
        An eigenvalue of M⁻¹K that is known from elsewhere to be as small as this: b may hide it."""

    max_steps: int | None = None
    pairs: Pairs | None = None
    error: Float[Array, ""] | float | None = None
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
        if not symmetric:
            raise ValueError(
                "CG needs a symmetric operator, but the Jacobian of a FixedPoint or Root is not "
                "declared symmetric. Use GMRES(), BiCGStab() or Dense(), or pose the problem as "
                "an Objective."
            )
        kind = tree.dtype(b)
        limit = 10 * tree.size(b) if self.max_steps is None else self.max_steps
        x = tree.zeros_like(b) if start is None else start
        r = b if start is None else tree.sub(b, operator(start))
        if start is not None:  # worse than none
            near = tree.norm(r) < tree.norm(b)
            x, r = tree.where(near, x, tree.zeros_like(b)), tree.where(near, r, b)
        if self.pairs is not None:
            preconditioner = self.pairs.preconditioner(b, preconditioner)
        zero = jnp.zeros((), kind)
        lowest = zero + (jnp.inf if self.lowest is None else jnp.asarray(self.lowest, kind))
        reach = lambda r: tree.norm(r if preconditioner is None else preconditioner(r))
        begin = _Refinement(
            x, r, tree.norm(r), reach(r), jnp.asarray(0), jnp.asarray(0), zero + jnp.inf, zero,
            lowest, jnp.asarray(False), tree.zeros_like(b), tree.zeros_like(b), jnp.asarray(False),
            self.pairs,
        )  # fmt: skip

        def unfinished(c: _Refinement) -> Bool[Array, ""]:
            near = accurate(self.error, c.size**2, c.reach**2, tree.dot(c.x, c.x), c.low)
            return (c.passes < 2) & (c.size > jnp.asarray(rtol, kind)) & ~c.broken & ~near

        def refine(c: _Refinement) -> _Refinement:
            """A run from the true residual, from which the recursion for r drifts away."""
            found = run(
                operator, c.residual, preconditioner, rtol=rtol, max_steps=limit, pairs=c.pairs,
                error=self.error, origin=c.x, lowest=lowest,
            )  # fmt: skip
            x = tree.add(c.x, found.x)
            r = tree.sub(b, operator(x))
            size = tree.norm(r)
            better = (c.passes == 0) | (size < c.size)
            return _Refinement(
                x=tree.where(better, x, c.x),
                residual=tree.where(better, r, c.residual),
                size=jnp.where(better, size, c.size),
                reach=jnp.where(better, reach(r), c.reach),
                passes=c.passes + 1,
                products=c.products + found.steps + 1,
                smallest=jnp.minimum(c.smallest, found.smallest),
                largest=jnp.maximum(c.largest, found.largest),
                low=jnp.minimum(c.low, found.low),
                broken=found.broken,
                direction=found.direction,
                slow=tree.where(found.steps > 0, found.slow, c.slow),
                null=found.null,
                pairs=None if found.pairs is None else found.pairs.in_order(found.steps),
            )

        end = jax.lax.while_loop(unfinished, refine, begin)
        products = end.products + int(start is not None)
        return end.x, _report(b, end, products, rtol, self.error, preconditioner)


class _Refinement(eqx.Module):
    """Where the solve stands between runs; `residual` is the true r = b - Kx, `size` its norm, and
    `reach` that of M⁻¹r."""

    x: Point
    residual: Point
    size: Float[Array, ""]
    reach: Float[Array, ""]
    passes: Int[Array, ""]
    products: Int[Array, ""]
    smallest: Float[Array, ""]
    largest: Float[Array, ""]
    low: Float[Array, ""]
    broken: Bool[Array, ""]
    direction: Point
    slow: Point
    null: Bool[Array, ""]
    pairs: Pairs | None


class _Run(eqx.Module):
    """Where a run stands. `smallest` and `largest` are the extreme Rayleigh quotients of K seen,
    `low` and `top` those with M in place of the identity: ⟨p, Kp⟩ / ⟨p, Mp⟩, the smallest of them
    along `slow`. `broken`: the
    curvature ⟨p, Kp⟩ is not positive, and x is the last good iterate; `null`: it is zero, and p a
    null vector of K."""

    x: Point
    residual: Point  # r
    direction: Point  # p
    rho: Float[Array, ""]  # ⟨r, M⁻¹r⟩
    size: Float[Array, ""]  # ‖r‖²
    reach: Float[Array, ""]  # ‖M⁻¹r‖²
    squared: Float[Array, ""]  # ‖p‖²
    weight: Float[Array, ""]  # ⟨p, Mp⟩
    low: Float[Array, ""]
    top: Float[Array, ""]
    steps: Int[Array, ""]
    smallest: Float[Array, ""]
    largest: Float[Array, ""]
    broken: Bool[Array, ""]
    null: Bool[Array, ""]
    slow: Point
    pairs: Pairs | None


def run(
    operator: LinearMap,
    b: Point,
    preconditioner: LinearMap | None = None,
    *,
    rtol: float | Float[Array, ""],
    max_steps: int | Int[Array, ""],
    pairs: Pairs | None = None,
    error: Any = None,
    origin: Point | None = None,
    lowest: Float[Array, ""] | float = jnp.inf,
) -> _Run:
    """Conjugate gradient steps on K x = b from zero, until ‖r‖ ≤ rtol, the curvature vanishes, or
    `max_steps`; or until x + origin has that estimated relative error, by an eigenvalue that is
    known to be as small as `lowest` or by what is met. Where there is room for
    `pairs`, its steps take the place of the oldest."""
    kind = tree.dtype(b)
    eps = jnp.asarray(jnp.finfo(kind).eps, kind)
    target = jnp.maximum(jnp.asarray(rtol, kind), eps * eps) ** 2

    def correlate(r: Point) -> tuple[Point, Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """z = M⁻¹r, ⟨r, z⟩, ‖r‖² and ‖z‖²."""
        size = tree.dot(r, r)
        if preconditioner is None:
            return r, size, size, size
        z = preconditioner(r)
        return z, tree.dot(r, z), size, tree.dot(z, z)

    z, rho, size, squared = correlate(b)
    zero = jnp.zeros((), kind)
    start = _Run(
        tree.zeros_like(b), b, z, rho, size, squared, squared, rho, zero + lowest, zero,
        jnp.asarray(0), zero + jnp.inf, zero, jnp.asarray(False), jnp.asarray(False), z, pairs,
    )  # fmt: skip

    def unfinished(c: _Run) -> Bool[Array, ""]:
        more = (c.steps < max_steps) & ~c.broken & (c.size > target)
        if error is None:
            return more
        whole = c.x if origin is None else tree.add(origin, c.x)
        return more & ~accurate(error, c.size, c.reach, tree.dot(whole, whole), c.low)

    def step(c: _Run) -> _Run:
        product = operator(c.direction)
        curvature = tree.dot(c.direction, product)
        quotient = curvature / jnp.where(c.squared > 0, c.squared, 1)
        # In the norm of M: in that of a badly scaled K, good directions would look like null ones.
        relative = curvature / jnp.where(c.weight > 0, c.weight, 1)
        top = jnp.maximum(c.top, relative)
        broken = ~((relative > NEGLIGIBLE * eps * top) & (c.rho > 0))
        alpha = jnp.where(broken, 0, c.rho / jnp.where(broken, 1, curvature))
        x, r = tree.axpy(alpha, c.direction, c.x), tree.axpy(-alpha, product, c.residual)
        z, rho, size, reach = correlate(r)
        beta = rho / jnp.where(c.rho > 0, c.rho, 1)
        direction = tree.where(broken, c.direction, tree.axpy(beta, c.direction, z))
        if preconditioner is None:
            squared = size + beta**2 * c.squared  # r is orthogonal to the old direction
        else:
            squared = tree.dot(direction, direction)
        known = c.pairs
        if known is not None:
            known = known.put(c.steps, c.direction, product, curvature, ~broken)
        return _Run(
            x=x,
            residual=r,
            direction=direction,
            rho=rho,
            size=size,
            reach=reach,
            squared=squared,
            weight=rho + beta**2 * c.weight,  # as above
            low=jnp.minimum(c.low, relative),
            top=top,
            steps=c.steps + 1,
            smallest=jnp.minimum(c.smallest, quotient),
            largest=jnp.maximum(c.largest, quotient),
            broken=broken,
            null=jnp.abs(relative) <= NULL * eps * top,
            slow=tree.where(relative < c.low, c.direction, c.slow),
            pairs=known,
        )

    return jax.lax.while_loop(unfinished, step, start)


def accurate(
    error: Any,
    size: Float[Array, ""],
    reach: Float[Array, ""],
    length: Float[Array, ""],
    low: Float[Array, ""],
) -> Bool[Array, ""]:
    """Whether ‖r‖ ≤ 10⁻² and SPREAD ‖M⁻¹r‖ / μ̂ ≤ error ‖x‖, from ‖r‖², ‖M⁻¹r‖² and ‖x‖² and the
    smallest ⟨p, Kp⟩ / ⟨p, Mp⟩ met so far, μ̂. Early in a run that is far above μ, hence the 10⁻²."""
    if error is None:
        return jnp.asarray(False)
    limit = jnp.asarray(error, size.dtype) * jnp.where(jnp.isfinite(low), low, 0)
    return (size <= 1e-4) & (SPREAD**2 * reach <= limit**2 * length) & (low > 0)


def _report(
    b: Point,
    end: _Refinement,
    products: Int[Array, ""],
    rtol: float | Float[Array, ""],
    error: Any,
    preconditioner: LinearMap | None,
) -> LinearInfo:
    kind = tree.dtype(b)
    eps = jnp.asarray(jnp.finfo(kind).eps, kind)
    length = tree.norm(end.x)
    # ‖K⁻¹r‖ ≤ ‖M⁻¹r‖ / μ̂, about: exactly so where K = μ̂M along r
    positive = (end.low > 0) & jnp.isfinite(end.low) & (end.smallest > 0)
    stretch = jnp.where(end.size > 0, end.reach / jnp.where(end.size > 0, end.size, 1), 1)
    inverse = SPREAD * stretch / jnp.where(positive, end.low, 1)
    spread = end.largest * jnp.maximum(inverse, SPREAD / jnp.where(positive, end.smallest, 1))
    condition = jnp.maximum(jnp.where(positive, spread, 1), 1)
    success = judge(end.size, length, kind, rtol=rtol, largest=end.largest, condition=condition)
    success = success | accurate(error, end.size**2, end.reach**2, length**2, end.low)
    # A null vector p to which b is not orthogonal, beyond rounding.
    along = jnp.abs(tree.dot(b, end.direction)) > inconsistency(kind) * tree.norm(end.direction)
    anywhere = tree.random_like(b, seed=5)
    anywhere = anywhere if preconditioner is None else preconditioner(anywhere)
    return LinearInfo(
        status=failure(
            success,
            finite=jnp.isfinite(end.size) & jnp.isfinite(length),
            indefinite=end.smallest < -jnp.sqrt(eps) * end.largest,
            inconsistent=end.null & along,
        ),
        residual=end.size,
        amplification=jnp.where(
            positive & (length > 0), DOUBT * inverse / jnp.where(length > 0, length, 1), 1
        ),
        condition=condition,
        products=products,
        factorisations=jnp.asarray(0),
        doubt=samples(end.x, end.slow, anywhere),
        null=tree.scale(jnp.where(end.null, 1, 0), end.direction),
        pairs=end.pairs,
        lowest=end.low,
        slack=inconsistency(kind),
    )
