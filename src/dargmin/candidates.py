"""The ways to a derivative that fit a problem, with what theory expects of each."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dargmin import tree
from dargmin.diagnose import derivative_in_mode, directions
from dargmin.methods import (
    AbstractMethod,
    Chebyshev,
    ConjugateGradient,
    DerivativeKernel,
    FixedPointIteration,
    GradientDescent,
    Nesterov,
    ProximalGradient,
    Sobolev,
)
from dargmin.modes import AbstractMode, Implicit, LateStart, Unrolled
from dargmin.problems import AbstractProblem, Composite, FixedPoint, Objective
from dargmin.sensitivity import sensitivity
from dargmin.status import describe, is_ok
from dargmin.theory import budget_step_size, optimal_start, predict
from dargmin.types import Parameters, Point


@dataclass(frozen=True)
class Choice:
    """A way to the derivative, with what theory expects of it.

    Attributes
    ----------
    method : AbstractMethod
    mode : AbstractMode
    steps : int
    predicted_error : float
        Relative, of the derivative; NaN where nothing is known.
    cost : int
        Gradient-equivalents of value and derivative in reverse mode: a step is one gradient, its
        transpose two, and a Hessian-vector product two.
    memory : int
        Bytes that reverse mode keeps.
    note : str
    measured : bool
        Whether the error was measured in a run, along the pilot's directions."""

    method: AbstractMethod
    mode: AbstractMode
    steps: int
    predicted_error: float
    cost: int
    memory: int
    note: str = ""
    measured: bool = False

    def __str__(self) -> str:
        error = "?" if math.isnan(self.predicted_error) else f"{self.predicted_error:.1e}"
        error += "*" if self.measured else " "
        note = f", {self.note}" if self.note else ""
        what = f"{name(self.method)}{note}; {_mode(self.mode)}"
        return f"{error:>9}  {self.cost:>7}  {in_bytes(self.memory):>8}  {what}"


