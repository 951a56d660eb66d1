"""What a run has found, for its tables, figures and summary."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dargmin.studies.tune.compare import Compared

__all__ = ["OFF", "Found"]

OFF = 1e-3
"""Features whose standardised coefficients are smaller than this share of the largest are off."""


@dataclass(frozen=True)
class Found:
    """A tuned model and what there is to say about it.

    `path` holds the penalties after each outer step, shape (steps, p), the first `shared` of them
    those of one penalty for all; `comparison` is empty without a test set."""

    title: str
    model: Any
    features: list[str]
    columns: list[str]
    groups: list[str]
    path: np.ndarray
    shared: int
    comparison: list[Compared]
    notes: list[str]
    about: dict[str, Any]

    @property
    def penalties(self) -> list[str]:
        """The names of the p penalties: features, or groups in the order of the estimators."""
        by_feature = self.about["arguments"]["penalty"] == "feature"
        return self.features if by_feature else sorted(set(self.groups))

    @property
    def classifies(self) -> bool:
        return self.about["arguments"]["model"] == "logistic"

    @property
    def interrupted(self) -> bool:
        return self.about["status"] == "interrupted"

    @property
    def loss(self) -> str:
        return "log loss" if self.classifies else "mean squared error"

    @property
    def sizes(self) -> np.ndarray:
        """The largest coefficient of each feature, of all classes."""
        return np.abs(np.atleast_2d(self.model.coef_)).max(axis=0)

    @property
    def off(self) -> np.ndarray:
        """Whether each feature is switched off."""
        return self.sizes <= OFF * self.sizes.max()

    def coefficients(self) -> pd.DataFrame:
        """One row for each feature; coefficients are those of standardised features."""
        table: dict[str, Any] = {
            "feature": self.features,
            "column": self.columns,
            "group": self.groups,
        }
        table["penalty"] = np.broadcast_to(self.model.penalty_, len(self.features))
        if self.about["arguments"]["model"] == "elastic-net":
            table["l1_ratio"] = np.broadcast_to(self.model.l1_ratio_, len(self.features))
        coef = np.atleast_2d(self.model.coef_)
        if len(coef) == 1:
            table["coefficient"] = coef[0]
        else:
            names = [f"coefficient_{label}" for label in self.model.classes_]
            table |= dict(zip(names, coef, strict=True))
        return pd.DataFrame(table).assign(switched_off=self.off)
