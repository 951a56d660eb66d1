"""TunedRidge, TunedElasticNet, TunedLogisticRegression."""

from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.extmath import safe_sparse_dot, softmax
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from dargmin.estimators.base import (
    AbstractTuned,
    checked,
    checked_validation,
    splits_of,
)


class AbstractTunedRegressor(RegressorMixin, AbstractTuned):
    """y ≈ X coef_ᵀ + intercept_, for one target or several."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None, validation: Any = None) -> Any:
        """Learn the penalties and the coefficients.

        Parameters
        ----------
        X : array, data frame or sparse matrix, shape (n, d)
        y : array, shape (n,) or (n, m)
        sample_weight : array, shape (n,), optional
        validation : (X, y), optional
            Rows to learn the penalties on, instead of folds; the coefficients are fitted without
            them.

        Raises
        ------
        ValueError
            If an argument cannot be used."""
        X, y = checked(self, X, y, multi_output=True, numeric=True)
        y = y.astype(np.float64)
        validation = checked_validation(self, validation, X)
        if validation is not None:
            like = np.asarray(validation[1], float).reshape(-1, *y.shape[1:])
            validation = validation[0], _columns(like)
        splits = lambda weight: splits_of(self.cv, X, y, classifier=False)
        self._many = y.ndim == 2
        self._fit(X, _columns(y), sample_weight, validation, splits, "squared")
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The predictions, shape (n,) or (n, m)."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return safe_sparse_dot(X, self.coef_.T, dense_output=True) + self.intercept_

    def _keep(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        self.coef_ = coef.T if self._many else coef[:, 0]
        self.intercept_ = intercept if self._many else float(intercept[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.multi_output = True
        return tags


class TunedRidge(AbstractTunedRegressor):
    """min_w ‖y - Xw - b‖² + Σ_j α_j w_j², with α learnt by hypergradient.

    α minimises the cross-validated squared error. With the same `penalty_`, scikit-learn's
    `Ridge` has the same coefficients; penalties of their own are those of `Ridge` on features
    divided by √α_j.

    Parameters
    ----------
    penalty : "scalar", "feature" or "group"
        One α for all features, one for each, or one for each group.
    groups : array, shape (d,), optional
        The label of each feature's group.
    cv : int, splitter, iterable of (train, test) or None
        The folds; 5 if None. As everywhere in scikit-learn.
    fit_intercept : bool
    max_iter : int
        Outer steps of each stage, at most.
    pull : float
        How strongly separate penalties are pulled to the best common one:
        ½ pull mean (log α_j - log α)², in units of the validation loss there.
    guard : bool
        Learn separate penalties without each fold first, and see after how many steps the loss of
        that fold is lowest on average: so many steps are then taken, and none if one penalty for
        all is best.
    checkpoint : directory, optional
        Each stage leaves a file there. A fit that was interrupted goes on from it.
    verbose : bool, or callable (stage, BilevelSolution)
        Print a line after each outer step, or call.

    Attributes
    ----------
    penalty_ : float, or array of shape (d,)
        α, as in scikit-learn's `Ridge`: it grows with the number of rows.
    coef_ : array, shape (d,) or (m, d)
    intercept_ : float, or array of shape (m,)
    value_ : float
        The cross-validated mean squared error.
    separate_ : bool
        Whether there are separate penalties: asked for, and not refused by the guard.
    guard_losses_ : array or None
        What the guard saw: the mean squared error of rows that took no part in learning the
        penalties, with one for all and after 1, 2, ... steps of learning separate ones.
    certificate_ : PenaltyCertificate
    history_ : dict of arrays
        One row for each outer step, `stage` and the columns of `dargmin.bilevel.history.COLUMNS`.
    n_iter_ : int
        Outer steps of all stages.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = TunedRidge(penalty="feature").fit(X, y)
    >>> model.coef_.shape
    (10,)
    """

    def __init__(
        self, penalty: str = "scalar", *, groups: Any = None, cv: Any = None,
        fit_intercept: bool = True, max_iter: int = 100, pull: float = 0.01, guard: bool = True,
        checkpoint: Any = None, verbose: Any = False,
    ):  # fmt: skip
        self.penalty = penalty
        self.groups = groups
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.pull = pull
        self.guard = guard
        self.checkpoint = checkpoint
        self.verbose = verbose

    @property
    def _summed(self) -> bool:
        return True

    def _ratio(self) -> float:
        return 0.0

    def _store(
        self, strengths: np.ndarray, weight: float, coef: np.ndarray, intercept: np.ndarray
    ) -> None:
        self.penalty_ = _plain(strengths[0] * weight)
        self._keep(coef, intercept)


class TunedElasticNet(AbstractTunedRegressor):
    """min_w ‖y - Xw - b‖² / 2n + Σ_j α_j (ρ_j |w_j| + ½ (1 - ρ_j) w_j²), α and ρ learnt.

    They minimise the cross-validated squared error. With the same `penalty_` and `l1_ratio_`,
    scikit-learn's `ElasticNet` has the same coefficients.

    Parameters
    ----------
    penalty, groups, cv, fit_intercept, max_iter, pull, guard, checkpoint, verbose
        As in `TunedRidge`.
    l1_ratio : float in (0, 1], optional
        ρ; 1 is the lasso. Learnt, beside α, if None.

    Attributes
    ----------
    penalty_ : float, or array of shape (d,)
        α, as in scikit-learn's `ElasticNet`.
    l1_ratio_ : float, or array of shape (d,)
        ρ.
    coef_, intercept_, value_, separate_, guard_losses_, certificate_, history_, n_iter_
        As in `TunedRidge`."""

    def __init__(
        self, penalty: str = "scalar", *, l1_ratio: float | None = None, groups: Any = None,
        cv: Any = None, fit_intercept: bool = True, max_iter: int = 100, pull: float = 0.01,
        guard: bool = True, checkpoint: Any = None, verbose: Any = False,
    ):  # fmt: skip
        self.penalty = penalty
        self.l1_ratio = l1_ratio
        self.groups = groups
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.pull = pull
        self.guard = guard
        self.checkpoint = checkpoint
        self.verbose = verbose

    @property
    def _summed(self) -> bool:
        return False

    def _ratio(self) -> float | None:
        if self.l1_ratio is None:
            return None
        if not isinstance(self.l1_ratio, Real) or not 0 < self.l1_ratio <= 1:
            raise ValueError(
                f"l1_ratio must lie in (0, 1] or be None, but is {self.l1_ratio!r}. For 0, use "
                "TunedRidge."
            )
        return float(self.l1_ratio)

    def _store(
        self, strengths: np.ndarray, weight: float, coef: np.ndarray, intercept: np.ndarray
    ) -> None:
        self.penalty_, self.l1_ratio_ = _penalty_and_ratio(strengths, self._ratio())
        self._keep(coef, intercept)


class TunedLogisticRegression(ClassifierMixin, AbstractTuned):
    """min_w Σ_i s_i log(1 + exp(-y_i (x_iᵀw + b))) + Σ_j α_j (ρ |w_j| + ½ (1 - ρ) w_j²), α learnt.

    α minimises the cross-validated log loss. Three classes or more: multinomial. With C =
    1 / `penalty_`, scikit-learn's `LogisticRegression` has the same coefficients.

    Parameters
    ----------
    penalty, groups, cv, fit_intercept, max_iter, pull, guard, checkpoint, verbose
        As in `TunedRidge`; integers stand for stratified folds.
    l1_ratio : float in [0, 1], or None
        ρ; learnt, beside α, if None.

    Attributes
    ----------
    classes_ : array, shape (k,)
    penalty_ : float, or array of shape (d,)
        α = 1 / C: it grows with the number of rows.
    l1_ratio_ : float, or array of shape (d,)
        ρ.
    coef_ : array, shape (1, d), or (k, d) if k > 2
    intercept_ : array, shape (1,) or (k,)
    value_ : float
        The cross-validated log loss, in nats.
    separate_, guard_losses_, certificate_, history_, n_iter_
        As in `TunedRidge`."""

    def __init__(
        self, penalty: str = "scalar", *, l1_ratio: float | None = 0.0, groups: Any = None,
        cv: Any = None, fit_intercept: bool = True, max_iter: int = 100, pull: float = 0.01,
        guard: bool = True, checkpoint: Any = None, verbose: Any = False,
    ):  # fmt: skip
        self.penalty = penalty
        self.l1_ratio = l1_ratio
        self.groups = groups
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.pull = pull
        self.guard = guard
        self.checkpoint = checkpoint
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None, validation: Any = None) -> Any:
        """Learn the penalties and the coefficients.

        Parameters
        ----------
        X : array, data frame or sparse matrix, shape (n, d)
        y : array of labels, shape (n,)
        sample_weight, validation
            As in `TunedRidge.fit`.

        Raises
        ------
        ValueError
            If an argument cannot be used, or a fold has no row of some class to train on."""
        X, y = checked(self, X, y, multi_output=False, numeric=False)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y holds only one class, {str(self.classes_[0])!r}: two are needed to tell apart."
            )
        validation = checked_validation(self, validation, X)
        if validation is not None:
            unknown = np.setdiff1d(validation[1], self.classes_)
            if len(unknown):
                name = str(unknown[0])
                raise ValueError(f"The validation set has a class that y has not: {name!r}.")
            known = np.searchsorted(self.classes_, validation[1])
            validation = validation[0], self._indicators(known)

        def splits(weight: np.ndarray) -> list:
            found = splits_of(self.cv, X, labels, classifier=True)
            self._require_all_classes([*(train for train, _ in found), slice(None)], labels, weight)
            return found

        kind = "logistic" if len(self.classes_) == 2 else "softmax"
        self._fit(X, self._indicators(labels), sample_weight, validation, splits, kind)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Xᵢᵀcoef_ + intercept_, shape (n,), or (n, k) if k > 2."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        scores = safe_sparse_dot(X, self.coef_.T, dense_output=True) + self.intercept_
        return scores.ravel() if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row."""
        scores = self.decision_function(X)
        best = (scores > 0).astype(int) if scores.ndim == 1 else np.argmax(scores, axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, shape (n, k)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        return softmax(scores)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Their logarithms."""
        return np.log(self.predict_proba(X))

    def _indicators(self, labels: np.ndarray) -> np.ndarray:
        k = len(self.classes_)
        return labels[:, None].astype(float) if k == 2 else np.eye(k)[labels]

    def _require_all_classes(self, parts: list, labels: np.ndarray, weight: np.ndarray) -> None:
        for rows in parts:
            counts = np.bincount(labels[rows], weight[rows], minlength=len(self.classes_))
            if np.any(counts == 0):
                absent = self.classes_[int(np.argmin(counts))]
                raise ValueError(
                    f"No row of class {str(absent)!r} with a positive weight trains in some fold: "
                    "give more rows of it, or other folds with cv=."
                )

    @property
    def _summed(self) -> bool:
        return True

    def _ratio(self) -> float | None:
        if self.l1_ratio is None:
            return None
        if not isinstance(self.l1_ratio, Real) or not 0 <= self.l1_ratio <= 1:
            raise ValueError(f"l1_ratio must lie in [0, 1] or be None, but is {self.l1_ratio!r}.")
        return float(self.l1_ratio)

    def _store(
        self, strengths: np.ndarray, weight: float, coef: np.ndarray, intercept: np.ndarray
    ) -> None:
        self.penalty_, self.l1_ratio_ = _penalty_and_ratio(strengths * weight, self._ratio())
        self.coef_, self.intercept_ = coef.T, intercept

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _columns(y: np.ndarray) -> np.ndarray:
    return y[:, None] if y.ndim == 1 else y


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value


def _penalty_and_ratio(strengths: np.ndarray, ratio: float | None) -> tuple[Any, Any]:
    """(α, ρ) of α = e^θ with a given ρ, or of the two penalties α ρ and α (1 - ρ)."""
    if ratio is not None:
        return _plain(strengths[0]), ratio
    total = strengths[0] + strengths[1]
    return _plain(total), _plain(strengths[0] / total)
