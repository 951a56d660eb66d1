"""What is seen of a fit while it runs: a line on the terminal, and the path of the penalties."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["Watch"]


class Watch:
    """A callback of the estimators, which keeps θ of each outer step on the disk.

    A resumed fit goes on in the same file: of a step that is there twice, the last counts."""

    def __init__(self, path: Path, stages: int, advance: Callable[[str, float], None]):
        self.path, self.stages, self.advance = path, stages, advance
        self.seen: list[str] = []

    def __call__(self, stage: str, solution: Any) -> None:
        if stage not in self.seen:
            self.seen.append(stage)
        history = solution.history
        share = (len(self.seen) - 1 + min(len(history) / 50, 1)) / self.stages
        self.advance(
            f"{stage}: step {len(history) - 1}, validation loss {history['value'][-1]:.6g}, "
            f"gradient {history['gradient_norm'][-1]:.1e} ± {100 * history['error'][-1]:.1g} %",
            min(share, 1.0),
        )
        if stage in ("scalar", "separate"):
            self._keep(stage, len(history) - 1, np.asarray(solution.theta))

    def _keep(self, stage: str, step: int, theta: np.ndarray) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow([stage, step, *map(repr, map(float, theta.ravel()))])

    def thetas(self, stage: str, rows: int) -> np.ndarray:
        """θ after each step of a stage, shape (steps, r, p); θ has r rows."""
        if not self.path.exists():
            return np.empty((0, rows, 0))
        table: Any = pd.read_csv(self.path, header=None)
        table = table[table[0] == stage].drop_duplicates(1, keep="last").sort_values(1)
        values = table.iloc[:, 2:].to_numpy(float)
        return values.reshape(len(values), rows, values.shape[1] // rows)
