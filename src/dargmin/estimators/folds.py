"""Which rows train and which validate, for all folds at once and for the fit that follows them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Folds:
    """B slots: one for each fold, and a last one that trains on all rows and validates on none.

    Rows that play the same part in every slot share a cell, so that sums over rows need to be
    taken once for each cell.

    Attributes
    ----------
    cell : integer array, shape (n,)
    train, valid : arrays of 0 and 1, shape (B, cells)"""

    cell: Int[np.ndarray, " n"]
    train: Float[np.ndarray, "B cells"]
    valid: Float[np.ndarray, "B cells"]

    @classmethod
    def from_splits(cls, splits: Iterable[tuple[Any, Any]], rows: int) -> "Folds":
        """The folds of pairs (indices that train, indices that validate)."""
        pairs = list(splits)
        parts = np.zeros((2, len(pairs) + 1, rows), np.int8)
        for k, (train, valid) in enumerate(pairs):
            parts[0, k, np.asarray(train)] = 1
            parts[1, k, np.asarray(valid)] = 1
        parts[0, -1] = 1
        return cls.from_membership(parts)

    @classmethod
    def given(cls, train_rows: int, rows: int) -> "Folds":
        """One split: the first rows train, there and in the last slot; the others validate."""
        parts = np.zeros((2, 2, rows), np.int8)
        parts[0, :, :train_rows] = 1
        parts[1, 0, train_rows:] = 1
        return cls.from_membership(parts)

    @classmethod
    def from_membership(cls, parts: Int[np.ndarray, "2 B n"]) -> "Folds":
        """Rows with equal columns of `parts` share a cell."""
        patterns, cell = np.unique(parts.reshape(-1, parts.shape[-1]), axis=1, return_inverse=True)
        train, valid = patterns.astype(float).reshape(2, parts.shape[1], -1)
        return cls(np.ravel(cell), train, valid)

    @property
    def count(self) -> int:
        """How many folds there are, the last slot left out."""
        return len(self.train) - 1

    def without(self, j: int) -> "Folds | None":
        """The same folds where no row that fold j validates on takes any part, but for fold j
        itself, which trains as before and validates on nothing; None if no rows are left to."""
        kept = 1 - self.valid[j]
        train, valid = self.train * kept, self.valid * kept
        valid[j] = 0
        others = [k for k in range(self.count) if k != j]
        if not others or np.any(train @ self.sizes == 0) or not np.any(valid @ self.sizes):
            return None
        return Folds(self.cell, train, valid)

    def only(self, j: int) -> "Folds":
        """The same folds, of which only fold j validates."""
        valid = np.zeros_like(self.valid)
        valid[j] = self.valid[j]
        return Folds(self.cell, self.train, valid)

    @property
    def sizes(self) -> Float[np.ndarray, " cells"]:
        """How many rows each cell has."""
        return np.bincount(self.cell, minlength=self.train.shape[1]).astype(float)

    def weights(
        self, sample_weight: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "B n"], Float[np.ndarray, "B n"]]:
        """The weight of every row in training and in validation, in each slot."""
        return self.train[:, self.cell] * sample_weight, self.valid[:, self.cell] * sample_weight
