"""What a line search was told: played again, it takes the same steps."""

import numpy as np
from jaxtyping import Float

from dargmin.bilevel.box import Vector

MOST_NUMBERS = 2**21
"""In a tape. A run that is longer is forgotten, and one that is resumed begins anew."""


class Tape:
    """The points θ, values and gradients of one run of an optimizer, in order.

    Parameters
    ----------
    size : int
        Of θ.
    rows : array, shape (n, 1 + 2 size), optional
        What an interrupted run left, to be played first."""

    def __init__(self, size: int, rows: Float[np.ndarray, "n width"] | None = None):
        self.size, self.position, self.forgotten = size, 0, False
        self._rows = [] if rows is None else list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def playing(self) -> bool:
        """Whether there is more to play."""
        return self.position < len(self._rows)

    def play(self, theta: Vector) -> tuple[float, Vector] | None:
        """Value and gradient at θ, or None if that is not the point that was recorded."""
        row = self._rows[self.position]
        self.position += 1
        if not np.array_equal(row[1 : self.size + 1], theta):
            return None
        return float(row[0]), row[self.size + 1 :].copy()

    def record(self, theta: Vector, value: float, gradient: Vector) -> None:
        """Add what was found at θ."""
        self.position += 1
        self.forgotten = self.forgotten or self.position * (1 + 2 * self.size) > MOST_NUMBERS
        if self.forgotten:
            self._rows = []
        else:
            self._rows.append(np.concatenate([[value], theta, gradient]))

    def rows(self) -> Float[np.ndarray, "n width"]:
        """All of it as one array."""
        return np.asarray(self._rows, float).reshape(-1, 1 + 2 * self.size)
