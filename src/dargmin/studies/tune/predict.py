"""Predict with a model that was tuned before."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dargmin.studies.data import listing, without_saved_index
from dargmin.studies.errors import DataError
from dargmin.studies.files import read_table
from dargmin.studies.tune.compare import losses, score
from dargmin.studies.tune.encoding import unknown_values
from dargmin.studies.tune.folder import Folder
from dargmin.studies.tune.table import as_numbers, as_text
from dargmin.studies.verdict import count

__all__ = ["Predictions", "predict"]


@dataclass(frozen=True)
class Predictions:
    """One row for each row of the table, and what there is to say about them."""

    table: pd.DataFrame
    notes: list[str]


def predict(directory: Path, source: Path) -> Predictions:
    """Predict the target of each row of a CSV, Parquet or libsvm file.

    The columns are `prediction`, and for a classifier `probability_<class>`.

    Raises
    ------
    DataError
        If there is no model, or the file lacks a column, or cannot be used."""
    folder = Folder(directory)
    about, pipeline = folder.read(), folder.read_model()
    table, sparse = read_table(source)
    table, notes = without_saved_index(table)
    columns, target = about["columns"], about["arguments"]["target"]
    X = _features(source, table, columns, zeros=sparse is not None)
    if not len(X):
        raise DataError(f"{source} has no rows of data: there is nothing to predict.")
    surplus = [c for c in table.columns if c not in {*X.columns, target}]
    if surplus:
        notes.append(f"Not used by the model: {listing(surplus, 6)}.")
    for column, values in unknown_values(pipeline, X).items():
        names = listing([repr(value) for value in values], 4)
        notes.append(f"Column '{column}' holds what the model has not seen: {names}.")
    if str(source.expanduser().resolve()) == about["arguments"]["table"]:
        notes.append("This is the table that the model was tuned on: its rows are no test.")
    if about["status"] == "interrupted":
        notes.append("The run that made this model was interrupted.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # unknown values, said above
        found = pd.DataFrame({"prediction": pipeline.predict(X)})
        classifies = about["arguments"]["model"] == "logistic"
        if classifies:
            names = [f"probability_{label}" for label in pipeline.classes_]
            found[names] = pipeline.predict_proba(X)
        if target in table.columns:
            notes.append(_judged(pipeline, X, table[target], classifies))
    return Predictions(found, notes)


def _features(
    source: Path, table: pd.DataFrame, columns: dict[str, list[str]], *, zeros: bool
) -> pd.DataFrame:
    """The columns that the model needs; a sparse file may end before those that are zero."""
    needed = [*columns["numbers"], *columns["words"]]
    missing = [c for c in needed if c not in table.columns]
    if missing and not zeros:
        plural = "" if len(missing) == 1 else "s"
        raise DataError(
            f"{source} lacks the column{plural} {listing(missing, 6)}, which the model needs: its "
            f"columns are {listing(table.columns)}."
        )
    table = table.assign(**dict.fromkeys(missing, 0.0))
    return pd.DataFrame(
        {c: _number(source, table[c]) for c in columns["numbers"]}
        | {c: as_text(table[c]) for c in columns["words"]},
        index=table.index,
    )


def _number(source: Path, column: Any) -> Any:
    try:
        return column.astype("Float64" if column.notna().any() else float).astype(float)
    except (ValueError, TypeError):
        text = column.dropna()
        example = text[as_numbers(text).isna()].iloc[0]
        raise DataError(
            f"Column '{column.name}' of {source} must hold numbers, as in training, but holds "
            f"{str(example)!r}."
        ) from None


def _judged(pipeline: Any, X: pd.DataFrame, column: Any, classifies: bool) -> str:
    """How good the predictions are, on the rows whose target is known."""
    known = ~column.isna().to_numpy()
    if classifies:
        text = pipeline.classes_.dtype.kind in "US"
        y = as_text(column).to_numpy() if text else column.to_numpy()
        known = known & np.isin(y, pipeline.classes_)
        y = y[known].astype(pipeline.classes_.dtype)
    else:
        y = as_numbers(column).to_numpy(float)
        known = np.isfinite(y)
        y = y[known]
    if not known.any():
        return f"Column '{column.name}' is there, but holds no target that the model knows."
    rows = X.loc[known]
    loss = float(losses(pipeline, rows, y, classifies).mean())
    names = ("log loss", "accuracy") if classifies else ("mean squared error", "R²")
    return (
        f"On {count(len(y), 'row')} with a known '{column.name}': {names[0]} {loss:.4g}, "
        f"{names[1]} {score(pipeline, rows, y, classifies):.3f}."
    )
