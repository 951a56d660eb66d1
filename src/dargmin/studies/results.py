"""What a study of the curse found: errors at every iteration, burn-ins, modes; and its tables."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

__all__ = ["BurnIn", "CurseStudy", "MethodRun", "ModeError"]

VISIBLE = 1.05
"""A burn-in lower than this, 5 % above the error of returning zero, is called none."""


@dataclass(frozen=True)
class BurnIn:
    """The iterations at which the unrolled derivative is further from the truth than zero is.

    Parameters
    ----------
    height : float
        max_t ‖dw_t - dw*‖ / ‖dw*‖; at least 1, its value at t = 0. Infinite if the method diverged.
    peak : int
        The iteration t at which it is reached.
    end : int or None
        The first t from which on the error stays at or below 1; None if it ends above 1."""

    height: float
    peak: int
    end: int | None

    @property
    def visible(self) -> bool:
        return not self.height < VISIBLE


@dataclass(frozen=True)
class ModeError:
    """One derivative at w_T: its true relative error, and what its certificate says it is."""

    mode: str
    error: float
    estimate: float
    status: str


@dataclass(frozen=True)
class MethodRun:
    """One method's errors, relative to ‖w_0 - w*‖ and ‖dw*‖, at t = 0, ..., T; and modes at w_T.

    `estimates` has (t, what the certificate estimates the unrolled derivative's error to be);
    `predicted` the errors that theory expects of the linear model at w*, where it is small enough
    to be formed, and `bound` the worst case for its constants."""

    key: str
    label: str
    short: str
    iterate_error: Float[np.ndarray, " steps_plus_1"]
    derivative_error: Float[np.ndarray, " steps_plus_1"]
    modes: tuple[ModeError, ...]
    estimates: Float[np.ndarray, "n 2"] | None = None
    predicted: Float[np.ndarray, " steps_plus_1"] | None = None
    bound: Float[np.ndarray, " steps_plus_1"] | None = None

    @functools.cached_property
    def burn_in(self) -> BurnIn:
        return self._burn_in(self.derivative_error)

    @functools.cached_property
    def expected(self) -> BurnIn | None:
        """The burn-in that theory predicts; in the worst case, where it has no more to say."""
        errors = self.bound if self.predicted is None else self.predicted
        return None if errors is None else self._burn_in(errors)

    @property
    def expected_from(self) -> str:
        """What `expected` is the burn-in of."""
        return "worst case" if self.predicted is None else "linear model"

    def _burn_in(self, errors: Float[np.ndarray, " steps_plus_1"]) -> BurnIn:
        errors = np.where(np.isfinite(errors), errors, np.inf)
        peak = int(errors.argmax())
        return BurnIn(float(errors[peak]), peak, self.first_below(1.0, errors))

    def first_below(self, level: float, errors: Float[np.ndarray, " steps_plus_1"]) -> int | None:
        """The first t from which on the errors stay at or below `level`; None if there is none."""
        above = np.flatnonzero(~(errors <= level))
        first = int(above[-1]) + 1 if above.size else 0
        return first if first < errors.size else None


@dataclass(frozen=True)
class CurseStudy:
    """The derivative of fitted coefficients in the log-penalty: every method, every mode.

    Parameters
    ----------
    data, model, start : str
    rows, columns, coefficients : int
        Of the data, and the number of coefficients fitted.
    penalty, mu, L : float
        e^θ, and the constants of strong convexity and smoothness.
    steps, late_start, seed : int
        T; where the late start begins; the seed of a random start.
    drive : float
        ‖dH (w_0 - w*)‖ / (μ ‖dw*‖). At most 1: gradient descent has no burn-in
        (on a quadratic, when dH commutes with H).
    upper_share : float or None
        The share of ‖dw*‖² that belongs to eigenvalues of H(w*) above (μ + L) / 2: where a
        burn-in from zero comes from. None from a random start.
    runs : tuple of MethodRun
    notes : tuple of str
        What was done to the data and the target."""

    data: str
    model: str
    start: str
    rows: int
    columns: int
    coefficients: int
    penalty: float
    mu: float
    L: float
    steps: int
    late_start: int
    seed: int
    drive: float
    upper_share: float | None
    runs: tuple[MethodRun, ...]
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> MethodRun:
        """The run whose burn-in is highest."""
        return max(self.runs, key=lambda run: run.burn_in.height)

    def traces(self) -> pd.DataFrame:
        """One row for each method and iteration."""
        return pd.concat(
            [
                pd.DataFrame(
                    {
                        "method": run.key,
                        "iteration": np.arange(run.iterate_error.size),
                        "iterate_error": run.iterate_error,
                        "derivative_error": run.derivative_error,
                        "predicted": np.nan if run.predicted is None else run.predicted,
                        "worst_case": np.nan if run.bound is None else run.bound,
                    }
                )
                for run in self.runs
            ],
            ignore_index=True,
        )

    def burn_ins(self) -> pd.DataFrame:
        """One row for each method; `end` is missing where the burn-in outlasts the run."""
        return pd.DataFrame(
            {
                "method": run.key,
                "peak_height": run.burn_in.height,
                "peak_iteration": run.burn_in.peak,
                "end": run.burn_in.end,
                "expected_height": np.nan if run.expected is None else run.expected.height,
                "expected_iteration": None if run.expected is None else run.expected.peak,
                "expected_from": "" if run.expected is None else run.expected_from,
                "iterate_error": run.iterate_error[-1],
                "derivative_error": run.derivative_error[-1],
            }
            for run in self.runs
        ).astype({"end": "Int64", "expected_iteration": "Int64"})

    def modes(self) -> pd.DataFrame:
        """One row for each method and mode: true and estimated relative error at w_T."""
        return pd.DataFrame(
            {
                "method": run.key,
                "mode": mode.mode,
                "error": mode.error,
                "estimate": mode.estimate,
                "status": mode.status,
            }
            for run in self.runs
            for mode in run.modes
        )

    def save(self, directory: Path) -> Iterator[Path]:
        """Write the three tables as Parquet and CSV; yields the paths."""
        tables = {"traces": self.traces(), "burn-in": self.burn_ins(), "modes": self.modes()}
        settings = {
            name: getattr(self, name)
            for name in ("data", "model", "penalty", "start", "seed", "steps", "late_start")
        }
        for name, table in tables.items():
            path = directory / f"{self.stem}-{name}.parquet"
            table.assign(**settings).to_parquet(path, index=False)
            yield path
            table.assign(**settings).to_csv(path.with_suffix(".csv"), index=False)
            yield path.with_suffix(".csv")

    @property
    def stem(self) -> str:
        """The beginning of the names of the files."""
        return f"curse-{self.data}-{self.model}"
