"""Diagnosis: what was found about unrolling on a problem, in numbers, words and a figure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dargmin.methods import AbstractMethod
from dargmin.status import is_ok
from dargmin.theory import BurnIn, Prediction, burn_in
from dargmin.types import Point

VISIBLE = 1.05
"""A burn-in lower than this, 5 % above the error of returning zero, is called none."""

_MISSING = "Diagnosis.{} needs {}: pip install 'dargmin[studies]'."


class Remedy(NamedTuple):
    """Another way to a derivative after as many steps, and its true relative error."""

    name: str
    error: float
    note: str


@dataclass(frozen=True)
class Diagnosis:
    """The curse of unrolling, measured on one problem, explained, and compared.

    Errors of the derivative are relative to ‖dx*‖: 1 is the error of returning zero.

    Attributes
    ----------
    method : AbstractMethod
    iterate_error, derivative_error : arrays, shape (T + 1,)
        ‖x_t - x*‖ / ‖x_0 - x*‖ and ‖dx_t - dx*‖ / ‖dx*‖; over several directions, in the 2-norm.
    estimates : array, shape (n, 2)
        (t, what the certificate estimates derivative_error[t] to be), at some t.
    burn_in : BurnIn
        peak (its t), height, and length: the first t from which on the error stays below that of
        returning zero; T + 1 if there is none.
    prediction : Prediction, or None where there is none; see `notes`
        In units of ‖dx*‖ too.
    remedies : tuple of Remedy
        What a late start, a warm start, another step size and an implicit solve give.
    solution, derivatives : pytrees
        x*, and dx* with a leading axis for the directions.
    last : (pytree like x0, pytree like derivatives)
        x_T and the unrolled dx_T; without the directions' axis if the tangent had none.
    directions : int
    truth_error : float
        The estimated relative error of the dx* that all is compared with.
    status : Status
        Whether that is known well enough to judge by.
    notes : tuple of str"""

    method: AbstractMethod
    iterate_error: Float[np.ndarray, " times"]
    derivative_error: Float[np.ndarray, " times"]
    estimates: Float[np.ndarray, "n 2"]
    burn_in: BurnIn
    prediction: Prediction | None
    remedies: tuple[Remedy, ...]
    solution: Point
    derivatives: Point
    last: tuple[Point, Point]
    directions: int
    truth_error: float
    status: Any
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """T."""
        return self.iterate_error.size - 1

    @property
    def ok(self) -> bool:
        """Whether the truth that the errors are measured against could be found."""
        return bool(is_ok(self.status))

    @property
    def has_burn_in(self) -> bool:
        """Whether the derivative gets visibly worse than returning zero."""
        return not float(self.burn_in.height) < VISIBLE

    def __str__(self) -> str:
        return "\n".join(_summary(self))

    __repr__ = __str__

    def to_dataframe(self) -> Any:
        """One row for each t: iterate_error, derivative_error, estimate, predicted, bound.

        Raises
        ------
        ImportError
            Without pandas; `pip install "dargmin[studies]"` brings it."""
        try:
            import pandas as pd
        except ImportError:
            raise ImportError(_MISSING.format("to_dataframe", "pandas")) from None
        estimate = np.full(self.steps + 1, np.nan)
        estimate[self.estimates[:, 0].astype(int)] = self.estimates[:, 1]
        table = pd.DataFrame(
            {
                "t": np.arange(self.steps + 1),
                "iterate_error": self.iterate_error,
                "derivative_error": self.derivative_error,
                "estimate": estimate,
            }
        )
        p = self.prediction
        missing = np.full(self.steps + 1, np.nan)
        table["predicted"] = missing if p is None or p.errors is None else np.asarray(p.errors)
        table["bound"] = missing if p is None else np.asarray(p.bound)
        return table

    def plot(self, ax: Any = None) -> Any:
        """Draw measured and predicted errors against t; returns the matplotlib Axes.

        Raises
        ------
        ImportError
            Without matplotlib; `pip install "dargmin[studies]"` brings it."""
        if ax is None:
            try:
                import matplotlib.pyplot as plt
            except ImportError:
                raise ImportError(_MISSING.format("plot", "matplotlib")) from None
            ax = plt.subplots(figsize=(7, 4.2), layout="constrained")[1]
        t = np.arange(1, self.steps + 1)
        ax.axhline(1, color="0.6", lw=0.8)
        ax.plot(t, self.iterate_error[1:], color="0.45", lw=1.2, label="iterate")
        ax.plot(t, self.derivative_error[1:], color="#D55E00", lw=2.5, label="unrolled derivative")
        if self.prediction is not None:
            p = self.prediction
            if p.errors is not None:
                dashed = dict(color="black", lw=1.1, ls=(0, (4, 3)), label="predicted")
                ax.plot(t, np.asarray(p.errors)[1:], **dashed)
            ax.plot(t, np.asarray(p.bound)[1:], color="black", lw=0.8, ls=":", label="worst case")
        usable = self.estimates[self.estimates[:, 0] > 0]
        ax.plot(*usable.T, "|", color="#0072B2", ms=11, mew=1.6, label="certificate's estimate")
        top = max(
            np.nanmax(np.where(np.isfinite(self.derivative_error), self.derivative_error, 1)), 1
        )
        ax.set(xscale="log", yscale="log", xlabel="iteration t", ylabel="relative error")
        ax.set_ylim(max(ax.get_ylim()[0], 1e-8), 30 * top)
        ax.set_title(f"{_name(self.method)}: {_finding(self)}", loc="left")
        ax.legend(frameon=False)
        return ax


def _name(method: AbstractMethod) -> str:
    return type(method).__name__


def _finding(d: Diagnosis) -> str:
    if not d.ok:
        return "no truth to judge by"
    height = float(d.burn_in.height)
    if not math.isfinite(height):
        return "diverges"
    if not d.has_burn_in:
        return "no burn-in"
    return f"burn-in, {height:.3g} times as wrong as returning zero at t = {int(d.burn_in.peak)}"


def _summary(d: Diagnosis) -> Iterator[str]:
    yield f"{_name(d.method)}, {d.steps} steps: {_finding(d)}."
    yield f"  iterate       {d.iterate_error[-1]:.2g} of its first error, after {d.steps} steps"
    yield f"  derivative    {d.derivative_error[-1]:.2g}, where 1 is the error of returning zero"
    if d.has_burn_in and math.isfinite(float(d.burn_in.height)):
        length = int(d.burn_in.length)
        over = f"over at t = {length}" if length <= d.steps else "not over"
        yield f"  measured      {_words(d.burn_in, over)}"
    if (p := d.prediction) is not None:
        if p.errors is not None:
            yield f"  predicted     {_words(burn_in(p.errors))}, {p.errors[-1]:.2g} at the end"
        yield f"  worst case    {_words(burn_in(p.bound))}, {p.bound[-1]:.2g} at the end"
        constants = f"μ = {float(p.mu):.3g}, L = {float(p.L):.3g}, ‖dx*‖ = {float(p.A):.3g}"
        yield f"  constants     {constants}, ‖dH(x0 - x*)‖ = {float(p.C):.3g}"
    ratio = _estimate_ratio(d)
    if ratio is not None:
        times = len(d.estimates)
        yield f"  certificate   within a factor {ratio:.2f} of the true error, at {times} times"
    if d.remedies:
        yield "  instead"
    for name, error, note in d.remedies:
        yield f"    {name:<19} {error:<8.2g} {note}"
    for note in d.notes:
        yield f"  note: {note}"


def _words(b: BurnIn, more: str = "") -> str:
    if float(b.height) < VISIBLE:
        return "no burn-in"
    return f"{float(b.height):.3g} at t = {int(b.peak)}" + (f", {more}" if more else "")


def _estimate_ratio(d: Diagnosis) -> float | None:
    """How far the certificate's estimates are off at most, where there is an error to estimate."""
    t = d.estimates[:, 0].astype(int)
    truth, estimate = d.derivative_error[t], d.estimates[:, 1]
    floor = max(1e-9, 10 * d.truth_error)
    seen = np.isfinite(truth) & (truth > floor) & np.isfinite(estimate) & (estimate > 0)
    if not seen.any():
        return None
    return float(np.exp(np.max(np.abs(np.log(estimate[seen] / truth[seen])))))
