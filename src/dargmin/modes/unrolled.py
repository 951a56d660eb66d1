"""Unrolled and LateStart: derivatives of the algorithm."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dargmin import tree
from dargmin.loop import Carry, Run, freeze, late_start, segment_length, unroll
from dargmin.modes.base import AbstractMode, conclude, is_whole, withhold
from dargmin.solution import Solution
from dargmin.types import Point


class Unrolled(AbstractMode):
    """d x_T / dθ, through every step of the algorithm, x0 included.

    Step sizes and momenta are constants of the derivative; what a method computes from its
    iterates is differentiated. Reverse mode keeps O(T) states, or O(√T) with
    `checkpoint="sqrt"`, whatever the step at which `tol` stopped the run.

    Parameters
    ----------
    checkpoint : None, "sqrt" or int >= 1
        Steps in a checkpointed segment. Values and derivatives are the same with each.
    hyperparameters : bool
        Differentiate the step sizes and momenta that were given, too (to learn them)."""

    checkpoint: int | str | None = eqx.field(static=True, default=None)
    hyperparameters: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        _check_checkpoint(self.checkpoint)

    def solve(
        self, run: Run, x0: Point, steps: int, tol: Float[Array, ""] | None, throw: bool
    ) -> Solution:
        if not self.hyperparameters:
            run = Run(run.problem, tree.stop_gradient(run.method), run.theta)
        length = segment_length(steps, self.checkpoint)
        begin = run.begin(x0)
        carry = unroll(run, begin, steps, tol=tol, checkpoint=length)
        return conclude(run, carry, tol, _if_moved(run, begin, carry, throw))


class LateStart(AbstractMode):
    """d x_T / dθ through the last steps only: x and the method's whole state at K are constants.

    Parameters
    ----------
    start : int >= 0 or "auto", optional
        K, the number of steps that are not differentiated. If a tolerance stops the run at
        N <= K, the last step is differentiated, and `solution.start` says so. "auto" begins where
        the burn-in is over, as far as can be observed: the run is made twice more to find out,
        and since K is not known beforehand, the memory is that of `Unrolled`.
    last : int >= 1, optional
        The number T - K of steps that are; `last=1` is one-step differentiation. Under a
        tolerance the run is made twice: once to find N, once to differentiate from N - last.
    checkpoint : None, "sqrt" or int >= 1
        As in `Unrolled`, for the differentiated steps.

    References
    ----------
    Bolte, Pauwels, Vaiter (2023), arXiv:2305.13768, for last=1; Mehmood, Knoll, Ochs (2026),
    arXiv:2602.19733."""

    start: int | str | None = eqx.field(static=True)
    last: int | None = eqx.field(static=True)
    checkpoint: int | str | None = eqx.field(static=True)

    def __init__(
        self,
        *,
        start: int | str | None = None,
        last: int | None = None,
        checkpoint: int | str | None = None,
    ):
        if (start is None) == (last is None):
            raise ValueError(
                "LateStart needs exactly one of start= and last=, but got "
                f"start={start}, last={last}."
            )
        if start is not None and start != "auto" and not is_whole(start, 0):
            raise ValueError(
                f'LateStart(start={start!r}) needs an integer start >= 0, or start="auto".'
            )
        if last is not None and not is_whole(last, 1):
            raise ValueError(f"LateStart(last={last}) needs an integer last >= 1.")
        _check_checkpoint(checkpoint)
        self.start, self.last, self.checkpoint = start, last, checkpoint

    def solve(
        self, run: Run, x0: Point, steps: int, tol: Float[Array, ""] | None, throw: bool
    ) -> Solution:
        self._check(steps)
        run = Run(run.problem, tree.stop_gradient(run.method), run.theta)
        begin = tree.stop_gradient(run.begin(x0))
        if isinstance(self.start, int):
            carry, before = freeze(run, begin, self.start, tol)
            if tol is not None:
                # Stopped at N <= K already: take back the last step, and differentiate that.
                over = (carry.steps > 0) & (carry.residual <= tol)
                carry = tree.where(over, before, carry)
            return self._finish(run, carry, steps - self.start, tol, throw, inner_tol=tol)
        # N is known before the differentiated steps begin: the tolerance has done its work.
        if self.last is not None:
            limit = jnp.asarray(steps)
            if tol is not None:
                limit = freeze(run, begin, steps, tol)[0].steps
            last = min(self.last + run.method.lag, steps)
            carry, _ = freeze(run, begin, jnp.maximum(limit - last, 0), None)
            limit = None if tol is None else limit
            return self._finish(run, carry, last, tol, throw, limit=limit)
        end, _ = freeze(run, begin, steps, tol)
        carry, _ = freeze(run, begin, late_start(run, begin, end), None)
        return self._finish(run, carry, steps, tol, throw, limit=end.steps)

    def _finish(
        self,
        run: Run,
        carry: Carry,
        steps: int,
        tol: Float[Array, ""] | None,
        throw: bool,
        *,
        limit: Int[Array, ""] | None = None,
        inner_tol: Float[Array, ""] | None = None,
    ) -> Solution:
        """Differentiate the last steps, from a carry that is held constant."""
        carry = run.refresh(carry)
        length = segment_length(steps, self.checkpoint)
        end = unroll(run, carry, steps, limit=limit, tol=inner_tol, checkpoint=length)
        return conclude(run, end, tol, _if_moved(run, carry, end, throw), start=carry.steps)

    def _check(self, steps: int) -> None:
        if isinstance(self.start, int) and self.start >= steps:
            raise ValueError(
                f"LateStart(start={self.start}) needs start < steps, but steps={steps}. Lower "
                "`start` or raise `steps`."
            )
        if self.last is not None and self.last > steps:
            raise ValueError(
                f"LateStart(last={self.last}) needs 1 <= last <= steps, but steps={steps}. "
                "Raise `steps`, lower `last`, or use Unrolled() to differentiate every step."
            )


STAYED = (
    "Every step that is differentiated left x where it was (a search that rejected what it tried, "
    "or nothing left to do), so that the derivative would be zero. Use Implicit(), or "
    "differentiate more steps."
)


def _if_moved(run: Run, begin: Carry, end: Carry, throw: bool) -> Point:
    """x_T, with no derivative where no differentiated step that knows θ moved it."""
    stayed = (end.steps > begin.steps) & (end.moves - begin.moves <= run.method.lag)
    return withhold(end.x, stayed, STAYED, throw)


def _check_checkpoint(checkpoint: int | str | None) -> None:
    if not (checkpoint is None or checkpoint == "sqrt" or is_whole(checkpoint, 1)):
        raise ValueError(
            f'checkpoint={checkpoint!r}: allowed are None, "sqrt" and a number of steps >= 1.'
        )
