"""What `dargmin tune` is asked to do."""

from dataclasses import dataclass
from typing import Any

from dargmin.estimators import TunedElasticNet, TunedLogisticRegression, TunedRidge
from dargmin.studies.data import did_you_mean, listing
from dargmin.studies.errors import DataError

__all__ = ["MODELS", "PENALTIES", "Options", "choose"]

MODELS = {
    "ridge": TunedRidge,
    "logistic": TunedLogisticRegression,
    "elastic-net": TunedElasticNet,
}
PENALTIES = ("scalar", "feature", "group")


@dataclass(frozen=True)
class Options:
    """What to tune; checked when made.

    Parameters
    ----------
    model : key of `MODELS`
    penalty : "scalar", "feature" or "group"
    groups : str
        "auto" (a group for each column of the table) or the path of a CSV file.
    test_size : float in [0, 0.9]
        The share of the rows that is held out to compare on; 0 for none.
    cv : int, >= 2
        How many folds.
    seed : int
        Of the split and the folds.
    max_iter : int, >= 1
        Outer steps of each stage, at most.

    Raises
    ------
    DataError
        If one of them cannot be used; the message says why, and what to do."""

    model: str
    penalty: str = "scalar"
    groups: str = "auto"
    test_size: float = 0.25
    cv: int = 5
    seed: int = 0
    max_iter: int = 100

    def __post_init__(self) -> None:
        choose("--model", self.model, MODELS)
        choose("--penalty", self.penalty, PENALTIES)
        if self.groups != "auto" and self.penalty != "group":
            raise DataError(f"--groups needs --penalty group, but that is '{self.penalty}'.")
        if not 0 <= self.test_size <= 0.9:
            raise DataError(
                f"--test-size is a share of the rows, from 0 to 0.9, but is {self.test_size:g}: "
                "try 0.25, or 0 for no test set."
            )
        if not 2 <= self.cv <= 50:
            raise DataError(f"--cv must be from 2 to 50 folds, but is {self.cv}: try 5.")
        if not 0 <= self.seed < 2**32:
            raise DataError(f"--seed must be from 0 to 2^32 - 1, but is {self.seed}: try 0.")
        if self.max_iter < 1:
            raise DataError(f"--max-iter must be at least 1, but is {self.max_iter}: try 100.")

    @property
    def classifies(self) -> bool:
        return self.model == "logistic"


def choose(option: str, given: str, choices: Any) -> None:
    """Complain if what was given is none of the choices."""
    if given not in choices:
        raise DataError(
            f"{option} cannot be '{given}'{did_you_mean(given, choices)}: "
            f"choose from {listing(choices)}."
        )
