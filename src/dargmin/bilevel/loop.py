"""What every outer optimizer shares: certified evaluations, the best so far, history, checkpoints.

A direction is used only if its certified error is below a fraction of its length: then it is a
direction of descent, although the inner problem was solved no better than that. Where a warm start
does not get there, or the values contradict the gradients, the evaluation is done again without."""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dargmin import show, tree
from dargmin.bilevel.box import Box, Vector, as_vector, from_vector
from dargmin.bilevel.checkpoint import Checkpoint
from dargmin.bilevel.curvature import Pairs
from dargmin.bilevel.history import History
from dargmin.bilevel.inner import AbstractInner, Evaluation
from dargmin.bilevel.judge import DESCENT, Judge, is_one_of
from dargmin.bilevel.progress import Display
from dargmin.bilevel.tape import Tape
from dargmin.status import Status, is_ok
from dargmin.types import Point

ATTEMPTS = 3
"""How often a hypergradient is made more accurate before its θ is given up."""

SLACK = 10
"""By how much less exact than its terms ask for a gradient may be before it is taken again."""

NEAR = 1e-4
"""Of the length of θ: as far away, the curvature at a stationary start is looked at."""


class Finished(Exception):
    """The loop is over; what there is to say is on the loop."""


class FailedTrial(Finished):
    """The inner side failed, at a θ that an optimizer may step back from."""

    def __init__(self, theta: Any):
        super().__init__()
        self.theta = theta


class State(eqx.Module):
    """All that a killed loop needs to go on."""

    current: Evaluation
    best: Evaluation
    memory: Any
    optimizer: Any
    pairs: Pairs
    step: Int[np.ndarray, ""]
    sharper: Float[np.ndarray, ""]
    time: Float[np.ndarray, ""]


class BilevelSolution(eqx.Module):
    """The best θ that was evaluated, and how the loop got there.

    Attributes
    ----------
    theta : pytree like theta0
    x : pytree like x0
        The inner solution at theta.
    value : array
        φ(x, θ).
    gradient : pytree like the floating leaves of theta0
        dφ/dθ there.
    error : array
        The certified absolute error of the gradient.
    history : History
        A table: one row for the start, one for each outer step.
    status : Status
        `.ok`: the gradient fell to `gtol`. Or `steps_spent`: it did not, until the steps were
        spent or a callback stopped them. Or why the loop ended early, or that the last direction
        could not be certified."""

    theta: Any
    x: Point
    value: Float[Array, ""]
    gradient: Any
    error: Float[Array, ""]
    history: History
    status: Any

    def __repr__(self) -> str:
        return show.lines(
            f"BilevelSolution: {show.in_words(self.status)}",
            {
                "theta": self.theta,
                "x": self.x,
                "value": self.value,
                "history": str(self.history),
                **_last_row(self.history),
            },
        )

    @property
    def ok(self) -> Any:
        return is_ok(self.status)


def _last_row(history: Any) -> dict[str, float]:
    """The norm and the error of the last gradient, where there is one."""
    if not isinstance(history, History) or not len(history):
        return {}
    return {name.replace("_", " "): history[name][-1] for name in ("gradient_norm", "error")}


