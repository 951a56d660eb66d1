"""The tuned model beside others, on rows that none of them has seen."""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import (
    ElasticNet,
    ElasticNetCV,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeCV,
)

__all__ = ["Compared", "Rival", "compared", "losses", "rivals", "score", "with_one_penalty"]


@dataclass(frozen=True)
class Rival:
    """A model to compare with; `seconds` is how long its fit took."""

    label: str
    model: Any
    seconds: float


@dataclass(frozen=True)
class Compared:
    """What a model does on rows that were held out.

    `difference` is how much larger its mean loss is than that of the tuned model, and
    `standard_error` that of this mean over the rows, each paired with itself."""

    label: str
    loss: float
    score: float
    difference: float
    standard_error: float
    seconds: float

    @property
    def apart(self) -> bool:
        """Whether the difference is more than two standard errors."""
        return abs(self.difference) > 2 * self.standard_error


def rivals(model: str, folds: list, X: Any, y: np.ndarray) -> Iterator[Rival]:
    """Fit the untuned model, and the one with a common penalty chosen from a grid."""
    l1 = [0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0]
    strengths = np.logspace(-6, 2, 25)
    elastic_net: Any = ElasticNetCV
    logistic: Any = LogisticRegressionCV
    pairs: dict[str, list[tuple[str, Any]]] = {
        "ridge": [
            ("Ridge(alpha=1), untuned", Ridge()),
            (
                "RidgeCV, grid search",
                RidgeCV(len(y) * strengths, cv=folds, scoring="neg_mean_squared_error"),
            ),
        ],
        "elastic-net": [
            ("ElasticNet(), untuned", ElasticNet()),
            ("ElasticNetCV, grid search", elastic_net(l1_ratio=l1, cv=folds, max_iter=10_000)),
        ],
        "logistic": [
            ("LogisticRegression(C=1), untuned", LogisticRegression(max_iter=10_000)),
            (
                "LogisticRegressionCV, grid search",
                logistic(
                    Cs=np.logspace(-4, 4, 13), l1_ratios=(0,), cv=folds, max_iter=10_000,
                    scoring="neg_log_loss", use_legacy_attributes=False,
                ),
            ),
        ],
    }  # fmt: skip
    for label, rival in pairs[model]:
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a grid has ends where nothing converges
            rival.fit(X, y)
        yield Rival(label, rival, time.perf_counter() - begin)


def with_one_penalty(
    model: str, penalties: np.ndarray, X: Any, y: np.ndarray, seconds: float
) -> Rival:
    """The model with the common penalty that the first stage learnt.

    With the same penalty scikit-learn's model has the same coefficients.

    Parameters
    ----------
    penalties : array, shape (r,)
        Of the mean loss; that of the l1 norm comes first if r = 2."""
    total, rows = float(penalties.sum()), len(y)
    fit = {
        "ridge": lambda: Ridge(rows * total),
        "logistic": lambda: LogisticRegression(C=1 / (rows * total), max_iter=10_000, tol=1e-8),
        "elastic-net": lambda: ElasticNet(
            total, l1_ratio=float(penalties[0]) / total, max_iter=100_000, tol=1e-8
        ),
    }[model]()
    return Rival("one penalty for all, tuned", fit.fit(X, y), seconds)


def losses(model: Any, X: Any, y: np.ndarray, classifies: bool) -> np.ndarray:
    """The loss of each row: -log of the probability of its class, in nats, or squared error."""
    if not classifies:
        return np.square(model.predict(X) - y)
    at = np.searchsorted(model.classes_, y)
    chance = model.predict_proba(X)[np.arange(len(y)), at]
    return -np.log(np.maximum(chance, np.finfo(float).tiny))


def score(model: Any, X: Any, y: np.ndarray, classifies: bool) -> float:
    """Accuracy, or R²; NaN where y is constant."""
    if classifies:
        return float(np.mean(model.predict(X) == y))
    variance = float(np.var(y))
    return 1 - float(losses(model, X, y, False).mean()) / variance if variance else np.nan


def compared(
    tuned: Rival, others: list[Rival], X: Any, y: np.ndarray, classifies: bool
) -> list[Compared]:
    """The tuned model first, the others as they come."""
    reference = losses(tuned.model, X, y, classifies)
    rows = []
    for rival in [tuned, *others]:
        found = losses(rival.model, X, y, classifies)
        gap = found - reference
        rows.append(
            Compared(
                label=rival.label,
                loss=float(found.mean()),
                score=score(rival.model, X, y, classifies),
                difference=float(gap.mean()),
                standard_error=float(np.std(gap, ddof=1) / np.sqrt(len(y))),
                seconds=rival.seconds,
            )
        )
    return rows
