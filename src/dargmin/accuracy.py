"""Work until a derivative is as accurate as asked for: the loop behind hypergradient and
sensitivity.

Each round solves the inner problem (to a tolerance), corrects the point by Newton's method, takes
the implicit derivative there, and compares it with that of the round before; the first, whose
derivative is only compared with, leaves the correction out. What dominates the error is tightened.
The difference of two rounds is the error of the earlier one; the later one, which is returned, is
better by another Newton correction: how much better is known from how far that went, and how far
there is left to go."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from dargmin import tree
from dargmin.certificate import (
    Certificate,
    accuracy_status,
    relative_error,
)
from dargmin.cost import Cost
from dargmin.kinks import nonsmooth_within
from dargmin.linear import LinearOptions, factored
from dargmin.linear.lanczos import STEP_SIZE_STEPS
from dargmin.linear.second_opinion import hides
from dargmin.linear.solution import default_rtol
from dargmin.loop import Run, repeat
from dargmin.methods import Landing
from dargmin.problems import AbstractProblem, Composite, Objective
from dargmin.quantity import AbstractQuantity, Derivative
from dargmin.rounds import MAX_FAILURES, Goal, Round, State
from dargmin.status import Status, first_failure, is_ok
from dargmin.strategy import Strategy
from dargmin.types import Parameters, Point

MAX_ROUNDS = 40

FAR_AWAY = 1e6
"""So many times farther than 1 + ‖x0‖ no minimum is looked for."""


class Outcome(eqx.Module):
    """Where the loop ended."""

    x: Point
    derivative: Derivative
    certificate: Certificate
    cost: Cost
    steps: Int[Array, ""]


def reach(
    problem: AbstractProblem,
    strategy: Strategy,
    quantity: AbstractQuantity,
    x0: Point,
    theta: Parameters,
    start: Point,
    goal: Goal,
    options: LinearOptions,
    *,
    amplification: ArrayLike = 1.0,
    newton_first: bool = False,
) -> Outcome:
    """Rounds of inner solve, correction, derivative and estimate, until the goal or the budget.

    `start` and `amplification` are what earlier linear solves left behind; `newton_first` says
    that x0 may be so close that no inner steps are needed."""
    kind, method = tree.dtype(x0), strategy.method
    constant = isinstance(problem, Objective) and bool(problem.quadratic)
    newton = strategy.factor and not constant
    here = Landing.at(problem, x0, theta) if newton and isinstance(problem, Objective) else None
    residual = problem.residual(x0, theta) if here is None else here.gradient
    initial = tree.norm(residual)
    cost, known, floor = Cost(gradients=1), None, jnp.zeros((), kind)
    if method is not None and not newton_first:
        floor, looked = _rounding_of_residual(problem, x0, theta, residual)
        cost = cost + Cost(gradients=looked)
    if strategy.factor and constant:
        known = factored(problem.linear_system(x0, theta).operator, x0, options.blocks)
        cost = cost + known.cost
    first_rtol = default_rtol(kind) if strategy.factor else max(1e-6, default_rtol(kind))
    first_rtol = jnp.asarray(first_rtol if options.rtol is None else options.rtol, kind)
    most = 10 * MAX_ROUNDS if strategy.factor else MAX_ROUNDS
    run = None if method is None else Run(problem, method.prepare(problem, x0, theta), theta)
    looks = known is None and not newton and hides(problem, x0, options)
    body = Round(
        problem, run, x0, quantity, theta, goal, options, first_rtol, floor, known,
        newton=newton, constant=constant, looks=looks,
    )  # fmt: skip

    def unfinished(s: State) -> Bool[Array, ""]:
        met = jnp.all(s.error <= goal.wanted(s.scale)) & is_ok(s.status)
        spent = (s.steps >= goal.steps) & ~is_ok(s.status)
        more = (s.rounds < most) & (s.failures < MAX_FAILURES) & ~spent
        return ~met & more & jnp.isfinite(initial)

    solver_options = body.linear(first_rtol, first_rtol, known, jnp.asarray(jnp.inf, kind))
    blank = _blank(quantity, problem, x0, theta, start, solver_options)
    worth = jnp.broadcast_to(jnp.asarray(amplification, kind), blank.amplification.shape)
    blank = eqx.tree_at(
        lambda d: (d.amplification, d.lowest), blank, (worth, jnp.asarray(jnp.inf, kind))
    )
    infinite = jnp.full(blank.implicit.shape, jnp.inf, kind)
    gap = _first_gap(problem, goal, newton)
    zero = jnp.asarray(0)
    state = State(
        x=x0, here=here, residual=initial, derivative=blank, error=infinite,
        scale=0 * blank.implicit, taken=jnp.asarray(False), remaining=jnp.asarray(jnp.inf, kind),
        tol=jnp.asarray(jnp.inf, kind) if newton_first else jnp.maximum(gap * initial, floor),
        linear_rtol=first_rtol,
        status=Status.where(jnp.isfinite(initial), Status.not_converged, Status.nonfinite),
        steps=zero, rounds=zero, failures=zero, lowest=jnp.asarray(jnp.inf, kind),
        looked=jnp.asarray(False), escapes=zero, cost=cost,
    )  # fmt: skip
    # With the factor of a constant Hessian there is nothing that a second round could improve.
    end = body(state) if known is not None else repeat(unfinished, body, state)
    certificate = _certificate(problem, theta, end, goal, x0)
    return Outcome(end.x, end.derivative, certificate, end.cost, end.steps)


def _first_gap(problem: AbstractProblem, goal: Goal, newton: bool) -> Float[Array, ""]:
    """How much of the residual the inner method leaves: as much as one Newton correction makes up
    for, or several steps with a new factor each; with a prox, as finds most of the support."""
    if newton:
        return jnp.full_like(goal.rtol, 1e-2)
    if isinstance(problem, Objective):
        return jnp.clip(goal.rtol, 1e-4, 3e-3)
    return jnp.full_like(goal.rtol, 1e-3)


def _rounding_of_residual(
    problem: AbstractProblem, x0: Point, theta: Parameters, residual: Point
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """A hundred times what a change of x0 by a few units in the last place does to F, and the
    gradients that it took: at a start that is the solution, F is rounding, and no method gets
    below it. A start from zero is none."""
    kind = tree.dtype(x0)

    def compare() -> tuple[Float[Array, ""], Int[Array, ""]]:
        beside = tree.scale(1 + 4 * jnp.finfo(kind).eps, x0)
        change = tree.norm(tree.sub(problem.residual(beside, theta), residual))
        return jnp.where(jnp.isfinite(change), 100 * change, 0), jnp.asarray(1)

    nothing = lambda: (jnp.zeros((), kind), jnp.asarray(0))
    return jax.lax.cond(tree.norm(x0) > 0, compare, nothing)


def _certificate(
    problem: AbstractProblem, theta: Parameters, end: State, goal: Goal, x0: Point
) -> Certificate:
    at_kink = Status.weakly_active if isinstance(problem, Composite) else Status.nonsmooth
    kink = nonsmooth_within(problem, end.x, theta, end.remaining)
    # On a kink of F no method settles: that is the reason, then.
    stuck = (end.status == Status.not_converged) & (end.steps < goal.steps)
    kink = kink & (is_ok(end.status) | (stuck & (not isinstance(problem, Composite))))
    status = Status.where(kink, at_kink, end.status)
    if isinstance(problem, Objective):  # always downhill, and nowhere near where it began
        away = tree.norm(end.x) > FAR_AWAY * (1 + tree.norm(x0))
        fell = (status == Status.not_converged) & away
        status = Status.where(fell, Status.unbounded, status)
    # Beside the kink of a prox, the derivative is that of one side; on one of F, it is of none.
    error = jnp.where(kink & (status == Status.nonsmooth), jnp.inf, end.error)
    status = first_failure(status, accuracy_status(error, end.scale, goal.rtol, goal.atol))
    known_zero = (end.scale == 0) & jnp.isfinite(error)
    return Certificate(
        # Zero, and known to be at most `error`, is wrong by all of what is right.
        error=jnp.minimum(relative_error(error, end.scale), jnp.where(known_zero, 1, jnp.inf)),
        absolute_error=error,
        scale=end.scale,
        status=status,
        residual=end.residual,
        inner_error=end.remaining,
    )


def _blank(quantity: AbstractQuantity, *arguments: Any) -> Derivative:
    """A derivative of zeros, with the shapes that `quantity` returns."""
    struct = eqx.filter_eval_shape(quantity, *arguments)
    blank = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype) if isinstance(s, jax.ShapeDtypeStruct) else s, struct
    )
    return eqx.tree_at(lambda d: d.unknown, blank, arguments[3])


def refuse_derivatives(tree: Any) -> Any:
    """The identity, which refuses to be differentiated."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(_refuse(arrays), rest)


