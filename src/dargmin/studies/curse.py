"""The curse of unrolling on real data: every method, every mode, iteration by iteration."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dargmin.certificate import certify
from dargmin.diagnose import diagnose
from dargmin.linear import prepare
from dargmin.methods import (
    AbstractMethod,
    Chebyshev,
    GradientDescent,
    HeavyBall,
    Nesterov,
    Sobolev,
)
from dargmin.modes import AbstractFrozenMode, Implicit, LateStart, Neumann
from dargmin.problems import AbstractProblem
from dargmin.solve import solve
from dargmin.status import describe
from dargmin.studies.data import DataSet, did_you_mean, listing
from dargmin.studies.files import DataError
from dargmin.studies.models import MODELS, fit
from dargmin.studies.results import CurseStudy, MethodRun, ModeError
from dargmin.studies.verdict import number

__all__ = ["METHODS", "Options", "study_curse"]


@dataclass(frozen=True)
class MethodChoice:
    """A method by its names, tuned to a spectrum (μ, L)."""

    label: str
    short: str
    tuned: Callable[[float, float], AbstractMethod]


METHODS = {
    "gd": MethodChoice("gradient descent 1/L", "GD 1/L", lambda mu, L: GradientDescent(1 / L)),
    "gd-optimal": MethodChoice(
        "gradient descent 2/(L+μ)", "GD 2/(L+μ)", lambda mu, L: GradientDescent(2 / (L + mu))
    ),
    "heavy-ball": MethodChoice("heavy ball", "Heavy ball", HeavyBall.tuned),
    "nesterov": MethodChoice("Nesterov", "Nesterov", Nesterov.tuned),
    "chebyshev": MethodChoice("Chebyshev", "Chebyshev", Chebyshev),
    "sobolev": MethodChoice("Sobolev", "Sobolev", Sobolev),
}

STARTS = ("random", "zeros")
_PENALTIES = (1e-8, 1e6)
_MOST_STORED = 2e9  # bytes of iterates and derivatives for one method


@dataclass(frozen=True)
class Options:
    """What to study; checked when made.

    Parameters
    ----------
    model : "ridge" or "logistic"
    penalty : float, optional
        e^θ; that of `MODELS` if None.
    steps : int, optional
        T; 5 L/μ, between 50 and 5000, if None: then the burn-in of gradient descent is over.
    methods : tuple of keys of `METHODS`
    start : "random" or "zeros"
    seed : int
    late_start : int, optional
        Where the late start begins; T/2 if None. Neumann gets T - late_start terms.

    Raises
    ------
    DataError
        If one of them cannot be used; the message says why, and what to do."""

    model: str = "ridge"
    penalty: float | None = None
    steps: int | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    start: str = "random"
    seed: int = 0
    late_start: int | None = None

    def __post_init__(self) -> None:
        _choose("--model", self.model, MODELS)
        _choose("--start", self.start, STARTS)
        if not self.methods:
            raise DataError(f"--methods is empty: name some of {listing(METHODS)}, by commas.")
        for method in self.methods:
            _choose("--methods", method, METHODS)
        low, high = _PENALTIES
        if self.penalty is not None and not low <= self.penalty <= high:
            raise DataError(
                f"--penalty must be a number from {number(low)} to {number(high)} (features are "
                f"standardised), but is {self.penalty:g}: try {MODELS[self.model]:g}."
            )
        if self.steps is not None and self.steps < 1:
            raise DataError(
                f"--steps must be at least 1, but is {self.steps}: leave it out, or try 200."
            )
        if not 0 <= self.seed < 2**32:
            raise DataError(f"--seed must be from 0 to 2^32 - 1, but is {self.seed}: try 0.")
        if self.late_start is not None and self.late_start < 0:
            raise DataError(f"--late-start must be at least 0, but is {self.late_start}: try 0.")


def study_curse(
    data: DataSet,
    options: Options,
    advance: Callable[[str, float], None] = lambda what, share: None,
) -> CurseStudy:
    """Run every method on the data, unroll its derivative, and compare the modes at w_T.

    Parameters
    ----------
    data : DataSet
    options : Options
    advance : callable (what is done next, share that is done)
        Called before every stage.

    Returns
    -------
    CurseStudy

    Raises
    ------
    DataError
        If the target does not fit the model, or the study would not fit in memory."""
    advance("fitting", 0.0)
    fitted = fit(data, options.model, math.log(options.penalty or MODELS[options.model]))
    mu, L = fitted.spectrum
    steps, late_start = _horizon(options, L / mu, fitted.solution.size)
    truth = Truth(
        fitted.problem, *map(jnp.asarray, (fitted.theta, fitted.solution, fitted.derivative))
    )
    x0 = _start(options, fitted.solution.shape)
    runs = []
    for done, key in enumerate(options.methods, start=1):
        advance(METHODS[key].label, done / (len(options.methods) + 1))
        runs.append(_run_method(key, METHODS[key].tuned(mu, L), truth, x0, steps, late_start))
    return CurseStudy(
        data=data.name,
        model=options.model,
        start=options.start,
        rows=data.X.shape[0],
        columns=data.X.shape[1],
        coefficients=x0.size,
        penalty=math.exp(fitted.theta),
        mu=mu,
        L=L,
        steps=steps,
        late_start=late_start,
        seed=options.seed,
        drive=truth.drive(x0, mu),
        upper_share=truth.upper_share((mu + L) / 2) if options.start == "zeros" else None,
        runs=tuple(runs),
        notes=(*data.notes, fitted.note),
    )


class Truth(eqx.Module):
    """The problem at one θ with its exact solution w* and derivative dw*/dθ."""

    problem: AbstractProblem
    theta: Float[Array, ""]
    solution: Float[Array, "..."]
    derivative: Float[Array, "..."]

    def drive(self, x0: Float[Array, "..."], mu: float) -> float:
        """‖dH (w_0 - w*)‖ / (μ ‖dw*‖); dH = e^θ I for a ridge penalty."""
        forcing = jnp.exp(self.theta) * jnp.linalg.norm(x0 - self.solution)
        return float(forcing / (mu * jnp.linalg.norm(self.derivative)))

    def upper_share(self, level: float) -> float:
        """The share of ‖dw*‖² in the eigenvectors of H(w*) with eigenvalues above `level`."""
        shape, size = self.solution.shape, self.solution.size

        def gradient(w: Float[Array, " d"]) -> Float[Array, " d"]:
            return self.problem.residual(w.reshape(shape), self.theta).ravel()

        values, vectors = jnp.linalg.eigh(jax.jacfwd(gradient)(self.solution.ravel()))
        parts = jnp.square(vectors.T @ self.derivative.reshape(size))
        return float(jnp.sum(jnp.where(values > level, parts, 0.0)) / jnp.sum(parts))


def _run_method(
    key: str, method: AbstractMethod, truth: Truth, x0: Float[Array, "..."], steps: int, late: int
) -> MethodRun:
    found = diagnose(
        truth.problem, method, x0, truth.theta, steps=steps, tangent=jnp.ones_like(truth.theta),
        truth=(truth.solution, truth.derivative), remedies=False,
    )  # fmt: skip
    last, unrolled = found.last
    derivatives = {
        "unrolled": unrolled,
        "late start": _late_start(truth, method, x0, steps, late),
        "Neumann": _attached(truth, last, Neumann(terms=steps - late, step_size=None)),
        "implicit": _attached(truth, last, Implicit()),
    }
    modes = [_judge(mode, truth, last, dx) for mode, dx in derivatives.items()]
    expected = found.prediction
    return MethodRun(
        key=key,
        label=METHODS[key].label,
        short=METHODS[key].short,
        iterate_error=found.iterate_error,
        derivative_error=found.derivative_error,
        modes=tuple(modes),
        estimates=found.estimates,
        predicted=None if expected is None else _as_array(expected.errors),
        bound=None if expected is None else _as_array(expected.bound),
    )


def _as_array(values: Float[Array, " times"] | None) -> Float[np.ndarray, " times"] | None:
    return None if values is None else np.asarray(values)


@eqx.filter_jit
def _late_start(
    truth: Truth, method: AbstractMethod, x0: Float[Array, "..."], steps: int, start: int
) -> Float[Array, "..."]:
    def last_iterate(theta: Float[Array, ""]) -> Float[Array, "..."]:
        mode = LateStart(start=start)
        return solve(truth.problem, method, x0, theta, steps=steps, mode=mode, throw=False).x

    return jax.jvp(last_iterate, (truth.theta,), (jnp.ones_like(truth.theta),))[1]


@eqx.filter_jit
def _attached(
    truth: Truth, x: Float[Array, "..."], mode: AbstractFrozenMode
) -> Float[Array, "..."]:
    def attached(theta: Float[Array, ""]) -> Float[Array, "..."]:
        return mode.attach(prepare(truth.problem, x, theta), x, theta, False)

    return jax.jvp(attached, (truth.theta,), (jnp.ones_like(truth.theta),))[1]


def _judge(mode: str, truth: Truth, x: Float[Array, "..."], dx: Float[Array, "..."]) -> ModeError:
    certificate = certify(truth.problem, x, truth.theta, tangent=jnp.ones_like(truth.theta), jvp=dx)
    error = jnp.linalg.norm(dx - truth.derivative) / jnp.linalg.norm(truth.derivative)
    return ModeError(mode, float(error), float(certificate.error), describe(certificate.status))


def _horizon(options: Options, condition: float, size: int) -> tuple[int, int]:
    """T and the iteration at which the late start begins."""
    steps = options.steps
    if steps is None:
        steps = min(max(math.ceil(5 * condition), 50), 5000)
    most = int(_MOST_STORED / (16 * size)) - 1
    if steps > most:
        raise DataError(
            f"{steps} steps with {size} coefficients would not fit in memory: lower --steps to "
            f"{most} or less."
        )
    late_start = steps // 2 if options.late_start is None else options.late_start
    if late_start >= steps:
        raise DataError(
            f"--late-start must come before the end, T = {steps}, but is {late_start}: "
            f"try {steps // 2}."
        )
    return steps, late_start


def _start(options: Options, shape: tuple[int, ...]) -> Float[Array, "..."]:
    if options.start == "zeros":
        return jnp.zeros(shape)
    # NumPy's generator: the same numbers whatever the version of jax
    return jnp.asarray(np.random.default_rng(options.seed).standard_normal(shape))


def _choose(option: str, given: str, choices: Iterable[str]) -> None:
    if given not in choices:
        raise DataError(
            f"{option} cannot be '{given}'{did_you_mean(given, choices)}: "
            f"choose from {listing(choices)}."
        )
