"""The table that is learnt from: numbers and text told apart, a target that fits the model."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.util import hash_pandas_object
from sklearn.model_selection import train_test_split

from dargmin.studies.data import listing, read_source
from dargmin.studies.errors import DataError
from dargmin.studies.tune.options import Options

__all__ = ["Split", "as_numbers", "as_text", "missing_rows", "read_split"]

_LARGEST = 1e150  # beyond it, squares overflow
_MOST_CLASSES = 100


@dataclass(frozen=True)
class Split:
    """A table, cut into rows to learn from and rows to compare on.

    `X` has the columns `numbers` as float64, NaN where missing, and the columns `words` as text,
    None where missing. `key` is a hash of all of it."""

    name: str
    target: str
    numbers: list[str]
    words: list[str]
    X: pd.DataFrame
    y: np.ndarray
    X_test: pd.DataFrame
    y_test: np.ndarray
    notes: list[str]
    key: str


def read_split(source: str, target: str | None, options: Options) -> Split:
    """Read a table, check it against the model, and hold out rows to compare on.

    Columns that are constant, or all missing, in the rows to learn from are left out.

    Raises
    ------
    DataError
        If the data cannot be used; the message says why, and what to do."""
    name, table, target, notes = read_source(source, target)
    hashed: Any = hash_pandas_object
    key = f"{hashed(table, index=False).sum():x}"
    y = _labels(name, table[target]) if options.classifies else _numbers(name, table[target])
    features = table.drop(columns=target)
    numbers = [c for c in features if _is_number(features[c])]
    words = [c for c in features if c not in set(numbers)]
    X = pd.DataFrame(
        {c: _checked(features[c]) if c in set(numbers) else as_text(features[c]) for c in features},
        index=features.index,
    )
    notes += [note for c in words if (note := _about_words(X[c]))]
    train, test = _split_rows(name, y, options)
    X, X_test = X.iloc[train], X.iloc[test]
    constant = [c for c in X if _is_constant(X[c])]
    if constant:
        plural = "" if len(constant) == 1 else "s"
        notes.append(f"Left out {len(constant)} constant column{plural}: {listing(constant, 4)}.")
    kept = [c for c in X if c not in set(constant)]
    if not kept:
        raise DataError(
            f"'{name}' has no column that varies beside the target '{target}': add at least one."
        )
    numbers, words = ([c for c in kept if c in set(kind)] for kind in (numbers, words))
    return Split(name, target, numbers, words, X[kept], y[train], X_test[kept], y[test], notes, key)


def as_numbers(column: Any) -> Any:
    """Text as numbers, NaN where it is none."""
    return pd.to_numeric(column, errors="coerce")


def as_text(column: Any) -> Any:
    """Values as text, None where missing; whole numbers without a decimal point."""
    missing = column.isna()
    if column.dtype.kind == "f" and not (column.dropna() % 1).any():
        column = column.astype("Int64")
    return column.astype(str).astype(object).where(~missing, None)


def missing_rows(column: Any) -> str:
    """How many values are missing, and the first row where one is."""
    missing = column.isna().to_numpy()
    count = int(missing.sum())
    plural = "" if count == 1 else "s"
    return f"{count} missing value{plural}, the first in row {int(missing.argmax()) + 1}"


def _is_number(column: Any) -> bool:
    """Whether a column is one of numbers; True and False are."""
    if column.dtype.kind in "mMc":
        kind = "complex numbers" if column.dtype.kind == "c" else "dates or times"
        raise DataError(
            f"Column '{column.name}' holds {kind}: turn them into numbers, or remove it."
        )
    return pd.api.types.is_numeric_dtype(column.dtype)


def _checked(column: Any) -> Any:
    values = column.astype("Float64").astype(float)
    if (values.abs() >= _LARGEST).any():
        raise DataError(
            f"Column '{column.name}' has infinite values or ones beyond 1e150: repair or rescale "
            "it."
        )
    return values


def _about_words(column: Any) -> str | None:
    """A note if a column of text is one of numbers but for a few values."""
    values = column.dropna()
    is_text = as_numbers(values).isna()
    if not 0 < is_text.mean() <= 0.2:
        return None
    return (
        f"Column '{column.name}' was read as text, because it holds '{values[is_text].iloc[0]}': "
        "if it is one of numbers, leave such values empty."
    )


def _is_constant(column: Any) -> bool:
    """Whether a column says nothing: one value, up to rounding, and none missing; or all are."""
    values = column.dropna()
    if len(values) == 0:
        return True
    if len(values) < len(column):
        return False
    if column.dtype == object:
        return values.nunique() == 1
    return bool(values.max() - values.min() <= 8 * np.finfo(float).eps * values.abs().max())


def _require_target(name: str, column: Any) -> None:
    if column.isna().any():
        raise DataError(
            f"The target column '{column.name}' of '{name}' has {missing_rows(column)}: fill them "
            "in, or remove those rows."
        )


def _numbers(name: str, column: Any) -> np.ndarray:
    """A target to regress on."""
    _require_target(name, column)
    if not pd.api.types.is_numeric_dtype(column.dtype) or column.dtype.kind == "b":
        raise DataError(
            f"The target column '{column.name}' is not numeric (it holds {str(column.iloc[0])!r}): "
            "use --model logistic for labels, or choose a numeric one with --target."
        )
    y = _checked(column).to_numpy()
    if len(y) and np.ptp(y) == 0:
        raise DataError(
            f"The target column '{column.name}' is constant ({y[0]:g}), so there is nothing to "
            "learn: choose another one with --target."
        )
    return y


def _labels(name: str, column: Any) -> np.ndarray:
    """A target of class labels: text, or whole numbers as they are."""
    _require_target(name, column)
    numeric = pd.api.types.is_numeric_dtype(column.dtype) and column.dtype.kind != "b"
    values = _checked(column) if numeric else as_text(column)
    whole = not numeric or not (values % 1).any()
    count = values.nunique()
    if not whole or count > _MOST_CLASSES:
        kind = "different values" if whole else "values that are not whole numbers"
        raise DataError(
            f"--model logistic needs class labels, but the target column '{column.name}' has "
            f"{count} {kind}: use --model ridge, or choose a label column with --target."
        )
    if count == 1:
        raise DataError(
            f"The target column '{column.name}' has only one class, {column.iloc[0]}, so there is "
            "nothing to tell apart: choose another one with --target."
        )
    return values.to_numpy(dtype=np.int64) if numeric else values.to_numpy(dtype=str)


def _split_rows(name: str, y: np.ndarray, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and rows to compare on; of every class its share."""
    rows, classes = np.arange(len(y)), np.unique(y) if options.classifies else []
    held_out = int(np.ceil(options.test_size * len(y)))
    if len(y) - held_out < 2 * options.cv:
        raise DataError(
            f"'{name}' has {_rows(len(y))}, of which {len(y) - held_out} are left to learn from: "
            f"at least {2 * options.cv} are needed with --cv {options.cv}."
        )
    train, test = rows, rows[:0]
    if held_out:
        if held_out < max(2, len(classes)):
            raise DataError(
                f"--test-size {options.test_size:g} holds out {_rows(held_out)} of {len(y)}, too "
                "few to compare on: raise it, or say --test-size 0."
            )
        _require_rows(y, classes, 2, "to be split")
        train, test = train_test_split(
            rows, test_size=options.test_size, random_state=options.seed,
            stratify=y if options.classifies else None,
        )  # fmt: skip
    _require_rows(y[train], classes, options.cv, f"to learn from, and there are {options.cv} folds")
    return np.sort(train), np.sort(test)


def _require_rows(y: np.ndarray, classes: np.ndarray | list, least: int, purpose: str) -> None:
    for label in classes:
        if (found := int(np.sum(y == label))) < least:
            raise DataError(
                f"Class '{label}' has only {_rows(found)} {purpose}: give at least {least}, or "
                "merge it with another class."
            )


def _rows(count: int) -> str:
    return f"{count} row" + ("" if count == 1 else "s")
