"""Outer optimizers: L-BFGS-B from SciPy, and every optax transformation."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jaxtyping import Float, Int

from dargmin import tree
from dargmin.bilevel.box import Vector, as_vector
from dargmin.bilevel.inner import Evaluation
from dargmin.bilevel.loop import FailedTrial, Finished, Loop
from dargmin.bilevel.tape import Tape
from dargmin.modes.base import is_whole

RETREATS = 10
"""How often a run of SciPy's may begin anew where the inner side failed."""

FIRST = 0.1
"""How far the first trial goes where all of θ is bounded, if the bounds let it; else that is 1."""

CONSTANT = 100
"""Times what a step as long as θ changes: a φ above that is mostly a constant."""

SHARPER = (1e-2, 1e-4)
"""Times the usual error of a gradient, where a line search finds nothing."""


class AbstractOptimizer(eqx.Module):
    """Proposes θ, and tells the loop which of them are steps."""

    @property
    @abstractmethod
    def fraction(self) -> float:
        """The certified error of a gradient, relative to it, that the optimizer works well with."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is, with its settings, as far as they can be told."""

    @abstractmethod
    def init(self, theta: Any) -> Any:
        """The state before the first step: arrays that a checkpoint keeps."""

    @abstractmethod
    def run(self, loop: Loop) -> None:
        """Evaluate and accept until the loop raises `Finished`, or nothing is left to gain."""


class Retreat(eqx.Module):
    """Where a run of SciPy's began, what is left to try if it ends badly, and how many of its
    steps have been accepted."""

    start: Vector
    reach: Float[np.ndarray, ""]
    retreats: Int[np.ndarray, ""]
    sharpenings: Int[np.ndarray, ""]
    accepted: Int[np.ndarray, ""]


class Astray(Exception):
    """A run that is played again asks for other points than it did."""


class LBFGSB(AbstractOptimizer):
    """L-BFGS-B with SciPy's line search: quasi-Newton steps, box bounds, few hypergradients.

    A run that is resumed is first played again from its checkpoint, without a hypergradient: it
    then takes the steps that it would have taken. If more than two million numbers would have to
    be kept for that, it begins at the best θ with an empty memory instead.

    Where the inner side fails at a trial of the line search, a new run begins from the best θ,
    with an empty memory, and does not go as far at first. Where values differ by no more than
    their rounding and their own error, the line search goes by the gradients.

    Parameters
    ----------
    memory : int >= 1
        How many pairs of steps and gradient differences are kept.
    ftol : float
        Stop, with status ok, where a step lowers φ by less than ftol |φ|. 0, the default, leaves
        it to `gtol`.

    References
    ----------
    Byrd, Lu, Nocedal, Zhu (1995); Morales and Nocedal (2011)."""

    memory: int = eqx.field(static=True, default=10)
    ftol: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if not is_whole(self.memory, 1):
            raise ValueError(f"LBFGSB(memory={self.memory!r}) needs an integer memory >= 1.")
        if not self.ftol >= 0:
            raise ValueError(f"LBFGSB(ftol={self.ftol!r}) needs ftol >= 0.")

    @property
    def fraction(self) -> float:
        return 0.01  # differences of gradients make the quasi-Newton matrix

    @property
    def label(self) -> str:
        return f"LBFGSB(memory={self.memory}, ftol={self.ftol})"

    def init(self, theta: Any) -> Retreat:
        return _retreat(as_vector(theta), np.inf, RETREATS, 0)

    def run(self, loop: Loop) -> None:
        if loop.current is None:
            loop.accept(loop.evaluate(loop.start))
        known = loop.best
        if int(loop.optimizer_state.accepted) and not len(loop.tape):
            self._begin(loop, loop.optimizer_state)
        while True:
            assert loop.best is not None
            state, ended = loop.optimizer_state, False
            reach, sharpenings = float(state.reach), int(state.sharpenings)
            try:
                ended = Search(self, loop, known).run()
            except Astray:
                known = loop.best
                self._begin(loop, state)
                continue
            except FailedTrial as failed:
                distance = _distance(as_vector(failed.theta), as_vector(loop.best.theta))
                if not (state.retreats and distance):
                    raise
                loop.failure, known = None, loop.best
                self._begin(loop, state, distance / 4, int(state.retreats) - 1)
                continue
            if _distance(as_vector(loop.best.theta), state.start) >= 0.99 * reach:
                known = loop.best
                self._begin(loop, state, 4 * reach)
            elif ended or sharpenings == len(SHARPER) or not loop.inner.refines:
                return
            else:
                # A line search finds nothing where gradients are too rough for the values.
                known, loop.sharper = None, min(loop.sharper, SHARPER[sharpenings])
                self._begin(loop, state, sharpenings=sharpenings + 1)

    def _begin(
        self,
        loop: Loop,
        state: Retreat,
        reach: float | None = None,
        retreats: int | None = None,
        sharpenings: int | None = None,
    ) -> None:
        """A new run from the best θ."""
        assert loop.best is not None
        loop.tape = Tape(loop.start.size)
        loop.optimizer_state = _retreat(
            as_vector(loop.best.theta),
            float(state.reach) if reach is None else reach,
            int(state.retreats) if retreats is None else retreats,
            int(state.sharpenings) if sharpenings is None else sharpenings,
        )


