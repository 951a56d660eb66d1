"""Real data for a study: load, check, standardise; what is wrong is said in one sentence."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn import datasets

from dargmin.studies.files import DataError, read_table

__all__ = [
    "BUILT_IN",
    "DataError",
    "DataSet",
    "class_indices",
    "load",
    "read_source",
    "regression_target",
    "without_saved_index",
]

BUILT_IN = ("breast_cancer", "diabetes", "digits", "wine")
"""The data sets that come with scikit-learn; no network is used."""

_MOST_CLASSES = 100


@dataclass(frozen=True)
class DataSet:
    """Standardised features X and a target y.

    Parameters
    ----------
    name : str
    X : array, shape (n, d)
        Features, each with mean 0 and standard deviation 1.
    y : array, shape (n,)
        The target as it was given: numbers, or text for class labels.
    features : tuple of str
        The names of the d columns.
    target : str
        The name of the target column.
    notes : tuple of str
        What was done to the data beyond standardising it, in sentences."""

    name: str
    X: Float[np.ndarray, "n d"]
    y: np.ndarray
    features: tuple[str, ...]
    target: str
    notes: tuple[str, ...] = ()


def load(source: str, target: str | None = None, *, drop_constant: bool = False) -> DataSet:
    """Load a built-in data set or a file, and standardise its features.

    Parameters
    ----------
    source : str
        One of `BUILT_IN`, or the path of a CSV, Parquet or libsvm file.
    target : str, optional
        The column to predict. Required for CSV and Parquet files.
    drop_constant : bool
        Drop constant columns of a file, with a note. (Those of built-in sets are always dropped.)

    Raises
    ------
    DataError
        If the data cannot be used; the message says why, and what to do."""
    name, table, target, notes = read_source(source, target)
    return _standardise(name, table, target, notes, drop_constant or source in BUILT_IN)


def read_source(source: str, target: str | None = None) -> tuple[str, pd.DataFrame, str, list[str]]:
    """Read a built-in data set or a file as it is: (name, table, target column, notes).

    Raises
    ------
    DataError
        If it cannot be read, or has no such column."""
    if source in BUILT_IN:
        table, own_target, name = _read_built_in(source), "target", source
    else:
        path = _existing_path(source)
        table, own_target = read_table(path)
        name = path.stem
    table, notes = without_saved_index(table)
    return name, table, _check_target(name, table, target or own_target), notes


def regression_target(data: DataSet) -> tuple[Float[np.ndarray, "n k"], str]:
    """Turn y into numbers to regress on, and say how.

    Numbers, and the two labels of a binary target, become one column with mean 0 and standard
    deviation 1; three labels or more become one centred indicator column for each class.

    Returns
    -------
    Y : array, shape (n, k)
    how : str

    Raises
    ------
    DataError
        If y is text with more than 100 different values."""
    if pd.api.types.is_numeric_dtype(data.y.dtype):
        return _scaled(data.y.astype(float))[:, None], "standardised"
    labels, counted = np.unique(data.y, return_inverse=True)
    if len(labels) > _MOST_CLASSES:
        raise DataError(
            f"The target column '{data.target}' is text with {len(labels)} different values: "
            f"choose a numeric one, or a label with at most {_MOST_CLASSES}, with --target."
        )
    if len(labels) == 2:
        return _scaled(counted.astype(float))[
            :, None
        ], f"{labels[0]} = 0, {labels[1]} = 1, standardised"
    indicators = (counted[:, None] == np.arange(len(labels))).astype(float)
    return indicators - indicators.mean(
        axis=0
    ), f"one centred indicator for each of {len(labels)} classes"


def class_indices(data: DataSet) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Turn y into class indices 0, 1, ..., and name the classes.

    Raises
    ------
    DataError
        If y is no label: numbers that are not whole, or more than 100 different values."""
    labels, counted = np.unique(data.y, return_inverse=True)
    whole = labels.dtype.kind not in "fc" or bool(np.all(labels == np.round(labels)))
    if not whole or len(labels) > _MOST_CLASSES:
        kind = "different values" if whole else "values that are not whole numbers"
        raise DataError(
            f"--model logistic needs class labels, but the target column '{data.target}' has "
            f"{len(labels)} {kind}: use --model ridge, or choose a label column with --target."
        )
    if labels.dtype.kind == "f":
        labels = labels.astype(np.int64)
    return counted.astype(np.int64), tuple(str(label) for label in labels)


