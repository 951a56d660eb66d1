"""Work until a derivative is as accurate as asked for: the loop behind hypergradient and
sensitivity.

Each round solves the inner problem (to a tolerance), corrects the point by Newton's method, takes
the implicit derivative there, and compares it with that of the round before. What dominates the
error is tightened. The difference of two rounds is the error of the earlier one; the later one,
which is returned, is better by another Newton correction: the estimate is conservative."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from dargmin import tree
from dargmin.certificate import (
    Certificate,
    accuracy_status,
    near_kink,
    relative_error,
)
from dargmin.cost import Cost
from dargmin.linear import LinearOptions, newton_correction
from dargmin.linear.lanczos import LANCZOS_STEPS
from dargmin.linear.solution import default_rtol
from dargmin.loop import Run, freeze
from dargmin.methods import AbstractMethod
from dargmin.problems import AbstractProblem, Composite
from dargmin.quantity import AbstractQuantity, Derivative, error_estimate, norms, rounding
from dargmin.status import Status, first_failure, is_ok
from dargmin.types import Parameters, Point

MAX_ROUNDS = 40
MAX_FAILURES = 4
"""Rounds in a row without progress before the loop gives up."""


class Goal(eqx.Module):
    """absolute_error <= atol + rtol·scale, within `steps` inner steps over all rounds."""

    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    steps: int = eqx.field(static=True)


class Outcome(eqx.Module):
    """Where the loop ended."""

    x: Point
    derivative: Derivative
    certificate: Certificate
    cost: Cost
    steps: Int[Array, ""]


class _State(eqx.Module):
    x: Point
    residual: Float[Array, ""]
    derivative: Derivative
    error: Float[Array, " k"]
    scale: Float[Array, " k"]
    distance: Float[Array, ""]
    remaining: Float[Array, ""]
    tol: Float[Array, ""]
    linear_rtol: Float[Array, ""]
    status: Any
    steps: Int[Array, ""]
    rounds: Int[Array, ""]
    failures: Int[Array, ""]
    cost: Cost


def reach(
    problem: AbstractProblem,
    method: AbstractMethod | None,
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
    kind = tree.dtype(x0)
    eps = jnp.asarray(jnp.finfo(kind).eps, kind)
    fixed_rtol = options.rtol
    first_rtol = max(1e-6, default_rtol(kind)) if fixed_rtol is None else fixed_rtol
    initial = tree.norm(problem.residual(x0, theta))
    direct = method is None
    run = None if method is None else Run(problem, method.prepare(problem, x0, theta), theta)

    def with_rtol(rtol: Float[Array, ""]) -> LinearOptions:
        return LinearOptions(options.solver, options.preconditioner, rtol)

    def inner(s: _State) -> tuple[Point, Int[Array, ""], Cost]:
        """The method, from where the last round left off, down to the tolerance of this one."""
        if run is None:
            return s.x, jnp.asarray(0), Cost()
        begin = eqx.tree_at(lambda c: c.residual, run.begin(s.x), s.residual)
        end, _ = freeze(run, begin, goal.steps - s.steps, s.tol)
        usable = tree.all_finite(end.x)
        return tree.where(usable, end.x, s.x), end.steps, run.method.cost(end.state, end.steps)

    def body(s: _State) -> _State:
        x, steps, inner_cost = inner(s)
        at = newton_correction(
            problem, x, theta, options=with_rtol(jnp.asarray(first_rtol, kind)),
            max_rounds=30 if direct else 4, gain=1e-3,
        )  # fmt: skip
        found = quantity(problem, at.x, theta, s.derivative.unknown, with_rtol(s.linear_rtol))
        found = _remember(found, s.derivative)
        rounded, checked = rounding(quantity, problem, at, theta, found)
        error, linear = error_estimate(found, s.derivative, rounded)
        comparable = at.settled & is_ok(at.status) & (s.rounds > 0) & is_ok(s.status)
        error = jnp.where(comparable & is_ok(found.status), error, jnp.inf)
        unsettled = Status.where(at.settled, Status.ok, Status.not_converged)
        status = first_failure(at.status, found.status, unsettled)
        # Far from the solution linear solves fail too: if the budget is spent, that is the reason.
        spent = (s.steps + steps >= goal.steps) & jnp.isfinite(at.residual)
        status = Status.where(spent & ~at.settled, Status.not_converged, status)
        # Where Newton's method did not settle, the inner solve has to come closer first.
        tol = jnp.where(at.settled, s.tol, GAP * jnp.minimum(s.tol, at.residual))
        scale = norms(found.value)
        wanted = goal.atol + goal.rtol * scale
        tighter = s.linear_rtol * jnp.min(0.1 * wanted / jnp.maximum(linear, eps * eps))
        linear_rtol = jnp.clip(tighter, eps, s.linear_rtol)
        closer = ~at.settled & (at.residual < 0.5 * s.residual)
        progress = jnp.any(error < 0.5 * s.error) | closer | (s.rounds == 0)
        cost = (
            Cost(at.evaluations, at.products, at.factorisations) + inner_cost + found.cost + checked
        )
        return _State(
            x=at.x,
            residual=at.residual,
            derivative=found,
            error=error,
            scale=scale,
            distance=at.distance,
            remaining=at.remaining,
            tol=tol,
            linear_rtol=linear_rtol if fixed_rtol is None else s.linear_rtol,
            status=status,
            steps=s.steps + steps,
            rounds=s.rounds + 1,
            failures=jnp.where(progress, 0, s.failures + 1),
            cost=s.cost + cost,
        )

    def unfinished(s: _State) -> Bool[Array, ""]:
        met = jnp.all(s.error <= goal.atol + goal.rtol * s.scale) & is_ok(s.status)
        spent = (s.steps >= goal.steps) & ~is_ok(s.status)
        more = (s.rounds < MAX_ROUNDS) & (s.failures < MAX_FAILURES) & ~spent
        return ~met & more & jnp.isfinite(initial)

    blank = _blank(quantity, problem, x0, theta, start, with_rtol(jnp.asarray(first_rtol, kind)))
    known = jnp.broadcast_to(jnp.asarray(amplification, kind), blank.amplification.shape)
    blank = eqx.tree_at(lambda d: d.amplification, blank, known)
    infinite = jnp.full(blank.implicit.shape, jnp.inf, kind)
    zero = jnp.asarray(0)
    state = _State(
        x=x0, residual=initial, derivative=blank, error=infinite, scale=0 * blank.implicit,
        distance=jnp.asarray(jnp.inf, kind), remaining=jnp.asarray(jnp.inf, kind),
        tol=jnp.asarray(jnp.inf, kind) if newton_first else 1e-2 * initial,
        linear_rtol=jnp.asarray(first_rtol, kind),
        status=Status.where(jnp.isfinite(initial), Status.not_converged, Status.nonfinite),
        steps=zero, rounds=zero, failures=zero, cost=Cost(gradients=1),
    )  # fmt: skip
    end = _loop(unfinished, body, state)
    certificate = _certificate(problem, theta, end, goal)
    return Outcome(end.x, end.derivative, certificate, end.cost, end.steps)


GAP = 0.1
"""How much further the inner solve goes after a Newton correction that did not settle."""


def _remember(found: Derivative, before: Derivative) -> Derivative:
    """A solve that starts where the last one ended takes few steps, and learns little of K."""
    where = lambda d: (d.amplification, d.condition)
    known = jax.tree.map(jnp.maximum, where(found), where(before))
    return eqx.tree_at(where, found, known)


def _certificate(
    problem: AbstractProblem, theta: Parameters, end: _State, goal: Goal
) -> Certificate:
    status = end.status
    if isinstance(problem, Composite):
        kink = near_kink(problem, end.x, theta, end.remaining)
        status = first_failure(status, Status.where(kink, Status.weakly_active, Status.ok))
    status = first_failure(status, accuracy_status(end.error, end.scale, goal.rtol, goal.atol))
    return Certificate(
        error=relative_error(end.error, end.scale),
        absolute_error=end.error,
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


def _loop(unfinished: Any, body: Any, state: _State) -> _State:
    """A `while_loop` whose carry keeps its dtypes, weak types dropped."""
    arrays, static = eqx.partition(state, eqx.is_array)
    strong = lambda t: jax.tree.map(lambda a: jax.lax.convert_element_type(a, a.dtype), t)
    end = jax.lax.while_loop(
        lambda a: unfinished(eqx.combine(a, static)),
        lambda a: strong(eqx.filter(body(eqx.combine(a, static)), eqx.is_array)),
        strong(arrays),
    )
    return eqx.combine(end, static)


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
    """The Hessian-vector products that estimating a composite problem's step size takes."""
    unknown = isinstance(problem, Composite) and problem.step_size is None
    return Cost(products=min(LANCZOS_STEPS, tree.size(x0)) if unknown else 0)


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