class Search:
    """One run of SciPy's from where the optimizer's state says, within its `reach`, played again
    from the tape as far as that goes; `known` is the evaluation there, if it is as accurate as
    the rest of the run will be.

    SciPy is told φ without a large constant, in units in which the first gradient has a given
    length: neither a constant in φ nor its unit changes what it does."""

    def __init__(self, optimizer: LBFGSB, loop: Loop, known: Evaluation | None):
        self.optimizer, self.loop, self.known = optimizer, loop, known
        self.unit, self.begin = 1.0, loop.optimizer_state
        self.at: Evaluation | None = None  # where the line search starts, and its value there
        self.value, self.accepted = 0.0, 0
        self.tried: list[tuple[Vector, Evaluation | None, float]] = []

    def run(self) -> bool:
        """Whether it ended well."""
        loop, start, reach = self.loop, self.begin.start, float(self.begin.reach)
        loop.tape.position = 0
        lower = np.maximum(loop.box.lower, start - reach)
        upper = np.minimum(loop.box.upper, start + reach)
        outcome = scipy.optimize.minimize(
            self.evaluate, start, jac=True, method="L-BFGS-B", callback=self.accept,
            bounds=list(zip(lower, upper, strict=True)),
            options=dict(
                maxiter=loop.steps + 1, maxfun=10**9, maxcor=self.optimizer.memory, ftol=0.0,
                gtol=0.0,
            ),
        )  # fmt: skip
        return bool(outcome.success)

    def evaluate(self, theta: Vector) -> tuple[float, Vector]:
        """φ(θ) / unit, but for a constant, and its gradient."""
        if self.loop.tape.playing:
            played = self.loop.tape.play(theta)
            if played is None:
                raise Astray
            found, (value, gradient) = None, played
        else:
            again = self.known is not None and np.array_equal(theta, self.begin.start)
            found = self.known if again else self.loop.evaluate(theta)
            assert found is not None
            value, gradient = self._difference(found), as_vector(found.gradient)
            self.loop.tape.record(theta, value, gradient)
        if not self.tried and not self.accepted:
            self.unit = self._unit(theta, gradient)
        self.tried.append((theta.copy(), found, value))
        return value / self.unit, gradient / self.unit

    def accept(self, intermediate_result: Any) -> None:
        """SciPy took a step."""
        theta = intermediate_result.x
        same = [tried for tried in self.tried if np.array_equal(tried[0], theta)]
        found = same[-1][1] if same else None
        if same:
            self.value = same[-1][2]
        self.accepted += 1
        self.tried.clear()
        if self.accepted <= int(self.begin.accepted):
            self.at = self.loop.current
            return
        found = self.loop.evaluate(theta) if found is None else found
        before, self.at = self.loop.current, found
        self.loop.optimizer_state = eqx.tree_at(
            lambda s: s.accepted, self.begin, np.asarray(self.accepted)
        )
        if before is not None:
            lowered = float(before.value) - float(found.value)
            size = max(abs(float(before.value)), abs(float(found.value)))
            self.loop.settled = lowered <= self.optimizer.ftol * size and self.optimizer.ftol > 0
        self.loop.accept(found)
        if self.loop.settled:
            raise Finished

    def _difference(self, found: Evaluation) -> float:
        """φ(found), but for a constant; its change as the gradients say, ½ (g + g')ᵀ s, where the
        values cannot."""
        if self.at is None:
            self.at, self.value = found, self._origin(found)
            return self.value
        change = float(found.value) - float(self.at.value)
        if abs(change) <= self.loop.judge.noise(self.at, found):
            step = as_vector(found.theta) - as_vector(self.at.theta)
            mean = 0.5 * (as_vector(found.gradient) + as_vector(self.at.gradient))
            change = float(mean @ step)
        return self.value + change

    def _origin(self, found: Evaluation) -> float:
        """φ itself, exact to the last bit also where it goes to zero, unless a constant in it hides
        what a step changes."""
        theta = as_vector(found.theta)
        step = self.loop.judge.slope(found) * (float(np.linalg.norm(theta)) or 1.0)
        value = float(found.value)
        return value if abs(value) <= CONSTANT * step else 0.0

    def _unit(self, theta: Vector, gradient: Vector) -> float:
        size = float(np.linalg.norm(self.loop.box.projected(theta, gradient)))
        return size / FIRST if 0 < size < np.inf else 1.0


