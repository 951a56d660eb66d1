"""What every outer optimizer shares: certified evaluations, the best so far, history, checkpoints.

A direction is used only if its certified error is below a fraction of its length: then it is a
direction of descent, although the inner problem was solved no better than that."""

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dargmin import show, tree
from dargmin.bilevel.box import Box, Vector, as_vector, from_vector
from dargmin.bilevel.checkpoint import Checkpoint
from dargmin.bilevel.history import History
from dargmin.bilevel.inner import AbstractInner, Evaluation
from dargmin.bilevel.progress import Display
from dargmin.status import Status, is_ok
from dargmin.types import Point

DESCENT = 1 / 3
"""True errors are at most three times the certified ones: below this fraction, -g descends."""

ATTEMPTS = 3
"""How often a hypergradient is made more accurate before its θ is given up."""


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
    step: Array
    floor: Float[Array, ""]
    sharper: Float[Array, ""]
    time: Float[Array, ""]


class BilevelSolution(eqx.Module):
    """The best θ that was evaluated, and how the loop got there.

    Attributes
    ----------
    theta : pytree like theta0
    x : pytree like x0
        The inner solution at theta.
    value : array
        φ(x, θ).
    history : History
        A table: one row for the start, one for each outer step.
    status : Status
        `.ok`, or why the loop ended early, or that the last direction could not be certified."""

    theta: Any
    x: Point
    value: Float[Array, ""]
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
        fraction: float,
        callback: Callable | None,
    ):
        self.inner, self.like, self.fixed, self.box = inner, theta, fixed, box
        self.steps, self.rtol, self.fraction, self.callback = steps, rtol, fraction, callback
        self.start = as_vector(theta)
        self.current: Evaluation | None = None
        self.best: Evaluation | None = None
        self.failure: Any = None
        self.memory = inner.begin(theta)
        self.optimizer_state: Any = None
        self.step, self.floor, self.sharper = -1, 0.0, 1.0
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
        rtol = self.sharper * (self.fraction if self.rtol is None else self.rtol)
        for _ in range(ATTEMPTS):
            atol = min(1.0, 10 * rtol) * self.floor
            found, memory = self.inner.at(point, self.memory, rtol, atol)
            self.spent += [float(found.inner_cost), float(found.adjoint_cost), 1]
            self._refuse_failed(found)
            self.memory = memory
            allowed = DESCENT if self.rtol is not None else self.sharper * self.fraction
            wanted = allowed * self.slope(found)
            if self._enough(found, wanted):
                break
            # What the bounds leave of the gradient is shorter than the gradient.
            length = float(np.linalg.norm(as_vector(found.gradient)))
            rtol = 0.5 * min(rtol, wanted / length)
        return found

    def accept(self, found: Evaluation) -> None:
        """A step was taken, to where `found` is.

        Raises
        ------
        Finished
            If it was the last one: the steps are spent, θ is stationary, or no direction of
            descent can be certified."""
        moved = 0.0
        if self.current is None:
            self.floor = self._rounding(found)
        else:
            moved = np.linalg.norm(as_vector(found.theta) - as_vector(self.current.theta))
        self.step += 1
        self.current = found
        # Values of inner iterates that have not converged do not compare: there, the last counts.
        better = self.best is None or not found.value >= self.best.value
        if better or not self.inner.refines:
            self.best = found
        self._record(found, float(moved))
        self.stop_if_finished()

    def stop_if_finished(self) -> None:
        """Raise `Finished` if nothing is left to do after the current step."""
        if self.current is None:
            return
        certified = self._certified(self.current)
        if self.inner.refines and not certified:
            self.failure = Status.accuracy_not_reached
        stationary = self.slope(self.current) <= self.floor
        if self.failure is not None or stationary or self.step >= self.steps:
            raise Finished

    def slope(self, found: Evaluation) -> float:
        """The norm of the gradient, projected on what the bounds allow."""
        g = self.box.projected(as_vector(found.theta), as_vector(found.gradient))
        return float(np.linalg.norm(g))

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
        blank = _blank(self.like, self.inner.begin(self.like), self.optimizer_state, x0)
        stored = checkpoint.load(blank)
        if stored is None:
            return
        state, rows = stored
        self.current, self.best, self.memory = state.current, state.best, state.memory
        self.optimizer_state, self.step = state.optimizer, int(state.step)
        self.floor, self.sharper = float(state.floor), float(state.sharper)
        self.begin -= float(state.time)
        self.history = History(rows)

    def _solution(self, at: Evaluation, status: Any) -> BilevelSolution:
        return BilevelSolution(
            eqx.combine(at.theta, self.fixed), at.x, at.value, self.history, status
        )

    def _status(self, best: Evaluation) -> Any:
        """That of the hypergradient, where more than its accuracy is at stake. Near a stationary
        point no relative accuracy can be reached, and none is needed."""
        accuracy = _is_one_of(best.status, (Status.ok, Status.accuracy_not_reached))
        negligible = float(best.error) <= self.floor
        if not accuracy or (self.rtol is not None and not negligible):
            return best.status
        return Status.ok if self._certified(best) else Status.accuracy_not_reached

    def _enough(self, found: Evaluation, wanted: float) -> bool:
        near = float(found.error) <= max(wanted, self.floor)
        return near or wanted == 0 or not self.inner.refines

    def _certified(self, found: Evaluation) -> bool:
        """Whether the direction descends, or θ is stationary as far as rounding lets us see."""
        slope = self.slope(found)
        return float(found.error) <= max(DESCENT * slope, self.floor)

    def _rounding(self, first: Evaluation) -> float:
        """√ε times the first gradient, or what changes φ by its own size: no slope below counts."""
        eps = float(jnp.finfo(tree.dtype(first.x)).eps)
        natural = abs(float(first.value)) / max(1.0, float(np.linalg.norm(self.start)))
        return eps**0.5 * max(self.slope(first), natural)

    def _refuse_failed(self, found: Evaluation) -> None:
        finite = bool(jnp.isfinite(found.value) & tree.all_finite(found.gradient))
        usable = (Status.ok, Status.accuracy_not_reached, Status.weakly_active)
        # After a fixed number of steps even a certificate that failed is only recorded.
        if finite and (not self.inner.refines or _is_one_of(found.status, usable)):
            return
        self.failure = found.status if finite else Status.nonfinite
        self.best = found if self.best is None else self.best
        raise FailedTrial(found.theta)

    def _record(self, found: Evaluation, moved: float) -> None:
        scale = float(found.scale)
        row = {
            "step": self.step,
            "value": float(found.value),
            "gradient_norm": self.slope(found),
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
            self.checkpoint.save(self._state(), self.history.rows())
        self.display.show(row)
        if self.callback is not None:
            try:
                self.callback(self._solution(found, found.status))
            except StopIteration:
                raise Finished from None

    def _state(self) -> State:
        assert self.current is not None and self.best is not None
        elapsed = time.perf_counter() - self.begin
        numbers = (jnp.asarray(n) for n in (self.step, self.floor, self.sharper, elapsed))
        return State(self.current, self.best, self.memory, self.optimizer_state, *numbers)


def _is_one_of(status: Any, statuses: tuple) -> bool:
    return any(bool(status == other) for other in statuses)


def _blank(theta: Any, memory: Any, optimizer_state: Any, x: Point) -> State:
    """A state of the right structure."""
    zero = jnp.zeros(())
    value = jnp.zeros((), tree.dtype(x))
    nothing = Evaluation(
        theta, x, value, theta, value, value, Status.ok, zero, zero, zero,
    )  # fmt: skip
    return State(nothing, nothing, memory, optimizer_state, jnp.asarray(0), zero, zero, zero)