@jax.custom_jvp
def _refuse(arrays: Any) -> Any:
    return arrays


@_refuse.defjvp
def _refuse_jvp(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "The result of hypergradient or sensitivity is not differentiable again. For higher "
        "derivatives use dargmin.solve(..., mode=dargmin.Implicit()), which is; to use the result "
        "as a constant, apply jax.lax.stop_gradient to the arguments."
    )


def estimation_cost(problem: AbstractProblem, x0: Point) -> Cost:
    """The products that preparing a problem takes: estimating a composite problem's step size, or
    comparing a product that is given with that of the Hessian."""
    if isinstance(problem, Objective):
        compared = int(problem.hvp is not None and problem.agrees is None)
        return Cost(gradients=compared, products=compared)
    unknown = isinstance(problem, Composite) and problem.step_size is None
    return Cost(products=min(STEP_SIZE_STEPS, tree.size(x0)) if unknown else 0)


def make_goal(rtol: ArrayLike, atol: ArrayLike, steps: int, x0: Point) -> Goal:
    """A goal in the dtype of x0."""
    kind = tree.dtype(x0)
    return Goal(jnp.asarray(rtol, kind), jnp.asarray(atol, kind), steps)


def batch_of_one(value: Any) -> Any:
    """`value` with a leading axis of length one."""
    return jax.tree.map(lambda u: jnp.asarray(u)[None], value)


def unbatch(certificate: Certificate) -> Certificate:
    """A certificate of one derivative, without the leading axis."""
    where = lambda c: (c.error, c.absolute_error, c.scale)
    return eqx.tree_at(where, certificate, tuple(leaf[0] for leaf in where(certificate)))


def progress(result: Any) -> str:
    """How far a result got, where that is known."""
    if result.status.is_traced():
        return ""
    return f"Estimated relative error: {result.certificate.error}."
