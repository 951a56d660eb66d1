"""One line on the terminal, for runs that take longer than a moment."""

import functools
import importlib.util
import sys
import time
from typing import Any

PATIENCE = 1.5
"""Seconds before anything is shown."""

WIDTH = 78
"""Of a line: with the spinner it fits on 80 columns."""


@functools.cache
def console() -> Any:
    """The console of all progress: lines that share one are drawn below each other."""
    from rich.console import Console

    return Console(stderr=True)


class Display:
    """Value, certified error and cost so far; nothing without rich, or where no one looks on."""

    def __init__(self, steps: int):
        self.steps = steps
        self.begin = time.perf_counter()
        self.cost = 0.0
        self.line: Any = None
        self.usable = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None

    def show(self, row: dict[str, Any]) -> None:
        """The last row of the history."""
        self.cost += row["inner_cost"] + max(row["adjoint_cost"], 0.0)
        if not self.usable or time.perf_counter() - self.begin < PATIENCE:
            return
        text = (
            f"step {row['step']:.0f}/{self.steps}  value {row['value']:.5g}  "
            f"gradient {row['gradient_norm']:.0e}  error {row['error']:.0e}  "
            f"cost {self.cost:.2g}"
        )
        text = text[:WIDTH]
        if self.line is None:
            self.line = console().status(text)
            self.line.start()
        self.line.update(text)

    def close(self) -> None:
        if self.line is not None:
            self.line.stop()