def _retreat(start: Vector, reach: float, retreats: int, sharpenings: int) -> Retreat:
    whole = (np.asarray(n) for n in (retreats, sharpenings, 0))
    return Retreat(start, np.asarray(float(reach)), *whole)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b)))


class Optax(AbstractOptimizer):
    """θ ← θ + u, then the nearest θ within the bounds, with updates u from optax."""

    transformation: optax.GradientTransformation

    @property
    def fraction(self) -> float:
        return 0.1

    @property
    def label(self) -> str:
        """Settings hide in closures: the updates for three fixed gradients show them."""
        theta = jnp.linspace(0.5, 1.5, 3)
        state, sizes = tree.as_arrays(self.transformation.init(theta)), []
        for gradient in (theta, -0.1 * theta**2, 10.0 * jnp.cos(theta)):
            moved, state = _update(self._extended(), gradient, state, theta, jnp.ones(()))
            sizes.append(tree.norm(tree.sub(moved, theta)))
            theta = moved
        return f"Optax with steps of {', '.join(f'{float(size):.5g}' for size in sizes)}"

    def init(self, theta: Any) -> Any:
        state = tree.as_arrays(self.transformation.init(theta))
        try:
            eqx.filter_eval_shape(_updated, self._extended(), theta, state, theta, jnp.zeros(()))
        except TypeError as error:
            raise ValueError(
                "This optax transformation cannot make a step from θ, the gradient and the value "
                f"alone ({error}). One with a line search evaluates φ itself: use "
                'optimizer="lbfgs", which has its own.'
            ) from error
        return state

    def run(self, loop: Loop) -> None:
        update = self._extended()
        if loop.current is None:
            loop.accept(loop.evaluate(loop.start))
        while True:
            at = loop.current
            assert at is not None
            theta, loop.optimizer_state = _update(
                update, at.gradient, loop.optimizer_state, at.theta, at.value
            )
            loop.accept(loop.evaluate(loop.box.project(as_vector(theta))))

    def _extended(self) -> Any:
        return optax.with_extra_args_support(self.transformation).update


def _updated(update: Any, gradient: Any, state: Any, theta: Any, value: Any) -> tuple[Any, Any]:
    with jax.numpy_dtype_promotion("standard"):  # optax counts on it
        changes, state = update(gradient, state, theta, value=value)
        return optax.apply_updates(theta, changes), state


_update = eqx.filter_jit(_updated)


def as_optimizer(optimizer: Any) -> AbstractOptimizer:
    """The optimizer that a string, an optax transformation or an `LBFGSB` stands for."""
    if isinstance(optimizer, AbstractOptimizer):
        return optimizer
    if isinstance(optimizer, str) and optimizer == "lbfgs":
        return LBFGSB()
    if isinstance(optimizer, optax.GradientTransformation):
        return Optax(optimizer)
    raise ValueError(
        'optimizer must be "lbfgs", a dargmin.bilevel.LBFGSB or an optax transformation such as '
        f"optax.adam(0.1), but got {optimizer!r}."
    )
