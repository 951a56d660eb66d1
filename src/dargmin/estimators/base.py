"""What the estimators share: parameters, checks, and the way from a table to a fitted model."""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils.validation import _check_sample_weight, validate_data

from dargmin.estimators.design import Design
from dargmin.estimators.folds import Folds
from dargmin.estimators.tuning import Request, Tuned, Tuner
from dargmin.status import Status, describe

PENALTIES = ("scalar", "feature", "group")


class PenaltyCertificate(NamedTuple):
    """How much of a fit to believe.

    Attributes
    ----------
    error : float
        Estimated relative error of the hypergradient at the penalties; 0 where gradient and error
        are zero but for rounding, as where the loss does not depend on the penalties.
    gradient_norm : float
        Norm of the gradient of the validation loss in the log penalties (projected on their
        bounds), where the tuning ended.
    coefficient_error : float
        Last correction of the fit, relative to its largest coefficient.
    ok : bool
    message : str
        "ok", or what is wrong and what to do."""

    error: float
    gradient_norm: float
    coefficient_error: float
    ok: bool
    message: str


class AbstractTuned(BaseEstimator):
    """A linear model whose penalties are learnt; scikit-learn's conventions throughout.

    A fit stores `penalty_`, `coef_`, `intercept_`, `certificate_`, `history_`, `n_iter_`, `value_`
    (the validation loss), `separate_` (whether penalties of their own were kept) and
    `guard_losses_`."""

    penalty: str
    groups: Any
    cv: Any
    fit_intercept: bool
    max_iter: int
    pull: float
    guard: bool
    checkpoint: Any
    verbose: Any

    @abstractmethod
    def _ratio(self) -> float | None:
        """The share of the l1 norm, or None to learn it."""

    @property
    @abstractmethod
    def _summed(self) -> bool:
        """Whether the penalty counts against the sum of the losses, and not their mean."""

    @abstractmethod
    def _store(
        self, strengths: np.ndarray, weight: float, coef: np.ndarray, intercept: np.ndarray
    ) -> None:
        """Set what was learnt: penalties of the mean loss (one row, or l1 and l2), how much all
        rows weigh, coefficients of shape (d, m) and m intercepts."""

    def _fit(
        self, X: Any, Y: Any, sample_weight: Any, validation: Any, splits: Callable, kind: str
    ) -> None:
        """Learn from checked arrays; Y has one column for each output."""
        self._check_parameters()
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not weight.sum() > 0:
            raise ValueError("All sample weights are zero: give some rows a positive weight.")
        rows = X.shape[0]
        if validation is not None:
            X_valid, Y_valid = validation
            stack = sp.vstack if sp.issparse(X) else np.vstack
            X, Y = stack([X, X_valid]), np.vstack([Y, Y_valid])
            weight = np.concatenate([weight, np.ones(len(Y_valid))])
            folds = Folds.given(rows, len(Y))
        else:
            folds = Folds.from_splits(splits(weight), rows)
        _require_weight(folds, weight)
        with jax.enable_x64(True):
            design = Design.standardise(
                X, Y, weight, intercept=self.fit_intercept, kind=kind, summed=self._summed
            )
            tuner = Tuner(design, folds, self._request(X.shape[1]), self._report())
            try:
                tuned = tuner.run()
            except KeyboardInterrupt as interrupt:
                if isinstance(getattr(interrupt, "result", None), Tuned):
                    self._conclude(interrupt.result, tuner)  # pyright: ignore
                raise
        self._conclude(tuned, tuner)
        if not self.certificate_.ok:
            warnings.warn(self.certificate_.message, ConvergenceWarning, stacklevel=3)

    def _conclude(self, tuned: Tuned, tuner: Tuner) -> None:
        weight = tuner.folds.weights(tuner.design.weight)[0][-1]
        coef, intercept = tuner.design.in_units(tuned.x, weight)
        self.n_iter_ = int(np.sum(tuned.history["step"] > 0))
        self.history_, self.value_ = tuned.history, tuned.value
        self.separate_ = tuned.stage == "separate"
        self.guard_losses_ = tuned.guard_losses
        self.certificate_ = _certificate(tuned)
        theta = tuned.theta[:, tuner.request.groups]  # of each feature
        strengths = np.exp(theta[:, 0] if self.penalty == "scalar" else theta)
        self._store(strengths, float(weight.sum()), coef, intercept)

    def _request(self, features: int) -> Request:
        return Request(
            groups=self._groups(features),
            ratio=self._ratio(),
            steps=self.max_iter,
            pull=self.pull,
            guard=self.guard,
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint),
        )

    def _groups(self, features: int) -> np.ndarray:
        if self.penalty == "scalar":
            return np.zeros(features, int)
        if self.penalty == "feature":
            return np.arange(features)
        if self.groups is None:
            raise ValueError('penalty="group" needs groups=, one label for each feature.')
        labels = np.asarray(self.groups)
        if labels.shape != (features,):
            raise ValueError(
                f"groups must hold one label for each of the {features} features, but has shape "
                f"{labels.shape}."
            )
        return np.unique(labels, return_inverse=True)[1]

    def _check_parameters(self) -> None:
        if self.penalty not in PENALTIES:
            raise ValueError(
                f'penalty must be "scalar", "feature" or "group", but got {self.penalty!r}.'
            )
        if self.groups is not None and self.penalty != "group":
            raise ValueError(f'groups= needs penalty="group", but penalty is {self.penalty!r}.')
        if not isinstance(self.max_iter, Integral) or self.max_iter < 1:
            raise ValueError(f"max_iter must be an integer >= 1, but got {self.max_iter!r}.")
        if not isinstance(self.pull, Real) or not 0 <= self.pull < np.inf:
            raise ValueError(f"pull must be a number >= 0, but got {self.pull!r}.")

    def _report(self) -> Callable | None:
        if callable(self.verbose):
            return self.verbose
        if not self.verbose:
            return None

        def say(stage: str, solution: Any) -> None:
            history = solution.history
            print(
                f"{stage}, step {len(history) - 1}: validation loss {history['value'][-1]:.6g}, "
                f"gradient {history['gradient_norm'][-1]:.1e} ± {100 * history['error'][-1]:.0e} %"
            )

        return say


