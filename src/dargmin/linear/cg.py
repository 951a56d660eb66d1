"""Conjugate gradients for symmetric positive semidefinite systems (Hestenes and Stiefel, 1952)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.linear.solution import (
    AbstractLinearSolver,
    LinearInfo,
    failure,
    judge,
    solution_error,
)
from dargmin.types import LinearMap, Point


class _Carry(NamedTuple):
    x: Point
    residual: Point  # r
    direction: Point  # p
    rho: Float[Array, ""]  # ⟨r, M⁻¹r⟩
    steps: Int[Array, ""]
    smallest: Float[Array, ""]  # extreme Rayleigh quotients of K seen so far
    largest: Float[Array, ""]
    broken: Bool[Array, ""]  # curvature ⟨p, Kp⟩ not positive: x is the last good iterate


class CG(AbstractLinearSolver):
    """x_{k+1} = x_k + α p_k, with α = ⟨r, z⟩ / ⟨p, Kp⟩ and z = M⁻¹r, then one refinement.

    From a zero start it finds the minimum-norm solution of a singular consistent system. It stops
    before 0/0, on the true residual, and names indefinite and inconsistent systems.

    Parameters
    ----------
    max_steps : int, optional
        Steps in a run. 10 d if None."""

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
        if not symmetric:
            raise ValueError(
                "CG needs a symmetric operator, but the Jacobian of a FixedPoint or Root is not "
                "declared symmetric. Use GMRES(), BiCGStab() or Dense(), or pose the problem as "
                "an Objective."
            )
        x0 = tree.zeros_like(b) if start is None else start
        r0 = b if start is None else tree.sub(b, operator(start))
        limit = 10 * tree.size(b) if self.max_steps is None else self.max_steps
        first = run(operator, x0, r0, preconditioner, rtol=rtol, max_steps=limit)
        r = tree.sub(b, operator(first.x))
        # The recursion for r drifts from the truth: one refinement mends it, and costs nothing
        # but this product where there is nothing to mend.
        again = run(
            operator,
            tree.zeros_like(b),
            r,
            preconditioner,
            rtol=rtol,
            max_steps=limit,
            blocked=first.broken,
        )
        refined = tree.add(first.x, again.x)
        remaining = tree.sub(b, operator(refined))
        better = tree.norm(remaining) < tree.norm(r)
        x, r = tree.where(better, (refined, remaining), (first.x, r))
        return x, self._report(operator, x, r, b, first, again, rtol, start is not None)

    def _report(
        self,
        operator: LinearMap,
        x: Point,
        r: Point,
        b: Point,
        first: _Carry,
        again: _Carry,
        rtol: Any,
        warm: bool,
    ) -> LinearInfo:
        kind = tree.dtype(b)
        eps = jnp.asarray(jnp.finfo(kind).eps, kind)
        largest = jnp.maximum(first.largest, again.largest)
        smallest = jnp.minimum(first.smallest, again.smallest)
        # The directions never point along the last eigenvector alone: their smallest Rayleigh
        # quotient is typically 3 to 6 times the smallest eigenvalue that b sees.
        condition = jnp.where(
            smallest > 0, 4 * largest / jnp.where(smallest > 0, smallest, 1), jnp.ones((), kind)
        )
        relative, success = judge(x, r, rtol=rtol, largest=largest, condition=condition)
        indefinite = smallest < -jnp.sqrt(eps) * largest
        inconsistent = jax.lax.cond(
            success | indefinite | ~jnp.isfinite(relative),
            lambda: jnp.asarray(False),
            lambda: _leaves_the_range(operator, b, largest, self.max_steps or 10 * tree.size(b)),
        )
        return LinearInfo(
            status=failure(
                success,
                finite=tree.all_finite((x, relative)),
                indefinite=indefinite,
                inconsistent=inconsistent,
            ),
            residual=relative,
            error=solution_error(x, relative, largest, condition),
            condition=condition,
            products=first.steps + again.steps + 3 + int(warm),
            factorisations=jnp.asarray(0),
        )


def _leaves_the_range(
    operator: LinearMap, b: Point, largest: Float[Array, ""], max_steps: int
) -> Bool[Array, ""]:
    """Whether b has a part in the null space of K, by solving K y = K b, which is consistent."""
    kind = tree.dtype(b)
    tolerance = 10 * jnp.sqrt(jnp.asarray(jnp.finfo(kind).eps, kind))
    image = operator(b)
    unit = tree.norm(image)
    unit = jnp.where(unit > 0, unit, 1)
    inside = run(
        operator,
        tree.zeros_like(b),
        tree.scale(1 / unit, image),
        rtol=tolerance * tolerance,
        max_steps=max_steps,
    )
    outside = tree.axpy(-unit, inside.x, b)
    size = tree.norm(outside)
    null = tree.norm(operator(outside)) <= tolerance * largest * size
    return null & (size > tolerance)


def run(
    operator: LinearMap,
    x: Point,
    residual: Point,
    preconditioner: LinearMap | None = None,
    *,
    rtol: float | Float[Array, ""],
    max_steps: int | Int[Array, ""],
    blocked: Bool[Array, ""] | None = None,
) -> _Carry:
    """Conjugate gradient steps until ‖r‖ ≤ rtol, the curvature vanishes, or `max_steps`."""
    kind = tree.dtype(residual)
    eps = jnp.asarray(jnp.finfo(kind).eps, kind)
    target = jnp.maximum(jnp.asarray(rtol, kind), eps * eps)
    apply = (lambda r: r) if preconditioner is None else preconditioner
    z = apply(residual)
    start = _Carry(
        x=x,
        residual=residual,
        direction=z,
        rho=tree.dot(residual, z),
        steps=jnp.asarray(0),
        smallest=jnp.asarray(jnp.inf, kind),
        largest=jnp.zeros((), kind),
        broken=jnp.asarray(False) if blocked is None else blocked,
    )

    def unfinished(c: _Carry) -> Bool[Array, ""]:
        return (c.steps < max_steps) & ~c.broken & (tree.norm(c.residual) > target)

    def step(c: _Carry) -> _Carry:
        product = operator(c.direction)
        curvature, squared = tree.dot(c.direction, product), tree.dot(c.direction, c.direction)
        quotient = curvature / jnp.where(squared > 0, squared, 1)
        largest = jnp.maximum(c.largest, quotient)
        # Below ε‖K‖ the curvature is rounding, and α = ρ / curvature would be noise.
        broken = ~((quotient > eps * largest) & (c.rho > 0))
        alpha = jnp.where(broken, 0, c.rho / jnp.where(broken, 1, curvature))
        x, r = tree.axpy(alpha, c.direction, c.x), tree.axpy(-alpha, product, c.residual)
        z = apply(r)
        rho = tree.dot(r, z)
        beta = rho / jnp.where(c.rho > 0, c.rho, 1)
        direction = tree.axpy(beta, c.direction, z)
        smallest = jnp.minimum(c.smallest, quotient)
        return _Carry(x, r, direction, rho, c.steps + 1, smallest, largest, broken)

    return jax.lax.while_loop(unfinished, step, start)
