"""The Newton correction x̂ = x - (∂ₓF)⁻¹F: it measures the distance to the solution, and goes it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.linear.solution import rounding
from dargmin.linear.system import LinearOptions, LinearSolution, solve_linear
from dargmin.problems import AbstractProblem, Composite
from dargmin.status import Status, is_ok
from dargmin.types import Parameters, Point


class Correction(eqx.Module):
    """The corrected point, and how the correction went.

    `distance` is ‖x̂ - x‖, the estimated distance of the point that was given; `offset` an estimate
    of x̂ - x*, and `remaining` its norm; `settled` says that this is little beside x̂, or as little
    as rounding allows; `residual` is ‖F(x̂)‖."""

    x: Point
    residual: Float[Array, ""]
    distance: Float[Array, ""]
    offset: Point
    settled: Bool[Array, ""]
    condition: Float[Array, ""]
    status: Any
    evaluations: Int[Array, ""]
    products: Int[Array, ""]
    factorisations: Int[Array, ""]
    remaining: Float[Array, ""]

    @classmethod
    def none(cls, x: Point, residual: Float[Array, ""], *, settled: bool) -> "Correction":
        """x as it is, nothing known of how far from the solution."""
        zero, one = jnp.asarray(0), jnp.ones_like(residual)
        return cls(
            x=x,
            residual=residual,
            distance=0 * one,
            offset=tree.zeros_like(x),
            settled=jnp.asarray(settled),
            condition=one,
            status=Status.ok if settled else Status.not_converged,
            evaluations=zero,
            products=zero,
            factorisations=zero,
            remaining=jnp.inf * one,
        )


class _Round(eqx.Module):
    x: Point
    F: Point
    residual: Float[Array, ""]
    step: Point  # δ of the last step, undamped
    length: Float[Array, ""]  # ‖δ‖
    ratio: Float[Array, ""]  # by which ‖F‖ fell
    condition: Float[Array, ""]
    status: Any
    rounds: Int[Array, ""]
    evaluations: Int[Array, ""]
    products: Int[Array, ""]
    factorisations: Int[Array, ""]
    stuck: Bool[Array, ""]


GAIN = 0.1
"""A correction that takes less than this factor off the residual has not settled anything."""

NEAR = 1e-2
"""How much of ‖x̂‖ may be left to go where all that follows is local. What ‖F‖ was at the point
that was given says nothing: far away it is large whatever x̂ is."""


def newton_correction(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    *,
    options: LinearOptions,
    max_rounds: int = 4,
    near: float = NEAR,
) -> Correction:
    """Newton steps from x, each shortened until ‖F‖ falls, until what is left of the way is `near`
    times ‖x̂‖, and a step takes nine tenths off ‖F‖: of an exponential, they all are short, and take
    off a half.

    On a `Composite` this is the semismooth Newton method. Not differentiable."""
    problem, x, theta = tree.stop_gradient((problem, x, theta))
    F = problem.residual(x, theta)
    initial, begin = tree.norm(F), tree.norm(x)
    if isinstance(problem, Composite):  # a prox that gives zero rounds with what it is given
        begin = jnp.maximum(begin, tree.norm(problem.forward(x, theta)))
    kind, zero = initial.dtype, jnp.asarray(0)
    one = jnp.ones((), kind)

    def at_rounding(r: _Round) -> Bool[Array, ""]:
        eps, reached = rounding(kind, one), tree.norm(r.x)
        share = jnp.minimum(30 * eps * jnp.maximum(r.condition, 1), 0.1 * near)
        stays = (r.length <= share * reached) & (r.ratio > 0.5)
        return (r.rounds > 0) & (stays | (r.length <= 30 * eps * jnp.maximum(reached, begin)))

    def close(r: _Round) -> Bool[Array, ""]:
        left = r.length * r.ratio <= near * tree.norm(r.x)
        return left & (r.ratio <= GAIN)

    def settles(r: _Round) -> Bool[Array, ""]:
        return (close(r) | at_rounding(r)) & is_ok(r.status)

    def unfinished(r: _Round) -> Bool[Array, ""]:
        far = ~settles(r)
        return (r.rounds < max_rounds) & ~r.stuck & (far | (r.rounds == 0)) & (initial > 0)

    def body(r: _Round) -> _Round:
        solution = solve_linear(problem, r.x, theta, r.F, options=options)
        status = forgiven(solution, r.x)
        # Beside a solution, F leaves the range of a singular K by the square of the distance.
        usable = is_ok(status) | (status == Status.inconsistent)
        x, F, residual, trials = _damped(problem, theta, r, solution.value)
        fell = usable & (residual < r.residual)
        return _Round(
            x=tree.where(fell, x, r.x),
            F=tree.where(fell, F, r.F),
            residual=jnp.where(fell, residual, r.residual),
            step=solution.value,
            length=jnp.where(usable, tree.norm(solution.value), jnp.inf),
            ratio=jnp.where(fell, residual / r.residual, one),
            condition=jnp.maximum(r.condition, solution.info.condition),
            status=status,
            rounds=r.rounds + 1,
            evaluations=r.evaluations + trials,
            products=r.products + solution.info.products,
            factorisations=r.factorisations + solution.info.factorisations,
            stuck=~fell,
        )

    none = tree.zeros_like(x)
    start = _Round(
        x, F, initial, none, 0 * one, one, one, Status.ok, zero, zero + 1, zero, zero,
        jnp.asarray(False),
    )  # fmt: skip
    end = jax.lax.while_loop(unfinished, body, start)
    settled = settles(end) | (initial == 0)
    return Correction(
        x=end.x,
        residual=end.residual,
        distance=tree.norm(tree.sub(end.x, x)),
        offset=tree.scale(end.ratio, end.step),
        settled=settled & jnp.isfinite(initial),
        condition=end.condition,
        status=Status.where(jnp.isfinite(initial), end.status, Status.nonfinite),
        evaluations=end.evaluations,
        products=end.products,
        factorisations=end.factorisations,
        remaining=end.length * end.ratio,
    )


def forgiven(solution: LinearSolution, x: Point) -> Any:
    """The status of a solve for F(x), ok where only rounding of F leaves the range of a singular
    K: where ‖K⁺‖‖F‖ ≤ 1000 εκ‖x‖; and where it is rough: what a step is worth, F shows."""
    info = solution.info
    reach = info.amplification * tree.norm(solution.value)
    noise = reach <= 1e3 * rounding(tree.dtype(x), info.condition) * tree.norm(x)
    rough = (info.status == Status.linear_solve_failed) & (info.residual <= 0.1)
    harmless = (noise & (info.status == Status.inconsistent)) | rough
    return Status.where(harmless, Status.ok, info.status)


def _damped(
    problem: AbstractProblem, theta: Parameters, r: _Round, step: Point, trials: int = 11
) -> tuple[Point, Point, Float[Array, ""], Int[Array, ""]]:
    """x - a δ with the first a of 1, 2⁻¹, 2⁻³, 2⁻⁶, 2⁻¹⁰, ... at which ‖F‖ is below what it was."""

    def too_long(carry: Any) -> Bool[Array, ""]:
        _, _, residual, count = carry
        return ~(residual < r.residual) & (count < trials)

    def trial(carry: Any) -> Any:
        *_, count = carry
        size = jnp.exp2(-(count * (count + 1) // 2).astype(r.residual.dtype))
        x = tree.axpy(-size, step, r.x)
        F = problem.residual(x, theta)
        return x, F, tree.norm(F), count + 1

    return jax.lax.while_loop(too_long, trial, (r.x, r.F, r.residual, jnp.asarray(0)))