def did_you_mean(given: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)` if one of the choices is close to what was given, else nothing."""
    folded = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(given.lower(), list(folded), n=1, cutoff=0.6)
    return f" (did you mean '{folded[close[0]]}'?)" if close else ""


def listing(names: Iterable[str], most: int = 12) -> str:
    """The names, separated by commas; the first `most` of them if there are more."""
    names = list(names)
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def _read_built_in(name: str) -> pd.DataFrame:
    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    if "target_names" not in bunch:
        return bunch.frame
    labels = np.asarray(bunch.target_names).astype(str).astype(object)
    return bunch.frame.assign(target=labels[bunch.target.to_numpy()])


def _existing_path(source: str) -> Path:
    path = Path(source).expanduser()
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path  # opening it says what is wrong with it
    raise DataError(
        f"There is no data set '{source}'{did_you_mean(source, BUILT_IN)}: choose one of "
        f"{listing(BUILT_IN)}, or give the path of a CSV, Parquet or libsvm file."
    )


def _standardise(
    name: str, table: pd.DataFrame, target: str, notes: list[str], drop: bool
) -> DataSet:
    if len(table) < 2:
        raise DataError(
            f"'{name}' has {len(table)} row{'' if len(table) == 1 else 's'} of data: "
            "at least 2 are needed, and many more to mean anything."
        )
    _check_missing(name, table)
    y = _target_values(table[target], target)
    features = table.drop(columns=target)
    _check_numeric(features)
    matrix = features.to_numpy(dtype=np.float64)
    constant = [str(name) for name in features.columns[_is_constant(matrix)]]
    if constant and not drop:
        be, them = ("is", "it") if len(constant) == 1 else ("are", "them")
        raise DataError(
            f"{_columns(constant)} of '{name}' {be} constant and cannot be standardised: "
            f"remove {them}, or pass --drop-constant."
        )
    if constant:
        plural = "" if len(constant) == 1 else "s"
        notes.append(f"Dropped {len(constant)} constant column{plural}: {listing(constant, 4)}.")
        features = features.drop(columns=constant)
        matrix = features.to_numpy(dtype=np.float64)
    if not matrix.shape[1]:
        raise DataError(
            f"'{name}' has no feature column beside the target '{target}': add at least one."
        )
    return DataSet(
        name, _scaled(matrix), y, tuple(map(str, features.columns)), target, tuple(notes)
    )


def without_saved_index(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table without the column that pandas writes for the row numbers, and a note."""
    if "Unnamed: 0" not in table.columns:
        return table, []
    return table.drop(columns="Unnamed: 0"), ["Dropped the first column, which has no name."]


def _check_target(name: str, table: pd.DataFrame, target: str | None) -> str:
    columns = [str(column) for column in table.columns]
    if target is None:
        raise DataError(
            f"Say with --target which column of '{name}' to predict: "
            f"its columns are {listing(columns)}."
        )
    if target not in columns:
        raise DataError(
            f"'{name}' has no column '{target}'{did_you_mean(target, columns)}: "
            f"its columns are {listing(columns)}."
        )
    if columns.count(target) > 1:
        raise DataError(f"'{name}' has {columns.count(target)} columns '{target}': rename them.")
    return target


def _check_missing(name: str, table: pd.DataFrame) -> None:
    missing = table.isna().to_numpy()
    if missing.any():
        columns = [str(c) for c in table.columns[np.flatnonzero(missing.any(axis=0))]]
        count = int(missing.sum())
        raise DataError(
            f"'{name}' has {count} missing value{'' if count == 1 else 's'}, the first in row "
            f"{int(missing.any(axis=1).argmax()) + 1} ({_columns(columns).lower()}): fill them in, "
            "or remove those rows."
        )


def _check_numeric(features: pd.DataFrame) -> None:
    for column in features.columns:
        values = features[column]
        if not pd.api.types.is_numeric_dtype(values.dtype):
            raise DataError(
                f"Column '{column}' is not numeric (it holds {values.iloc[0]!r}): "
                "encode it as numbers, or remove it."
            )
        # beyond 1e150 the squares of the standardisation overflow
        if not np.all(np.abs(values.to_numpy(dtype=np.float64)) < 1e150):
            raise DataError(
                f"Column '{column}' has infinite values or ones beyond 1e150: repair or rescale it."
            )


def _target_values(column: Any, target: str) -> np.ndarray:
    numeric = pd.api.types.is_numeric_dtype(column.dtype)
    is_label = pd.api.types.is_bool_dtype(column.dtype) or not numeric
    y = column.astype(str).to_numpy(dtype=object) if is_label else column.to_numpy()
    if numeric and not is_label and not np.all(np.abs(y) < 1e150):
        raise DataError(f"The target column '{target}' has infinite values: repair it.")
    if len(np.unique(y)) < 2:
        raise DataError(
            f"The target column '{target}' is constant ({y[0]}), so there is nothing to learn: "
            "choose another one with --target."
        )
    return y


def _is_constant(matrix: Float[np.ndarray, "n d"]) -> np.ndarray:
    """Columns that do not vary by more than rounding."""
    spread = matrix.max(axis=0) - matrix.min(axis=0)
    return spread <= 8 * np.finfo(float).eps * np.abs(matrix).max(axis=0)


def _scaled(values: Float[np.ndarray, "n *d"]) -> Float[np.ndarray, "n *d"]:
    centred = values - values.mean(axis=0)
    return centred / centred.std(axis=0)


def _columns(names: list[str]) -> str:
    plural = "Column" if len(names) == 1 else "Columns"
    return f"{plural} {listing([repr(name) for name in names], 6)}"
