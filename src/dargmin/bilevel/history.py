"""What an outer loop went through, step by step."""

from typing import Any

import numpy as np
from jaxtyping import Float

COLUMNS = {
    "step": "number of the outer step; 0 is the start",
    "value": "φ(x, θ)",
    "gradient_norm": "norm of the hypergradient, projected if there are bounds",
    "error": "certified relative error of the hypergradient",
    "inner_cost": "gradients and Hessian-vector products that went into x",
    "adjoint_cost": "Hessian-vector products that went into the adjoint",
    "hypergradients": "how many were computed: in a line search, or to be accurate enough",
    "step_norm": "how far θ moved",
    "effective_start": "inner steps that the warm start was worth; only with inner_steps",
    "time": "seconds since the loop began, the time before a resumption included",
}
"""The columns of a history, and what they mean."""


class History:
    """A table with one row for the start and one for each outer step.

    `history["value"]` is a column, `len(history)` the number of rows, `history.columns` the names;
    `dargmin.bilevel.history.COLUMNS` says what they mean. Costs and hypergradients are those of
    one step; what was not counted is NaN."""

    columns = tuple(COLUMNS)

    def __init__(self, rows: Float[np.ndarray, "rows columns"] | None = None):
        self._rows = [] if rows is None else [tuple(row) for row in rows]

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, which has exactly these columns."""
        self._rows.append(tuple(float(row[name]) for name in self.columns))

    def rows(self) -> Float[np.ndarray, "rows columns"]:
        """The table as one array."""
        return np.asarray(self._rows, float).reshape(-1, len(self.columns))

    def to_dataframe(self) -> Any:
        """The table as a pandas.DataFrame."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "History.to_dataframe needs pandas: pip install 'dargmin[studies]'."
            ) from error
        return pd.DataFrame(self.rows(), columns=list(self.columns)).astype({"step": int})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, name: str) -> Float[np.ndarray, " rows"]:
        if name not in self.columns:
            raise KeyError(f"No column {name!r}. The columns are {', '.join(self.columns)}.")
        return self.rows()[:, self.columns.index(name)]

    def __repr__(self) -> str:
        if not self._rows:
            return "History(empty)"
        value = self["value"]
        return f"History({len(self)} rows, value {value[0]:.6g} -> {value[-1]:.6g})"
