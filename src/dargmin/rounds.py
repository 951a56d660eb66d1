"""One round of work on a derivative: inner solve, Newton correction, derivative, estimate."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.certificate import BLIND
from dargmin.cost import Cost
from dargmin.descent import corrected, factor_beside, newton_step, rounded_step
from dargmin.linear import (
    CG,
    GMRES,
    Auto,
    Correction,
    Factored,
    LinearOptions,
    jacobi,
    newton_correction,
    scaling,
    solve_linear,
)
from dargmin.linear.cg import SPREAD
from dargmin.linear.lanes import in_every_lane
from dargmin.linear.newton import forgiven
from dargmin.linear.second_opinion import second_opinion
from dargmin.linear.solution import rounding as rounding_of
from dargmin.loop import Run, freeze
from dargmin.methods import Landing
from dargmin.problems import AbstractProblem, Composite, Objective
from dargmin.quantity import (
    AbstractQuantity,
    Derivative,
    allowed_error,
    norms,
    rounding,
    rounding_by_factor,
)
from dargmin.stationary import degeneracy, escape
from dargmin.status import Status, first_failure, is_ok
from dargmin.types import Parameters, Point

GAP = 0.1
"""How much further the inner solve goes after a Newton correction that did not settle."""

SHARE = 0.1
"""How much of the error that is wanted a linear solve may make."""

LOOSE = 100.0
"""How much more than that it may make in a derivative that the next is only compared with."""

MAX_FAILURES = 4
"""Rounds in a row without progress before the loop gives up."""

MAX_ESCAPES = 20
"""How many saddles are left behind before that is given up."""

SAFETY = 10.0
"""By how much the distance that a correction leaves may be underestimated."""


class Goal(eqx.Module):
    """absolute_error <= atol + rtol·scale, within `steps` inner steps over all rounds."""

    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    steps: int = eqx.field(static=True)

    def wanted(self, scale: Float[Array, " k"]) -> Float[Array, " k"]:
        return self.atol + self.rtol * scale


class State(eqx.Module):
    """Where the work stands after a round."""

    x: Point
    here: Landing | None  # f and ∇f at x, where Newton steps are taken from it
    residual: Float[Array, ""]
    derivative: Derivative
    error: Float[Array, " k"]
    scale: Float[Array, " k"]
    taken: Bool[Array, ""]  # whether a derivative has been taken yet
    remaining: Float[Array, ""]
    tol: Float[Array, ""]
    linear_rtol: Float[Array, ""]
    status: Any
    steps: Int[Array, ""]
    rounds: Int[Array, ""]
    failures: Int[Array, ""]
    lowest: Float[Array, ""]  # the smallest stretch of K that a second opinion has found
    looked: Bool[Array, ""]  # whether there was one, here
    escapes: Int[Array, ""]
    cost: Cost


class Look(eqx.Module):
    """What a second opinion says, and where the work goes on."""

    x: Point
    here: Landing | None
    status: Any  # ok where nothing was found
    lowest: Float[Array, ""]
    looked: Bool[Array, ""]
    new: Bool[Array, ""]  # whether something was found
    left: Bool[Array, ""]  # whether that was a saddle, which was left
    cost: Cost


class Round(eqx.Module):
    """What is the same in every round; called with a state, it returns the next.

    Attributes
    ----------
    run : Run, optional
        The inner method; None where Newton corrections alone get there.
    begin : pytree
        x0: its rounding is the least that a step may count.
    floor : array
        Of the tolerances of the inner method: what rounding leaves of the residual.
    known : Factored, optional
        The factor of a Hessian that is the same everywhere, where there is one.
    newton : bool
        Whether every round is a Newton step with a new factor, and the derivative taken only near
        the solution.
    constant : bool
        Whether the Hessian is the same everywhere.
    looks : bool
        Whether a second opinion is asked for, on what the right-hand sides hide."""

    problem: AbstractProblem
    run: Run | None
    begin: Point
    quantity: AbstractQuantity
    theta: Parameters
    goal: Goal
    options: LinearOptions
    first_rtol: Float[Array, ""]
    floor: Float[Array, ""]
    known: Factored | None
    newton: bool = eqx.field(static=True)
    constant: bool = eqx.field(static=True)
    looks: bool = eqx.field(static=True)

    def __call__(self, s: State) -> State:
        x, residual, steps, cost = self.inner(s)
        solver, here = self.known, None
        if self.newton:
            assert isinstance(self.problem, Objective)
            here = s.here
            if self.run is not None or here is None:
                here = Landing.at(self.problem, x, self.theta)
                cost = cost + Cost(gradients=1)
            solver = factor_beside(self.problem, here, self.theta, self.options.blocks)
            cost, steps = cost + solver.cost, steps + 1
        comparing = self.compares(s, residual)
        work = self
        if solver is None and self.options.scales(self.problem, x):
            diagonal = scaling(self.problem, x, self.theta)
            if diagonal is not None:
                work, cost = self.scaled(diagonal), cost + Cost(products=1)
        at, here = work.correct(s, x, here, residual, comparing, solver)
        found, error, linear, checked, taken = work.evaluate(s, at, comparing, solver)
        scale = norms(found.value)
        unsettled = Status.where(at.settled, Status.ok, Status.not_converged)
        status = first_failure(at.status, found.status, unsettled)
        # Far from the solution linear solves fail too: if the budget is spent, that is the reason.
        spent = (s.steps + steps >= self.goal.steps) & jnp.isfinite(at.residual)
        status = Status.where(spent & ~at.settled, Status.not_converged, status)
        met = jnp.all(error <= self.goal.wanted(scale)) & is_ok(status)
        look = work.look(s, at, here, solver, met, found.lowest)
        status = first_failure(look.status, status)
        error = jnp.where(is_ok(look.status), error, jnp.inf)
        closer = ~at.settled & (at.residual < 0.5 * s.residual)
        progress = jnp.any(error < 0.5 * s.error) | closer | (s.rounds == 0) | look.new
        if self.newton:
            progress = progress | (jnp.isinf(jnp.max(error)) & (at.distance > 0))
        # A saddle that f does not show a way down from: there is nothing more to do.
        saddle = (look.status == Status.not_positive_definite) & ~look.left
        if self.constant:
            saddle = saddle | (status == Status.not_positive_definite)
        failures = jnp.where(progress, 0, s.failures + 1)
        cost = cost + Cost(at.evaluations, at.products, at.factorisations) + checked + look.cost
        return State(
            x=look.x,
            here=look.here,
            residual=jnp.where(look.left, jnp.inf, at.residual),
            derivative=found,
            error=error,
            scale=scale,
            taken=(s.taken | taken) & ~look.left,
            remaining=at.remaining,
            # Where Newton's method did not settle, the inner solve has to come closer first: F is
            # not rounding there yet, as it would have been where it all began.
            tol=jnp.where(
                at.settled,
                s.tol,
                jnp.maximum(GAP * jnp.minimum(s.tol, at.residual), 0.01 * self.floor),
            ),
            linear_rtol=jnp.where(comparing, s.linear_rtol, self.tightened(s, linear, scale)),
            status=status,
            steps=s.steps + steps,
            rounds=s.rounds + 1,
            failures=jnp.where(saddle, MAX_FAILURES, failures),
            lowest=look.lowest,
            looked=look.looked,
            escapes=s.escapes + look.left.astype(s.escapes.dtype),
            cost=s.cost + cost,
        )

    def inner(self, s: State) -> tuple[Point, Float[Array, ""], Int[Array, ""], Cost]:
        """The method, from where the last round left off, down to the tolerance of this one: where
        it ended, ‖F‖ where it last evaluated that, its steps, and its cost."""
        run = self.run
        stay = s.x, s.residual, jnp.asarray(0), Cost()
        if run is None:
            return stay

        def go() -> Any:
            begin = eqx.tree_at(lambda c: c.residual, run.begin(s.x), s.residual)
            end, _ = freeze(run, begin, self.goal.steps - s.steps, s.tol)
            usable = tree.all_finite(end.x)
            cost = run.method.cost(end.state, end.steps)
            return tree.where(usable, end.x, s.x), end.residual, end.steps, cost

        return jax.lax.cond(s.residual > s.tol, go, lambda: stay)

    def compares(self, s: State, residual: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether this round only gives the derivative that the next is compared with, at the point
        where the inner method stopped: the first, unless that had to be cut short, or one
        correction will hardly do."""
        if self.run is None or self.newton or self.known is not None:
            return jnp.asarray(False)
        return (s.rounds == 0) & (residual <= s.tol) & (self.goal.rtol >= 1e-5)

    def scaled(self, diagonal: Point) -> "Round":
        """With that diagonal of the Hessian as the preconditioner of all linear solves."""
        options = dataclasses.replace(self.options, preconditioner=jacobi(diagonal))
        return dataclasses.replace(self, options=options)

    def correct(
        self,
        s: State,
        x: Point,
        here: Landing | None,
        residual: Float[Array, ""],
        comparing: Bool[Array, ""],
        solver: Factored | None,
    ) -> tuple[Correction, Landing | None]:
        """x̂. On a quadratic, the first correction is the solution, and the next only measures how
        far it is from it; elsewhere, all are as exact as the square of the error is worth."""
        if self.newton:
            assert solver is not None and here is not None
            assert isinstance(self.problem, Objective)
            return newton_step(self.problem, self.theta, here, solver, self.begin)
        if solver is not None:
            return self.one_solve(x, solver), None
        error = jnp.clip(self.goal.rtol, 1e-4, 1e-3)
        if self.constant:
            error = jnp.where(s.rounds == 0, SHARE * self.goal.rtol, 0.1)
        options = self.linear(self.first_rtol, error, solver, s.lowest)

        def go() -> Correction:
            rounds = 30 if self.run is None else 4
            return newton_correction(
                self.problem, x, self.theta, options=options, max_rounds=rounds
            )

        if self.run is None:
            return go(), None
        as_it_is = Correction.none(x, residual, settled=True)
        return jax.lax.cond(comparing, lambda: as_it_is, go), None

    def one_solve(self, x: Point, solver: Factored) -> Correction:
        """x - K⁻¹F with the factor of a constant K."""
        F = self.problem.residual(x, self.theta)
        options = self.linear(self.first_rtol, self.first_rtol, solver)
        solution = solve_linear(self.problem, x, self.theta, F, options=options)
        x = tree.sub(x, solution.value)
        gradient = self.problem.residual(x, self.theta)
        at = corrected(x, gradient, F, solution.value, solver, self.begin, constant=True)
        # A quadratic whose gradient leaves the range of K falls without end there.
        status = forgiven(solution, self.begin)
        status = Status.where(status == Status.inconsistent, Status.unbounded, status)
        return eqx.tree_at(
            lambda c: (c.status, c.evaluations, c.products), at,
            (first_failure(at.status, status), jnp.asarray(2), solution.info.products),
        )  # fmt: skip

    def linear(
        self,
        rtol: Float[Array, ""],
        error: Float[Array, ""],
        solver: Factored | None,
        lowest: Float[Array, ""] | None = None,
    ) -> LinearOptions:
        """Options for a solve to that residual, or to that estimated error if it comes first."""
        chosen = self.options.solver if solver is None else solver
        if self.options.rtol is None and (chosen is None or isinstance(chosen, CG | Auto)):
            chosen = dataclasses.replace(Auto() if chosen is None else chosen, error=error)
        if self.looks and (chosen is None or isinstance(chosen, CG | Auto | GMRES)):
            chosen = dataclasses.replace(Auto() if chosen is None else chosen, lowest=lowest)
        return LinearOptions(chosen, self.options.preconditioner, rtol)

    def evaluate(
        self, s: State, at: Correction, comparing: Bool[Array, ""], solver: Factored | None
    ) -> tuple[Derivative, Float[Array, " k"], Float[Array, " k"], Cost, Bool[Array, ""]]:
        """The derivative at x̂, its estimated error, the part of that due to the linear solve, the
        cost, and whether all that was done: on the way there by Newton steps, nothing is."""
        share = SHARE * self.goal.rtol * s.linear_rtol / self.first_rtol
        share = jnp.where(comparing, jnp.clip(LOOSE * share, share, 0.1), share)
        options = self.linear(s.linear_rtol, share, solver, s.lowest)

        def there() -> tuple[Any, ...]:
            found = self.quantity(self.problem, at.x, self.theta, s.derivative.unknown, options)
            found = _remember(found, s.derivative)
            found = self.regular(at.x, found, options, solver)
            # A residual that stays above its tolerance is an error that is estimated, too.
            rough = jnp.all(found.amplification * found.residual < 1)
            rough = rough & (found.status == Status.linear_solve_failed)
            status = Status.where(rough, Status.ok, found.status)
            found = dataclasses.replace(found, status=status)
            error, linear, cost = self.estimate(s, at, found, solver)
            return found, error, linear, found.cost + cost, jnp.asarray(True)

        if not self.newton:
            return there()
        # From here, one more step squares the distance: the derivative there is compared with this.
        assert solver is not None
        reached, left = solver.measure(at.x), solver.measure(at.offset)
        least = rounded_step(solver, reached, self.begin)
        close = 0.1 * jnp.sqrt(self.goal.rtol) * reached + least
        near = at.settled & (left <= close) & ~solver.indefinite
        # What K does not see turns with x: of a singular K the factor has to be that at x̂.
        turned = 0.01 * self.goal.rtol * tree.norm(at.x) + least
        near = near & (~solver.singular | (at.distance <= turned))
        inf = jnp.full_like(s.error, jnp.inf)
        return jax.lax.cond(
            near, there, lambda: (s.derivative, inf, 0 * s.scale, Cost(), jnp.asarray(False))
        )

    def regular(
        self, x: Point, found: Derivative, options: LinearOptions, solver: Factored | None
    ) -> Derivative:
        """The same, with a status if x is a degenerate solution."""
        if self.constant:
            return found
        correction = lambda r: solve_linear(self.problem, x, self.theta, r, options=options).value
        inverse = correction if solver is None else solver.inverse
        kind = degeneracy(self.problem, x, self.theta, found.null, inverse)
        return dataclasses.replace(found, status=first_failure(kind, found.status))

    def estimate(
        self, s: State, at: Correction, found: Derivative, solver: Factored | None
    ) -> tuple[Float[Array, " k"], Float[Array, " k"], Cost]:
        """The estimated absolute error, the part of it due to the linear solve, and the cost.

        The difference of two rounds is the error of the earlier one; of the later one, where
        Newton's method converges quadratically and K is symmetric, only as much as is left of the
        distance between them, SAFETY times that to be sure. With a factor of a constant Hessian the
        first round has the solution, but for rounding, which is looked at in any case, once nothing
        else stands in the way."""
        linear = allowed_error(found)
        # With no correct digits left, what is computed is no guide to what is not.
        change, comparable = jnp.zeros_like(linear), at.settled & is_ok(at.status)
        if solver is not None:
            comparable = comparable & (rounding_of(linear.dtype, solver.condition) <= BLIND)
        if self.known is None:
            change = norms(tree.sub(found.value, s.derivative.value))
            if isinstance(self.problem, Objective | Composite) and not self.constant:
                left = SAFETY * at.remaining / jnp.where(at.distance > 0, at.distance, 1)
                change = change * jnp.where((at.distance > 0) & (left < 1), left, 1)
            comparable = comparable & s.taken & is_ok(s.status)
        comparable = comparable & is_ok(found.status)
        wanted = self.goal.wanted(norms(found.value))

        def rounds() -> tuple[Float[Array, " k"], Cost]:
            arguments = self.quantity, self.problem, at, self.theta, found
            if solver is None:
                return rounding(*arguments)
            return rounding_by_factor(*arguments, solver, wanted)

        if self.known is not None:
            rounded, cost = rounds()
        else:
            error = change + linear
            falling = jnp.any((error > wanted) & (error < 0.5 * s.error))
            rounded, cost = jax.lax.cond(
                comparable & ~falling, rounds, lambda: (jnp.zeros_like(linear), Cost())
            )
        error = jnp.maximum(change, rounded) + linear
        return jnp.where(comparable, error, jnp.inf), linear, cost

    def look(
        self,
        s: State,
        at: Correction,
        here: Landing | None,
        solver: Factored | None,
        met: Bool[Array, ""],
        lowest: Float[Array, ""],
    ) -> Look:
        """Before the work ends: slow directions that the right-hand sides hide, for which all is
        looked at again; and negative curvature, along which a saddle is left."""
        nothing = jnp.asarray(False)
        stay = Look(
            at.x, here, Status.ok, s.lowest, s.looked, nothing, nothing, Cost()
        )  # fmt: skip
        if self.newton:
            assert solver is not None
            negative = solver.indefinite & at.settled
            return self.leave(s, solver.most_negative(at.x), negative, stay)
        if not self.looks:
            return stay
        wanted = met & ~s.looked

        def opinion() -> Look:
            said = second_opinion(self.problem, at.x, self.theta, self.options)
            known = jnp.minimum(lowest, s.lowest)
            hidden = wanted & (SPREAD * said.lowest < known) & ~said.negative
            found = Look(
                at.x, here, Status.where(hidden, Status.accuracy_not_reached, Status.ok),
                jnp.where(wanted, jnp.minimum(said.lowest, s.lowest), s.lowest),
                s.looked | wanted, hidden, nothing, Cost(products=said.products),
            )  # fmt: skip
            negative = wanted & said.negative
            return self.leave(s, said.direction, negative, found)

        return jax.lax.cond(in_every_lane(~wanted), lambda: stay, opinion)

    def leave(self, s: State, direction: Point, negative: Bool[Array, ""], look: Look) -> Look:
        """Where there is negative curvature: to a lower point along it, if f knows one."""
        status = Status.where(negative, Status.not_positive_definite, look.status)
        look = dataclasses.replace(look, status=status, looked=look.looked & ~negative)
        problem = self.problem
        if self.constant or not isinstance(problem, Objective):
            return look

        def go() -> Look:
            x, fell, trials = escape(problem, self.theta, look.x, direction)
            left = negative & fell & (s.escapes < MAX_ESCAPES)
            here = look.here
            if here is not None:
                here = tree.where(left, Landing.at(problem, x, self.theta), here)
            return Look(
                x=tree.where(left, x, look.x),
                here=here,
                status=Status.where(left, Status.not_converged, status),
                lowest=jnp.where(left, jnp.inf, look.lowest),
                looked=look.looked,
                new=look.new | left,
                left=left,
                cost=look.cost + Cost(gradients=jnp.where(negative, trials, 0)),
            )

        return jax.lax.cond(in_every_lane(~negative), lambda: look, go)

    def tightened(
        self, s: State, linear: Float[Array, " k"], scale: Float[Array, " k"]
    ) -> Float[Array, ""]:
        """The relative residual of the next linear solve."""
        if self.options.rtol is not None:
            return s.linear_rtol
        eps = jnp.asarray(jnp.finfo(scale.dtype).eps, scale.dtype)
        share = SHARE * self.goal.wanted(scale) / jnp.maximum(linear, eps * eps)
        return jnp.clip(s.linear_rtol * jnp.min(share), eps, s.linear_rtol)


def _remember(found: Derivative, before: Derivative) -> Derivative:
    """A solve that starts where the last one ended takes few steps, and learns little of K."""
    where = lambda d: (d.amplification, d.condition, d.lowest)
    larger = jax.tree.map(jnp.maximum, where(found)[:2], where(before)[:2])
    return eqx.tree_at(where, found, (*larger, jnp.minimum(found.lowest, before.lowest)))