def _require_weight(folds: Folds, weight: np.ndarray) -> None:
    train, valid = (part.sum(axis=1) for part in folds.weights(weight))
    if np.any(train == 0) or np.any(valid[:-1] == 0):
        raise ValueError(
            "A fold has no row with a positive weight to train on, or none to validate on: choose "
            "other folds with cv=."
        )


FLAT = 1e-3
"""A validation loss that changes by less than that, relatively, for a penalty e times as large."""


ZERO = 1e-10
"""A gradient that is below that share of the loss, as is its error, is zero."""


def _certificate(tuned: Tuned) -> PenaltyCertificate:
    is_one_of = lambda *statuses: any(bool(tuned.status == status) for status in statuses)
    settled = tuned.coefficient_error <= 1e-6
    # Where nothing can be gained any more, no direction of descent can be certified either.
    flat = tuned.gradient_norm <= FLAT * abs(tuned.value)
    # The loss is a sum of squares or of logarithms: it is as large as what cancels in its gradient.
    zero = max(tuned.slope, tuned.slope_error) <= ZERO * abs(tuned.value)
    fine = zero or is_one_of(Status.ok, Status.weakly_active)
    fine = fine or (flat and is_one_of(Status.accuracy_not_reached, Status.steps_spent))
    known = tuned.slope_error <= FLAT * abs(tuned.value) or 3 * tuned.slope_error <= tuned.slope
    ok = settled and fine and known
    failed = Status.accuracy_not_reached if fine else tuned.status
    message = "ok" if ok else describe(failed)
    if not fine and is_one_of(Status.steps_spent):
        message = "max_iter steps were not enough: the loss still falls. Raise max_iter."
    if not settled:
        message = f"The fit has not settled: the last correction was {tuned.coefficient_error:.0e}."
    error = tuned.slope_error / tuned.slope if tuned.slope > 0 else np.inf
    return PenaltyCertificate(
        error=0.0 if zero else error,
        gradient_norm=0.0 if zero else tuned.gradient_norm,
        coefficient_error=tuned.coefficient_error,
        ok=ok,
        message=message,
    )


def checked(estimator: Any, X: Any, y: Any, *, multi_output: bool, numeric: bool) -> tuple:
    """X as float64, dense or CSR, and y, by scikit-learn's rules."""
    found: Any = validate_data(
        estimator, X, y, accept_sparse="csr", dtype=np.float64, multi_output=multi_output,
        y_numeric=numeric,
    )  # fmt: skip
    return found


def checked_validation(estimator: Any, validation: Any, X: Any) -> tuple[Any, np.ndarray] | None:
    """The validation set, like X, which has been checked."""
    if validation is None:
        return None
    try:
        X_valid, y_valid = validation
    except (TypeError, ValueError):
        raise ValueError("validation must be a pair (X_valid, y_valid).") from None
    checked_X: Any = validate_data(
        estimator, X_valid, accept_sparse="csr", dtype=np.float64, reset=False
    )
    X_valid = checked_X
    if sp.issparse(X_valid) != sp.issparse(X):
        raise ValueError("X and the X of the validation set must both be sparse, or both dense.")
    y_valid = np.asarray(y_valid)
    if len(y_valid) != X_valid.shape[0]:
        raise ValueError(
            f"The validation set has {X_valid.shape[0]} rows, but {len(y_valid)} targets."
        )
    return X_valid, y_valid


def splits_of(cv: Any, X: Any, y: Any, *, classifier: bool) -> list:
    """The (train, test) indices of `cv`: an int, a splitter, an iterable, or None for 5 folds."""
    splitter: Any = check_cv(cv, y, classifier=classifier)
    return list(splitter.split(X, y))