class Loop:
    """The loop's state on the host, and what is done at each evaluation and each step."""

    def __init__(
        self,
        inner: AbstractInner,
        theta: Any,
        fixed: Any,
        box: Box,
        *,
        steps: int,
        rtol: float | None,
        gtol: float,
        fraction: float,
        callback: Callable | None,
    ):
        self.inner, self.like, self.fixed, self.box = inner, theta, fixed, box
        self.steps, self.rtol, self.fraction = steps, rtol, fraction
        self.callback = callback
        self.start = as_vector(theta)
        self.current: Evaluation | None = None
        self.best: Evaluation | None = None
        self.failure: Any = None
        self.settled = False  # by a criterion of the optimizer's own
        self.stuck = False  # the optimizer gave up
        self.memory = inner.begin(theta)
        self.optimizer_state: Any = None
        self.tape = Tape(self.start.size)
        self.judge = Judge(box, self.start, gtol, refines=inner.refines)
        self.step, self.sharper = -1, 1.0
        self.history, self.checkpoint, self.display = History(), None, Display(steps)
        self.begin = time.perf_counter()
        self.spent = np.zeros(3)

    def evaluate(self, theta: Vector) -> Evaluation:
        """Value and gradient at θ, as accurate as a step needs.

        Raises
        ------
        FailedTrial
            If the inner side fails; the best so far is kept."""
        point = from_vector(theta, self.like)
        found, memory = self._refined(point, self.memory)
        warm = self.inner.refines and self.memory is not None and len(self.history) > 0
        if warm and not self.judge.convincing(found, self.current):
            found, memory = self._refined(point, self.inner.begin(self.like))
        if not self.judge.usable(found):
            unexplained = bool(found.status == Status.ok)
            self.failure = Status.nonfinite if unexplained else found.status
            self.best = found if self.best is None else self.best
            raise FailedTrial(found.theta)
        self.memory = memory
        return found

    def accept(self, found: Evaluation) -> None:
        """A step was taken, to where `found` is.

        Raises
        ------
        Finished
            If it was the last one: the steps are spent, θ is stationary, or no direction of
            descent can be certified."""
        theta = as_vector(found.theta)
        moved = 0.0
        if self.current is not None:
            moved = np.linalg.norm(theta - as_vector(self.current.theta))
        self.step += 1
        self.current = found
        self.judge.learn(found)
        if self.judge.improves(found, self.best):
            self.best = found
        self._record(found, float(moved))
        self.stop_if_finished()

    def stop_if_finished(self) -> None:
        """Raise `Finished` if nothing is left to do after the current step."""
        if self.current is None:
            return
        at = self.current
        if self.inner.refines and self.steps:
            if self.step == 0 and not (self.judge.descends(at) or self.judge.held(at)):
                self._look_around(at)
            if not self.judge.certified(at):
                self.failure = Status.accuracy_not_reached
        finished = self.judge.stationary(at) or self.step >= self.steps
        if self.failure is not None or finished:
            raise Finished

    def result(self) -> BilevelSolution | None:
        """What there is, or None before the first evaluation."""
        best = self.best
        if best is None:
            return None
        return self._solution(best, self._status(best) if self.failure is None else self.failure)

    def save_to(self, checkpoint: Checkpoint | None, x0: Point) -> None:
        """Go on from the checkpoint, if there is a file, and write it from now on."""
        self.checkpoint = checkpoint
        if checkpoint is None:
            return
        blank = _blank(self, self.inner.begin(self.like), x0)
        stored = checkpoint.load(blank)
        if stored is None:
            return
        state, rows, tape = stored
        self.current, self.best, self.memory = state.current, state.best, state.memory
        self.optimizer_state, self.step = state.optimizer, int(state.step)
        self.sharper = float(state.sharper)
        self.judge.pairs, self.tape = state.pairs, Tape(self.start.size, tape)
        self.begin -= float(state.time)
        self.history = History(rows)

    def _refined(self, point: Any, memory: Any) -> tuple[Evaluation, Any]:
        """Made more accurate until its direction can be used."""
        rtol = self.sharper * (self.fraction if self.rtol is None else self.rtol)
        allowed = DESCENT if self.rtol is not None else self.sharper * self.fraction
        tolerated, used = 0.0, rtol
        if self.current is not None:
            tolerated = DESCENT * self.judge.tolerated(self.current)
            used = rtol * self.judge.share(self.current)
        for _ in range(ATTEMPTS):
            atol = tolerated * min(1.0, 10 * used)
            found, memory = self.inner.at(point, memory, used, atol)
            self.spent += [float(found.inner_cost), float(found.adjoint_cost), 1]
            if not self.inner.refines or not self.judge.usable(found):
                break
            wanted = allowed * self.judge.slope(found)
            near = float(found.error) <= max(wanted, tolerated)
            # What cancels was not as exact as what is left of it has to be.
            share = min(rtol, max(wanted, tolerated) / (self.judge.length(found) or 1.0))
            share = share * self.judge.share(found)
            if wanted == 0 or (near and used <= SLACK * share):
                break
            # What the bounds leave of the gradient is shorter than the gradient.
            used = min(0.5 * used, share)
        return found, memory

    def _look_around(self, found: Evaluation) -> None:
        """The curvature at a start that is stationary as far as can be seen: no step shows it."""
        theta, gradient = as_vector(found.theta), as_vector(found.gradient)
        away = gradient if np.any(gradient) else np.ones_like(gradient)
        away = NEAR * (float(np.linalg.norm(theta)) or 1.0) * away / float(np.linalg.norm(away))
        memory = self.memory
        for beside in (self.box.project(theta - away), self.box.project(theta + away)):
            if np.array_equal(beside, theta):
                continue
            try:
                self.judge.learn(self.evaluate(beside))
            except FailedTrial:
                self.failure = None
            if self.judge.pairs.concave:
                self.failure = Status.not_positive_definite
            self.memory = memory
            return

    def _solution(self, at: Evaluation, status: Any) -> BilevelSolution:
        return BilevelSolution(
            eqx.combine(at.theta, self.fixed), at.x, at.value, at.gradient, at.error,
            self.history, status,
        )  # fmt: skip

    def _status(self, best: Evaluation) -> Any:
        """That of the hypergradient, where more than its accuracy is at stake. Near a stationary
        point no relative accuracy can be reached, and none is needed."""
        accuracy = is_one_of(best.status, (Status.ok, Status.accuracy_not_reached))
        negligible = float(best.error) <= self.judge.tolerated(best)
        asked = not accuracy or (self.rtol is not None and not negligible)
        if asked and not bool(best.status == Status.ok):
            return best.status
        if not self.judge.certified(best):
            return Status.accuracy_not_reached
        last = self.current is None or best.value == self.current.value
        stationary = (last or self.judge.nearby(best)) and self.judge.stationary(best)
        found = self.settled or self.steps == 0 or stationary
        unfinished = Status.accuracy_not_reached if self.stuck else Status.steps_spent
        return Status.ok if found else unfinished

    def _record(self, found: Evaluation, moved: float) -> None:
        scale = float(found.scale)
        row = {
            "step": self.step,
            "value": float(found.value),
            "gradient_norm": self.judge.slope(found),
            "error": float(found.error) / scale if scale > 0 else 0.0,
            "inner_cost": self.spent[0],
            "adjoint_cost": self.spent[1],
            "hypergradients": self.spent[2],
            "step_norm": moved,
            "effective_start": float(found.effective_start),
            "time": time.perf_counter() - self.begin,
        }
        self.spent = np.zeros(3)
        self.history.append(row)
        if self.checkpoint is not None:
            self.checkpoint.save(self._state(), self.history.rows(), self.tape.rows())
        self.display.show(row)
        if self.callback is not None:
            try:
                self.callback(self._solution(found, found.status))
            except StopIteration:
                raise Finished from None

    def _state(self) -> State:
        assert self.current is not None and self.best is not None
        elapsed = time.perf_counter() - self.begin
        numbers = (np.asarray(n) for n in (self.sharper, elapsed))
        return State(
            self.current, self.best, self.memory, self.optimizer_state, self.judge.pairs,
            np.asarray(self.step), *numbers,
        )  # fmt: skip


def _blank(loop: Loop, memory: Any, x: Point) -> State:
    """A state of the right structure."""
    zero, number = jnp.zeros(()), np.zeros(())
    value = jnp.zeros((), tree.dtype(x))
    nothing = Evaluation(
        loop.like, x, value, loop.like, value, value, value, value, Status.ok, zero, zero, zero,
    )  # fmt: skip
    return State(
        nothing, nothing, memory, loop.optimizer_state, loop.judge.pairs,
        np.asarray(0), number, number,
    )  # fmt: skip
