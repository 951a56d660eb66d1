"""The ways to a derivative that fit a problem, each run once, with what it gave."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.diagnose import directions
from dargmin.linear import hessian_spectrum, largest_eigenvalue
from dargmin.methods import (
    AbstractMethod,
    Chebyshev,
    ConjugateGradient,
    DerivativeKernel,
    FixedPointIteration,
    FromOptimistix,
    GradientDescent,
    Nesterov,
    ProximalGradient,
    Sobolev,
)
from dargmin.modes import AbstractMode, Implicit, LateStart, Unrolled
from dargmin.problems import AbstractProblem, Composite, FixedPoint, Objective
from dargmin.sensitivity import sensitivity
from dargmin.status import Status, describe, is_ok
from dargmin.theory import LinearModel, budget_step_size, linear_model, optimal_start
from dargmin.trials import Trial, polished_error, run_trials
from dargmin.types import Parameters, Point

STEEPER = 1.2
"""By how much more curvature at x0 than at x* brings candidates that are tuned to it, too."""


NOTHING = 1e-6
"""A derivative that is zero up to an error below this is compared with as zero."""

_USABLE = (Status.ok, Status.accuracy_not_reached, Status.weakly_active)
"""How a pilot may end whose estimated error says how good it is."""


@dataclass(frozen=True)
class Choice:
    """A way to the derivative, with what it gave.

    Attributes
    ----------
    method : AbstractMethod
    mode : AbstractMode
    steps : int
    predicted_error : float
        Relative, of the derivative. Inf where it diverges, NaN where nothing is known.
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
        note = f", {self.note}" if self.note else ""
        what = f"{name(self.method)}{note}; {_mode(self.mode)}"
        error = in_words(self.predicted_error, self.mode)
        return f"{error:>9}  {self.cost:>7}  {in_bytes(self.memory):>8}  {what}"

    __repr__ = __str__


