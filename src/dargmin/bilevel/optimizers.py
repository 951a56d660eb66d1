"""Outer optimizers: L-BFGS-B from SciPy, and every optax transformation."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from dargmin import tree
from dargmin.bilevel.box import as_vector
from dargmin.bilevel.inner import Evaluation
from dargmin.bilevel.loop import FailedTrial, Loop
from dargmin.modes.base import is_whole


class AbstractOptimizer(eqx.Module):
    """Proposes θ, and tells the loop which of them are steps."""

    @property
    @abstractmethod
    def fraction(self) -> float:
        """The certified error of a gradient, relative to it, that the optimizer works well with."""

    @abstractmethod
    def init(self, theta: Any) -> Any:
        """The state before the first step: arrays that a checkpoint keeps."""

    @abstractmethod
    def run(self, loop: Loop) -> None:
        """Evaluate and accept until the loop raises `Finished`, or nothing is left to gain."""


class LBFGSB(AbstractOptimizer):
    """L-BFGS-B with SciPy's line search: quasi-Newton steps, box bounds, few hypergradients.

    A resumed run begins at the best θ with an empty memory, so that its steps differ from those
    of a run that was not interrupted.

    Where the inner side fails at a trial of the line search, a new run begins from the best θ,
    with an empty memory, and does not go as far at first.

    Parameters
    ----------
    memory : int >= 1
        How many pairs of steps and gradient differences are kept.
    ftol : float
        Stop where a step lowers φ by less than ftol max(|φ|, 1).

    References
    ----------
    Byrd, Lu, Nocedal, Zhu (1995); Morales and Nocedal (2011)."""

    memory: int = eqx.field(static=True, default=10)
    ftol: float = eqx.field(static=True, default=1e-13)

    def __check_init__(self):
        if not is_whole(self.memory, 1):
            raise ValueError(f"LBFGSB(memory={self.memory!r}) needs an integer memory >= 1.")
        if not self.ftol >= 0:
            raise ValueError(f"LBFGSB(ftol={self.ftol!r}) needs ftol >= 0.")

    @property
    def fraction(self) -> float:
        return 0.01  # differences of gradients make the quasi-Newton matrix

    def init(self, theta: Any) -> None:
        return None

    def run(self, loop: Loop) -> None:
        if loop.current is None:
            loop.accept(loop.evaluate(loop.start))
        known, sharper, reach, retreats = loop.best, [1e-2, 1e-4], np.inf, 10
        while True:
            assert loop.best is not None
            start = as_vector(loop.best.theta)
            try:
                ended = self._run_once(loop, known, reach)
            except FailedTrial as failed:
                distance = _distance(as_vector(failed.theta), as_vector(loop.best.theta))
                if not (retreats and distance):
                    raise
                loop.failure, known = None, loop.best
                reach, retreats = distance / 4, retreats - 1
                continue
            if _distance(as_vector(loop.best.theta), start) >= 0.99 * reach:
                known, reach = loop.best, 4 * reach
            elif ended or not (sharper and loop.inner.refines):
                return
            else:
                # A line search finds nothing where gradients are too rough for the values.
                known, loop.sharper = None, min(loop.sharper, sharper.pop(0))

    def _run_once(self, loop: Loop, known: Evaluation | None, reach: float) -> bool:
        """One run of SciPy's from the best θ, within `reach` of it, where `known` is as accurate
        as the rest of the run will be; whether it ended well."""
        assert loop.best is not None
        start = as_vector(loop.best.theta)
        tried: list[tuple[np.ndarray, Evaluation]] = []

        def evaluate(theta: np.ndarray) -> tuple[float, np.ndarray]:
            again = known is not None and np.array_equal(theta, start)
            found = known if again else loop.evaluate(theta)
            assert found is not None
            tried.append((theta.copy(), found))
            return float(found.value), as_vector(found.gradient)

        def accept(intermediate_result: Any) -> None:
            theta = intermediate_result.x
            same = [found for tried_theta, found in tried if np.array_equal(tried_theta, theta)]
            loop.accept(same[-1] if same else loop.evaluate(theta))
            tried.clear()

        lower = np.maximum(loop.box.lower, start - reach)
        upper = np.minimum(loop.box.upper, start + reach)
        outcome = scipy.optimize.minimize(
            evaluate, start, jac=True, method="L-BFGS-B", callback=accept,
            bounds=list(zip(lower, upper, strict=True)),
            options=dict(
                maxiter=loop.steps + 1, maxfun=10**9, maxcor=self.memory, ftol=self.ftol, gtol=0.0
            ),
        )  # fmt: skip
        return bool(outcome.success)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b)))


class Optax(AbstractOptimizer):
    """θ ← θ + u, then the nearest θ within the bounds, with updates u from optax."""

    transformation: optax.GradientTransformation

    @property
    def fraction(self) -> float:
        return 0.1

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
