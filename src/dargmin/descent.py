"""Newton's method downhill: a factor of the Hessian, a step with it, and where that led."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.linear import Correction, Factored, factored
from dargmin.linear.matrix import Beside
from dargmin.linear.newton import GAIN, NEAR
from dargmin.loop import repeat
from dargmin.methods import Landing, armijo
from dargmin.problems import Objective
from dargmin.status import Status
from dargmin.types import Parameters, Point


def factor_beside(
    problem: Objective, here: Landing, theta: Parameters, blocks: int | None = None
) -> Factored:
    """The factor of the Hessian at a point that is no solution yet: motions that change nothing
    may have some curvature there."""
    operator = problem.linear_system(here.x, theta).operator
    if blocks is not None:
        return factored(operator, here.x, blocks)
    return factored(operator, here.x, undetermined=Beside.at(here.gradient, here.x))


def newton_step(
    problem: Objective, theta: Parameters, here: Landing, solver: Factored, begin: Point
) -> tuple[Correction, Landing]:
    """x - a K⁻¹∇f with the factor at x; where that is indefinite, with |K|."""
    direction = solver.descent(here.gradient)
    there = armijo(problem, theta, here, direction)
    step = tree.scale(there.size, direction)
    at = corrected(there.x, there.gradient, here.gradient, step, solver, begin)
    # Outside the domain of f its gradient may be finite: log x for a negative x.
    outside = ~jnp.isfinite(there.value)
    status = Status.where(outside, Status.nonfinite, at.status)
    return eqx.tree_at(
        lambda c: (c.evaluations, c.status, c.settled), at,
        (there.trials, status, at.settled & ~outside),
    ), there  # fmt: skip


def corrected(
    x: Point,
    F: Point,
    before: Point,
    step: Point,
    solver: Factored,
    begin: Point,
    *,
    constant: bool = False,
) -> Correction:
    """A Newton step to x, where F is, from where F was `before`; the first began at `begin`.

    It is settled if what is left of the way is little, in the units of the factor, or no more than
    rounding. `constant` says that K is the same everywhere."""
    residual, initial = tree.norm(F), tree.norm(before)
    offset, zero = solver.inverse(F), jnp.asarray(0)
    reached, left, went = map(solver.measure, (x, offset, step))
    close = (left <= NEAR * reached) & (residual <= GAIN * initial)
    least = rounded_step(solver, reached, begin, constant=constant)
    stays = (went <= least) & (residual > 0.5 * initial)
    tiny = 30 * jnp.finfo(residual.dtype).eps * jnp.maximum(reached, solver.measure(begin))
    # No step at all, as a line search may take at a kink, settles nothing.
    still = (stays | (went <= tiny)) & (left <= jnp.maximum(NEAR * reached, tiny))
    settled = close | still | (initial == 0)
    if constant:
        settled = settled | (left <= least)
    finite = jnp.isfinite(initial)
    return Correction(
        x=x,
        residual=residual,
        distance=tree.norm(step),
        offset=offset,
        settled=settled & finite & jnp.isfinite(residual),
        condition=solver.condition,
        status=Status.where(finite, Status.ok, Status.nonfinite),
        evaluations=zero,
        products=zero,
        factorisations=zero,
        remaining=tree.norm(offset),
    )


def rounded_step(
    solver: Factored, reached: Float[Array, ""], begin: Point, *, constant: bool = False
) -> Float[Array, ""]:
    """What rounding leaves of a Newton step, in the units of the factor: 30 εκ of x̂, and 30 ε of
    where it began, which in a quadratic counts as much."""
    eps = jnp.asarray(jnp.finfo(reached.dtype).eps, reached.dtype)
    share = jnp.minimum(30 * eps * solver.condition, 0.1 * NEAR)
    return jnp.maximum(share * reached, (share if constant else 30 * eps) * solver.measure(begin))


class _Descent(eqx.Module):
    here: Landing
    at: Correction
    close: Int[Array, ""]  # how many of the last steps ended close to a solution
    moving: Bool[Array, ""]
    rounds: Int[Array, ""]


def descend(
    problem: Objective, x: Point, theta: Parameters, *, near: float, max_rounds: int
) -> Correction:
    """Newton steps from x until what is left of the way is `near` times ‖x̂‖, or rounding, after two
    of them: one that ends on the floor of a valley does not know how far that goes. Not
    differentiable."""
    problem, x, theta = tree.stop_gradient((problem, x, theta))
    here = Landing.at(problem, x, theta)

    def body(state: _Descent) -> _Descent:
        now = state.here
        solver = factor_beside(problem, now, theta)
        at, there = newton_step(problem, theta, now, solver, x)
        reached = solver.measure(at.x)
        left = solver.measure(at.offset)
        close = at.settled & (left <= near * reached + rounded_step(solver, reached, x))
        count = jnp.where(close, state.close + 1, 0)
        return _Descent(there, at, count, at.distance > 0, state.rounds + 1)

    def unfinished(state: _Descent) -> Bool[Array, ""]:
        return (state.rounds < max_rounds) & (state.close < 2) & state.moving

    residual, zero = tree.norm(here.gradient), jnp.asarray(0)
    finite = jnp.isfinite(residual)
    start = _Descent(here, Correction.none(x, residual, settled=False), zero, finite, zero)
    end = repeat(unfinished, body, start)
    at = end.at
    settled = at.settled & ((end.close >= 2) | ~end.moving)
    status = Status.where(finite, at.status, Status.nonfinite)
    where = lambda c: (c.distance, c.status, c.settled)
    return eqx.tree_at(where, at, (tree.norm(tree.sub(at.x, x)), status, settled))
