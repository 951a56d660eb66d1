"""Columns of a table to features: fill in, encode, scale; and which feature is whose."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from dargmin.studies.data import did_you_mean, listing
from dargmin.studies.errors import DataError
from dargmin.studies.files import read_table
from dargmin.studies.tune.table import Split, as_text

__all__ = ["Encoded", "encode", "read_groups", "unknown_values"]


@dataclass(frozen=True)
class Encoded:
    """The fitted encoding, the features it makes of the rows, and whose they are.

    `columns[j]` is the column of the table that feature j comes from, and `words` the columns of
    text that are used."""

    pipeline: Any
    X: pd.DataFrame
    X_test: pd.DataFrame
    columns: list[str]
    words: list[str]
    notes: list[str]


def encode(split: Split) -> Encoded:
    """Fit the encoding to the rows to learn from.

    Numbers: the median where missing, and a feature that says where. Text: one feature for each
    value (for one of two), missing being a value, and one for all rare values together. All are
    then standardised."""
    rare = min(5, max(1, len(split.X) // 20))
    numbers = SimpleImputer(strategy="median", add_indicator=True)
    words = [c for c in split.words if split.X[c].value_counts(dropna=False).iloc[0] >= rare]
    if not (words or split.numbers):
        raise DataError(
            f"'{split.name}' has no number to learn from, and no text that is in {rare} rows: "
            "add a column."
        )
    parts = [("numbers", numbers, split.numbers)] if split.numbers else []
    parts += [(f"text{i}", _one_hot(rare), [c]) for i, c in enumerate(words)]
    table = ColumnTransformer(parts, verbose_feature_names_out=False, sparse_threshold=0.0)
    steps: Any = [("encode", table), ("varying", VarianceThreshold()), ("scale", StandardScaler())]
    pipeline: Any = Pipeline(steps).set_output(transform="pandas")
    try:
        X = pipeline.fit_transform(split.X)
    except ValueError as error:
        if "not unique" not in str(error):
            raise
        # a column may have the name that another one's value gets
        pipeline.set_params(encode__verbose_feature_names_out=True)
        X = pipeline.fit_transform(split.X)
    columns = np.asarray(_origins(table, split))[pipeline["varying"].get_support()].tolist()
    lost, notes = [c for c in split.words if c not in set(words)], []
    if lost:
        notes.append(
            f"Left out, as text of which no value is in {rare} rows or more: {listing(lost, 4)}."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # values that only held-out rows have
        X_test = pipeline.transform(split.X_test) if len(split.X_test) else X[:0]
    return Encoded(pipeline, X, X_test, columns, words, notes)


def read_groups(groups: str, encoded: Encoded) -> list[str]:
    """The group of each feature: the column it comes from, or what the file says.

    A CSV file with the columns `feature` and `group` names columns of the table, or features; what
    it does not name keeps its own.

    Raises
    ------
    DataError
        If there is no such file, or it names something else."""
    features = [str(name) for name in encoded.X.columns]
    if groups == "auto":
        return encoded.columns
    table, _ = read_table(Path(groups).expanduser())
    if not {"feature", "group"} <= set(table.columns):
        raise DataError(
            f"{groups} must have the columns feature and group, but has {listing(table.columns)}."
        )
    given = {str(f): str(g) for f, g in zip(table["feature"], table["group"], strict=True)}
    known = {*features, *encoded.columns}
    for name in given:
        if name not in known:
            raise DataError(
                f"{groups} names '{name}'{did_you_mean(name, known)}, which is no column in "
                f"use and no feature: these are {listing(features)}."
            )
    return [
        given.get(name, given.get(column, column))
        for name, column in zip(features, encoded.columns, strict=True)
    ]


def unknown_values(pipeline: Any, X: pd.DataFrame) -> dict[str, list[str]]:
    """The values of each text column that the encoding has not seen."""
    found = {}
    for name, part, columns in pipeline["encode"].transformers_:
        if not name.startswith("text"):
            continue
        known = set(part[-1].categories_[0])
        new = [value for value in X[columns[0]].dropna().unique() if value not in known]
        if new:
            found[columns[0]] = new
    return found


def value_name(column: str, value: object) -> str:
    """The name of the feature that is 1 where the column has the value."""
    return f"{column}={'(rare)' if value == 'infrequent_sklearn' else value}"


def filled(table: pd.DataFrame) -> pd.DataFrame:
    """Text, with a word for what is missing."""
    return pd.DataFrame({c: as_text(table[c]).fillna("missing") for c in table}, table.index)


def _one_hot(rare: int) -> Pipeline:
    encoder: Any = OneHotEncoder
    return make_pipeline(
        FunctionTransformer(filled, feature_names_out="one-to-one"),
        encoder(
            handle_unknown="infrequent_if_exist", min_frequency=rare, drop="if_binary",
            sparse_output=False, feature_name_combiner=value_name,
        ),
    )  # fmt: skip


def _origins(table: Any, split: Split) -> list[str]:
    """The column behind each output of the first step."""
    origins = [""] * len(table.get_feature_names_out())
    for name, part, columns in table.transformers_:
        outputs = table.output_indices_[name]
        if name == "numbers":
            flagged = [columns[i] for i in part.indicator_.features_]
            origins[outputs] = [*columns, *flagged]
        elif name.startswith("text"):
            origins[outputs] = [columns[0]] * (outputs.stop - outputs.start)
    return origins