@dataclass(frozen=True)
class Pilot:
    """What a loose solve tells of a problem."""

    x0: Point
    theta: Parameters
    solution: Point
    tangents: Parameters
    derivatives: Point
    steps: int
    products: int  # that a linear solve takes
    notes: tuple[str, ...]

    @property
    def floor(self) -> float:
        """Errors below this count as equal: linear solves stop a little before."""
        return 1e-9 if tree.dtype(self.x0) == jnp.float64 else 1e-4

    @classmethod
    def fly(cls, problem: AbstractProblem, x0: Point, theta: Parameters, steps: int) -> "Pilot":
        """x* and dx*, precise enough to measure candidates by: along every coordinate of a θ of up
        to 4 numbers, else along 4 random directions."""
        tangents, _ = directions(theta, None)
        rtol = 1e-8 if tree.dtype(x0) == jnp.float64 else 1e-3
        found = sensitivity(problem, x0, theta, tangents, rtol=rtol, throw=False)
        notes = () if is_ok(found.status) else (f"the pilot says: {describe(found.status)}",)
        count = jax.tree.leaves(tangents)[0].shape[0]
        products = max(int(found.cost.products) // (count + 1), 1)
        return cls(x0, theta, found.x, tangents, found.tangent, steps, products, notes)

    def predict(self, problem: AbstractProblem, method: AbstractMethod) -> Any:
        """What theory expects of the method's derivative along θ̇: see `theory.predict`."""
        return predict(
            problem, method, self.x0, self.theta, solution=self.solution, tangents=self.tangents,
            derivatives=self.derivatives, steps=self.steps,
        )  # fmt: skip

    def measure(self, problem: AbstractProblem, choice: Choice) -> float:
        """The error of a choice's derivative, from a run."""
        mode = Unrolled() if isinstance(choice.mode, Unrolled) else choice.mode
        dx, _ = derivative_in_mode(
            problem, choice.method, self.x0, self.theta, self.tangents, self.steps, mode
        )
        scale = float(jnp.linalg.norm(jax.vmap(tree.norm)(self.derivatives)))
        error = jnp.linalg.norm(jax.vmap(tree.norm)(tree.sub(dx, self.derivatives)))
        return max(float(error) / (scale or 1.0), self.floor)


def candidates(problem: AbstractProblem, pilot: Pilot, size: int) -> Iterator[Choice]:
    """Every method that fits the problem, in every mode that makes sense with it.

    Where theory is silent, or has bounds only, each is run once, and its error measured. So is a
    corrected implicit derivative off the quadratics: all that theory has is a rule of thumb."""
    rough = not is_quadratic(problem, pilot)
    for method, note in _methods(problem, pilot):
        found = pilot.predict(problem, method)
        silent = isinstance(found, str) and not isinstance(method, ConjugateGradient)
        silent |= isinstance(problem, FixedPoint)
        for choice in _modes(problem, pilot, size, method, found, note):
            if silent or (rough and choice.mode == Implicit(polish=True)):
                error = pilot.measure(problem, choice)
                choice = replace(choice, predicted_error=error, measured=True)
            yield choice


def _modes(
    problem: AbstractProblem, pilot: Pilot, size: int, method: AbstractMethod, found: Any, note: str
) -> Iterator[Choice]:
    """A method in every mode, with the errors that `found` predicts."""
    unrolled = implicit = late = math.nan
    start = pilot.steps // 2
    if not isinstance(found, str) and found.A > 0:
        errors = found.bound if found.errors is None else found.errors
        unrolled = float(errors[-1] / found.A)
        implicit = float(found.implicit[-1] / found.A)
        start, late = _late_start(found, pilot.steps, unrolled)
    elif isinstance(method, ConjugateGradient):
        done = pilot.steps >= min(pilot.products, tree.size(pilot.x0))
        implicit = pilot.floor if done else math.nan
    exact = is_quadratic(problem, pilot)
    polished = pilot.floor if exact else max(implicit**2, pilot.floor)
    T, solve = pilot.steps, 2 * pilot.products
    base = Choice(method, Unrolled(), T, max(unrolled, pilot.floor), 3 * T, T * size, note)
    at_last = replace(base, mode=Implicit(), cost=T + solve, memory=4 * size)
    yield replace(at_last, predicted_error=max(implicit, pilot.floor))
    corrected = Implicit(polish=True)
    yield replace(at_last, mode=corrected, predicted_error=polished, cost=T + 2 * solve)
    if isinstance(method, ConjugateGradient):
        return
    yield base
    kept = 2 * math.isqrt(T) + 2
    yield replace(base, mode=Unrolled(checkpoint="sqrt"), cost=4 * T, memory=kept * size)
    if 0 < start < T:
        kept = T - start
        late_start = replace(base, mode=LateStart(start=start), predicted_error=late)
        yield replace(late_start, cost=T + 2 * kept, memory=kept * size)


def first_accurate(problem: AbstractProblem, pilot: Pilot, size: int, rtol: float) -> list[Choice]:
    """Every method unrolled, up to the first T from which on its predicted error is <= rtol."""
    found = []
    for method, note in _methods(problem, pilot):
        expected = pilot.predict(problem, method)
        if isinstance(expected, str) or not expected.A > 0:
            continue
        errors = expected.bound if expected.errors is None else expected.errors
        rounding = jnp.finfo(errors.dtype).eps * expected.L / expected.mu
        relative = np.asarray(jnp.maximum(errors / expected.A, rounding))
        above = np.flatnonzero(~(relative <= rtol))
        T = int(above[-1]) + 1 if above.size else 1
        if relative.size > T:
            error = max(float(relative[T]), pilot.floor)
            found.append(Choice(method, Unrolled(), T, error, 3 * T, T * size, note))
            kept = 2 * math.isqrt(T) + 2
            sparing = replace(found[-1], mode=Unrolled(checkpoint="sqrt"), cost=4 * T)
            found.append(replace(sparing, memory=kept * size))
    return found


def _methods(problem: AbstractProblem, pilot: Pilot) -> Iterator[tuple[AbstractMethod, str]]:
    """First-order methods, one gradient a step, tuned to the spectrum at the pilot's solution."""
    if isinstance(problem, FixedPoint):
        yield FixedPointIteration(), ""
    elif isinstance(problem, Composite):
        yield ProximalGradient(), ""
        yield ProximalGradient(accelerate=False), "plain"
    elif isinstance(problem, Objective):
        if is_quadratic(problem, pilot):
            yield ConjugateGradient(), ""
        found = pilot.predict(problem, GradientDescent(1.0))
        if isinstance(found, str):
            yield Nesterov.convex(), found
            return
        mu, L = found.mu, found.L
        for h in (1 / L, budget_step_size(mu, L, pilot.steps), 2 / (L + mu)):
            yield GradientDescent(h), f"h = {float(h * L):.4g}/L"
        tuned = f"μ = {float(mu):.3g}, L = {float(L):.3g}"
        yield Sobolev(mu, L), tuned
        yield Nesterov.tuned(mu, L), tuned
        yield Chebyshev(mu, L), tuned
        yield DerivativeKernel(mu, L), tuned
    else:
        yield GradientDescent(), "no theory for roots"


def is_quadratic(problem: AbstractProblem, pilot: Pilot) -> bool:
    """Whether theory's linear model is exact."""
    return isinstance(problem, Objective) and problem.is_quadratic(pilot.x0, pilot.theta)


def _late_start(found: Any, steps: int, unrolled: float) -> tuple[int, float]:
    """K*, and the bound of a derivative that starts there."""
    rate = 1 - found.mu / found.L
    constants = dict(M=found.C / found.L, e0=1.0, delta0=found.A)
    start = int(optimal_start(rate, steps, **constants))
    left = steps - start
    drift = left * float(rate) ** max(steps - 1, 0) * float(found.C / found.L / found.A)
    return start, min(float(rate) ** left + drift, max(unrolled, float(rate) ** left))


def name(method: AbstractMethod) -> str:
    """The method's class."""
    return type(method).__name__


def _mode(mode: AbstractMode) -> str:
    if isinstance(mode, Implicit):
        return "Implicit(polish=True)" if mode.polish else "Implicit()"
    if isinstance(mode, LateStart):
        return f"LateStart(start={mode.start})"
    return 'Unrolled(checkpoint="sqrt")' if mode == Unrolled(checkpoint="sqrt") else "Unrolled()"


def in_bytes(memory: int | float) -> str:
    """Three digits and a unit."""
    for unit in ("B", "kB", "MB"):
        if memory < 1000:
            return f"{memory:.3g} {unit}"
        memory /= 1000
    return f"{memory:.3g} GB"
