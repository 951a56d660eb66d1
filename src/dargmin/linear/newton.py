"""The Newton correction x̂ = x - (∂ₓF)⁻¹F: it measures the distance to the solution, and goes it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.linear.solution import rounding
from dargmin.linear.system import LinearOptions, solve_linear
from dargmin.problems import AbstractProblem
from dargmin.status import Status, is_ok
from dargmin.types import Parameters, Point


class Correction(eqx.Module):
    """The corrected point, and how the correction went.

    `distance` is ‖x̂ - x‖, the estimated distance of the point that was given; `remaining` the
    estimated distance of x̂ itself; `settled` says that x̂ is much closer than x was, or as close
    as rounding allows; `residual` is ‖F(x̂)‖."""

    x: Point
    residual: Float[Array, ""]
    distance: Float[Array, ""]
    remaining: Float[Array, ""]
    settled: Bool[Array, ""]
    condition: Float[Array, ""]
    status: Any
    evaluations: Int[Array, ""]
    products: Int[Array, ""]
    factorisations: Int[Array, ""]

    @classmethod
    def none(cls, x: Point, residual: Float[Array, ""], *, settled: bool) -> "Correction":
        """x as it is, nothing known of how far from the solution."""
        zero, one = jnp.asarray(0), jnp.ones_like(residual)
        status = Status.ok if settled else Status.not_converged
        return cls(
            x, residual, 0 * one, jnp.inf * one, jnp.asarray(settled), one, status, zero, zero, zero
        )


class _Round(eqx.Module):
    x: Point
    F: Point
    residual: Float[Array, ""]
    last_step: Float[Array, ""]
    last_ratio: Float[Array, ""]
    condition: Float[Array, ""]
    status: Any
    rounds: Int[Array, ""]
    evaluations: Int[Array, ""]
    products: Int[Array, ""]
    factorisations: Int[Array, ""]
    stuck: Bool[Array, ""]


GAIN = 0.1
"""A correction that takes less than this factor off the residual has not settled anything."""


def newton_correction(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    *,
    options: LinearOptions,
    max_rounds: int = 4,
    gain: float | Float[Array, ""] = 1e-3,
) -> Correction:
    """Newton steps from x, each halved until ‖F‖ falls, until ‖F‖ is `gain` of what it was.

    On a `Composite` this is the semismooth Newton method. Not differentiable."""
    problem, x, theta = tree.stop_gradient((problem, x, theta))
    F = problem.residual(x, theta)
    initial = tree.norm(F)
    kind, zero = initial.dtype, jnp.asarray(0)
    one = jnp.ones((), kind)
    start = _Round(
        x, F, initial, 0 * one, one, one, Status.ok, zero, zero + 1, zero, zero, jnp.asarray(False)
    )

    def at_rounding(r: _Round) -> Bool[Array, ""]:
        floor = 30 * rounding(kind, jnp.maximum(r.condition, 1)) * tree.norm(r.x)
        return (r.rounds > 0) & (r.last_step <= floor)

    def unfinished(r: _Round) -> Bool[Array, ""]:
        far = (r.residual > gain * initial) & ~at_rounding(r)
        return (r.rounds < max_rounds) & ~r.stuck & (far | (r.rounds == 0)) & (initial > 0)

    def body(r: _Round) -> _Round:
        solution = solve_linear(problem, r.x, theta, r.F, options=options)
        usable = is_ok(solution.info.status)
        x, F, residual, trials = _damped(problem, theta, r, solution.value)
        fell = usable & (residual < r.residual)
        step = tree.norm(solution.value)
        return _Round(
            x=tree.where(fell, x, r.x),
            F=tree.where(fell, F, r.F),
            residual=jnp.where(fell, residual, r.residual),
            last_step=jnp.where(usable, step, jnp.inf),
            last_ratio=jnp.where(fell, residual / r.residual, one),
            condition=jnp.maximum(r.condition, solution.info.condition),
            status=solution.info.status,
            rounds=r.rounds + 1,
            evaluations=r.evaluations + trials,
            products=r.products + solution.info.products,
            factorisations=r.factorisations + solution.info.factorisations,
            stuck=~fell,
        )

    end = jax.lax.while_loop(unfinished, body, start)
    settled = (end.residual <= GAIN * initial) | at_rounding(end) | (initial == 0)
    return Correction(
        x=end.x,
        residual=end.residual,
        distance=tree.norm(tree.sub(end.x, x)),
        remaining=end.last_step * end.last_ratio,
        settled=settled & jnp.isfinite(initial),
        condition=end.condition,
        status=Status.where(jnp.isfinite(initial), end.status, Status.nonfinite),
        evaluations=end.evaluations,
        products=end.products,
        factorisations=end.factorisations,
    )


def _damped(
    problem: AbstractProblem, theta: Parameters, r: _Round, step: Point, halvings: int = 8
) -> tuple[Point, Point, Float[Array, ""], Int[Array, ""]]:
    """x - a δ with the first a of 1, ½, ¼, ... at which ‖F‖ is below what it was."""

    def too_long(carry: Any) -> Bool[Array, ""]:
        _, _, residual, count = carry
        return ~(residual < r.residual) & (count <= halvings)

    def trial(carry: Any) -> Any:
        *_, count = carry
        size = jnp.exp2(-count.astype(r.residual.dtype))
        x = tree.axpy(-size, step, r.x)
        F = problem.residual(x, theta)
        return x, F, tree.norm(F), count + 1

    return jax.lax.while_loop(too_long, trial, (r.x, r.F, r.residual, jnp.asarray(0)))