@dataclass(frozen=True)
class Pilot:
    """What a loose solve tells of a problem."""

    x0: Point
    theta: Parameters
    solution: Point
    tangents: Parameters
    derivatives: Point
    products: int  # that a linear solve takes
    known: bool  # whether there is a derivative to compare with
    notes: tuple[str, ...]

    @property
    def floor(self) -> float:
        """Errors below this count as equal: linear solves stop a little before."""
        return 1e-9 if tree.dtype(self.x0) == jnp.float64 else 1e-4

    @classmethod
    def fly(cls, problem: AbstractProblem, x0: Point, theta: Parameters) -> "Pilot":
        """x* and dx*, precise enough to measure candidates by: along every coordinate of a θ of up
        to 4 numbers, else along 4 random directions."""
        tangents, _ = directions(theta, None)
        rtol = 1e-8 if tree.dtype(x0) == jnp.float64 else 1e-3
        found = sensitivity(problem, x0, theta, tangents, rtol=rtol, throw=False)
        errors = found.certificate.absolute_error
        off, scale = float(jnp.linalg.norm(errors)), float(tree.norm(found.tangent))
        usable = any(bool(found.status == status) for status in _USABLE)
        # Up to 1 % it says which candidate is better; dx* = 0 it says up to its own rounding.
        zero = scale == 0 or (off > 0.01 * scale and off + scale < NOTHING)
        known = usable and bool(tree.all_finite(found.tangent)) and (zero or off <= 0.01 * scale)
        derivatives = tree.zeros_like(found.tangent) if zero else found.tangent
        notes = ("dx* = 0: errors are absolute.",) if known and zero else ()
        if not (is_ok(found.status) or (known and found.status != Status.weakly_active)):
            notes = (f"The pilot says: {describe(found.status)}",)
        count = jax.tree.leaves(tangents)[0].shape[0]
        products = max(int(found.cost.products) // (count + 1), 1)
        return cls(x0, theta, found.x, tangents, derivatives, products, known, notes)

    def model(self, problem: AbstractProblem) -> LinearModel | str:
        """The constants of the linear model at x*: see `theory.linear_model`."""
        return linear_model(
            problem, self.x0, self.theta, solution=self.solution, tangents=self.tangents,
            derivatives=self.derivatives,
        )  # fmt: skip

    def run(
        self, problem: AbstractProblem, methods: list[AbstractMethod], steps: int, start: int
    ) -> list[Trial | None]:
        """What each method gives; None where there is nothing to compare it with."""
        if not self.known:
            return [None] * len(methods)
        return [*run_trials(problem, methods, self.x0, self.theta, self.tangents,
                            self.derivatives, steps, start)]  # fmt: skip

    def polished_error(self, problem: AbstractProblem, method: AbstractMethod, steps: int) -> float:
        """The error of the implicit derivative at the corrected x_T; NaN where it is not known."""
        if not self.known:
            return math.nan
        error = polished_error(problem, method, self.x0, self.theta, self.tangents,
                               self.derivatives, steps)  # fmt: skip
        return max(error, self.floor)


def candidates(
    problem: AbstractProblem, pilot: Pilot, size: int, steps: int, unrolled: bool
) -> list[Choice]:
    """Every method that fits the problem, run once, in every mode that makes sense with it."""
    model = pilot.model(problem) if pilot.known else "no derivative to compare with"
    start = steps // 2 if isinstance(model, str) else _late_start(model, steps)
    listed = list(_methods(problem, pilot, steps, model, unrolled))
    trials = pilot.run(problem, [method for method, _ in listed], steps, start)
    return [
        choice
        for (method, note), trial in zip(listed, trials, strict=True)
        for choice in _modes(pilot, size, steps, start, method, note, trial)
        if not unrolled or isinstance(choice.mode, Unrolled)
    ]


def _modes(
    pilot: Pilot, size: int, T: int, start: int, method: AbstractMethod, note: str,
    trial: Trial | None,
) -> Iterator[Choice]:  # fmt: skip
    """A method in every mode, with the errors that its trial had."""
    solve = 2 * pilot.products
    measured = trial is not None
    unknown = Trial(np.full(T, np.nan), math.nan, math.nan, math.nan)
    found = unknown if trial is None else trial
    errors = (found.unrolled[-1], found.late, found.implicit, found.polished)
    unrolled, late, implicit, polished = (max(float(error), pilot.floor) for error in errors)
    base = Choice(method, Unrolled(), T, unrolled, 3 * T, T * size, note, measured)
    at_last = replace(base, mode=Implicit(), cost=T + solve, memory=4 * size)
    yield replace(at_last, predicted_error=implicit)
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


def first_accurate(
    problem: AbstractProblem, pilot: Pilot, size: int, limit: int, rtol: float
) -> list[Choice]:
    """Every method unrolled, up to the first T from which on its error stays <= rtol."""
    listed = list(_methods(problem, pilot, limit, pilot.model(problem), True))
    found = []
    trials = pilot.run(problem, [method for method, _ in listed], limit, 0)
    for (method, note), trial in zip(listed, trials, strict=True):
        above = [] if trial is None else np.flatnonzero(~(trial.unrolled <= rtol))
        T = int(above[-1]) + 2 if len(above) else 1
        if trial is not None and limit >= T:
            error = max(float(trial.unrolled[T - 1]), pilot.floor)
            found.append(Choice(method, Unrolled(), T, error, 3 * T, T * size, note, True))
            kept = 2 * math.isqrt(T) + 2
            sparing = replace(found[-1], mode=Unrolled(checkpoint="sqrt"), cost=4 * T)
            found.append(replace(sparing, memory=kept * size))
    return found


def _methods(
    problem: AbstractProblem, pilot: Pilot, steps: int, model: LinearModel | str, unrolled: bool
) -> Iterator[tuple[AbstractMethod, str]]:
    """First-order methods, one gradient a step, tuned to the spectrum at the pilot's solution."""
    if isinstance(problem, FixedPoint):
        yield FixedPointIteration(), ""
    elif isinstance(problem, Composite):
        yield ProximalGradient(), ""
        yield ProximalGradient(accelerate=False), "plain"
    elif isinstance(problem, Objective):
        quadratic = problem.is_quadratic(pilot.x0, pilot.theta)
        if quadratic and not unrolled:
            yield ConjugateGradient(), ""
        if not isinstance(model, str):
            yield from _tuned(model.mu, model.L, steps)
            steeper = None if quadratic else _steepest(problem, pilot, model.L)
            if steeper is not None:
                yield from _tuned(model.mu, steeper, steps)
        if not quadratic or isinstance(model, str):
            # These need no spectrum, and shorten their steps where they meet more curvature.
            yield GradientDescent(), "h = 1/L̂"
            yield Nesterov.convex(), "h = 1/L̂"
    else:
        yield root_finder(), "a linear solve in each step"
        norm = _jacobian_norm(problem, pilot.solution, pilot.theta)
        if bool(jnp.isfinite(norm) & (norm > 0)):
            yield GradientDescent(1 / norm), "x ← x - hF, h = 1/‖∂ₓF‖"


def _tuned(
    mu: Float[Array, ""], L: Float[Array, ""], steps: int
) -> Iterator[tuple[AbstractMethod, str]]:
    lengths = {
        f"h = {float(h * L):.4g}/L, L = {float(L):.3g}": h  # for μ = L they are one
        for h in (1 / L, budget_step_size(mu, L, steps), 2 / (L + mu))
    }
    yield from ((GradientDescent(h), note) for note, h in lengths.items())
    tuned = f"μ = {float(mu):.3g}, L = {float(L):.3g}"
    for method in (Sobolev, Nesterov.tuned, Chebyshev, DerivativeKernel):
        yield method(mu, L), tuned


def root_finder() -> AbstractMethod:
    """Newton's method for F(x, θ) = 0."""
    return FromOptimistix(optimistix.Newton(rtol=1e-10, atol=1e-10))


@eqx.filter_jit
def _jacobian_norm(problem: AbstractProblem, x: Point, theta: Parameters) -> Float[Array, ""]:
    """‖∂ₓF‖₂, by Lanczos."""
    _, forward = jax.linearize(lambda x: problem.residual(x, theta), x)
    backward = jax.linear_transpose(forward, x)
    return jnp.sqrt(largest_eigenvalue(lambda v: backward(forward(v))[0], x))


def _steepest(problem: Objective, pilot: Pilot, L: Float[Array, ""]) -> Float[Array, ""] | None:
    """The largest eigenvalue at x0, where it is larger than that at x*: the way there is longer
    than a step tuned to x* allows."""
    there = hessian_spectrum(problem, pilot.x0, pilot.theta).L
    return there if bool(jnp.isfinite(there) & (there > STEEPER * L)) else None


def _late_start(model: LinearModel, steps: int) -> int:
    """K*, of the bound for gradient descent with 1/L or the plain fixed-point iteration."""
    A, C = jnp.linalg.norm(model.A), jnp.linalg.norm(model.C)
    rate = 1 - model.mu / model.L
    return int(optimal_start(rate, steps, M=C / model.L, e0=1.0, delta0=A))


def name(method: AbstractMethod) -> str:
    """The method's class."""
    return type(method).__name__


def in_words(error: float, mode: AbstractMode) -> str:
    """Two digits; what is not finite in words."""
    if math.isfinite(error):
        return f"{error:.1e}"
    if math.isnan(error):
        return "?"
    return "fails" if isinstance(mode, Implicit) else "diverges"


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
