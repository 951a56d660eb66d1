"""The estimators: scikit-learn's rules, scikit-learn's solutions, and penalties that are learnt."""

import pickle
from typing import Any

import jaxtyping
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.linear_model import ElasticNet, LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dargmin.estimators import TunedElasticNet, TunedLogisticRegression, TunedRidge
from dargmin.estimators.design import Design
from dargmin.estimators.folds import Folds
from dargmin.estimators.losses import RowLoss

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.slow
@parametrize_with_checks([TunedRidge(), TunedElasticNet(), TunedLogisticRegression()])
def test_scikit_learn_finds_nothing_to_object_to(estimator: Any, check: Any, request: Any) -> None:
    # Its checks pass nonsense to __init__, which has to wait for fit: only the tests' hook objects.
    jaxtyping.config.update("jaxtyping_disable", True)
    request.addfinalizer(lambda: jaxtyping.config.update("jaxtyping_disable", False))
    check(estimator)


def regression(n: int = 120, d: int = 6, outputs: int | None = None) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)) * np.array([1.0, 1e-3, 1e3, 1.0, 1.0, 1.0])[:d] + 3.0
    W = rng.normal(size=(d, outputs or 1)) / X.std(axis=0)[:, None]
    y = X @ W + rng.normal(size=(n, outputs or 1)) + 5.0
    return X, y if outputs else y[:, 0]


def standard(loader: Any) -> tuple[Any, Any]:
    X, y = loader(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def assert_same_fit(ours: Any, theirs: Any) -> None:
    size = np.abs(theirs.coef_).max()
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=0, atol=1e-6 * (1 + size))


@pytest.mark.parametrize(("outputs", "fit_intercept"), [(None, True), (2, False)])
def test_ridge_has_the_coefficients_of_scikit_learn(outputs: Any, fit_intercept: bool) -> None:
    X, y = regression(outputs=outputs)
    weight = np.random.default_rng(1).uniform(0, 2, len(X))
    ours = TunedRidge(fit_intercept=fit_intercept).fit(X, y, weight)
    theirs = Ridge(ours.penalty_, fit_intercept=fit_intercept, solver="cholesky")
    assert_same_fit(ours, theirs.fit(X, y, weight))
    assert ours.certificate_.ok


@pytest.mark.slow
def test_separate_penalties_are_ridge_on_rescaled_features() -> None:
    X, y = regression()
    ours = TunedRidge("feature", guard=False, max_iter=5).fit(X, y)
    root = np.sqrt(ours.penalty_)
    theirs = Ridge(1.0, solver="svd").fit(X / root, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_ / root, rtol=1e-6)
    assert np.ptp(np.log(ours.penalty_)) > 0.1


@pytest.mark.parametrize("l1_ratio", [None, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_elastic_net_has_the_coefficients_of_scikit_learn(l1_ratio: Any) -> None:
    X, y = standard(load_diabetes)
    ours = TunedElasticNet(l1_ratio=l1_ratio).fit(X, y)
    theirs = ElasticNet(ours.penalty_, l1_ratio=ours.l1_ratio_, tol=1e-14, max_iter=10**6)
    assert_same_fit(ours, theirs.fit(X, y))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_has_the_coefficients_of_scikit_learn(classes: int) -> None:
    X, y = standard(load_wine)
    y = np.array(["a", "b", "c"])[np.minimum(y, classes - 1)]
    y[::10] = "a"  # not separable
    ours = TunedLogisticRegression().fit(X, y)
    theirs = LogisticRegression(C=1 / ours.penalty_, solver="newton-cholesky", tol=1e-12)
    assert_same_fit(ours, theirs.fit(X, y))
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    assert list(ours.classes_) == list(theirs.classes_)


def test_the_penalty_minimises_the_cross_validated_loss_of_scikit_learn() -> None:
    X, y = regression()
    folds = list(KFold(4, shuffle=True, random_state=0).split(X))
    ours = TunedRidge(cv=folds).fit(X, y)

    def loss(scaling: float) -> float:
        errors = []
        for train, valid in folds:
            fit = Ridge(scaling * ours.penalty_, solver="cholesky").fit(X[train], y[train])
            errors.append(mean_squared_error(y[valid], fit.predict(X[valid])))
        return float(np.mean(errors))

    assert ours.value_ == pytest.approx(loss(1.0), rel=1e-6)
    assert loss(1.0) <= min(loss(0.9), loss(1.1))


@pytest.mark.slow
def test_sparse_tables_are_fitted_as_dense_ones_are_and_stay_sparse() -> None:
    rng = np.random.default_rng(0)
    X = sp.random_array((60, 200), density=0.1, rng=rng, format="csr")
    y = np.asarray(X[:, :5].sum(axis=1)) + 0.5 * rng.normal(size=60)
    sparse, dense = TunedRidge().fit(X, y), TunedRidge().fit(X.toarray(), y)
    np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=1e-6 * np.abs(dense.coef_).max())
    np.testing.assert_allclose(sparse.predict(X), dense.predict(X.toarray()), atol=1e-6)
    design = Design.standardise(X, y[:, None], np.ones(60), intercept=True, kind="squared")
    train, _, _ = design.losses(Folds.from_splits(KFold(2).split(np.zeros(60)), 60))
    assert isinstance(train, RowLoss) and not isinstance(train.X, np.ndarray)
    assert train.X.nse < 60 * 200 / 4


def informative_and_noise(informative: int, noise: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(100, informative + noise))
    return X, X[:, :informative].sum(axis=1) + rng.normal(size=100)


def error_on_new_rows(model: Any, informative: int) -> float:
    X = np.random.default_rng(4).normal(size=(1000, model.n_features_in_))
    return mean_squared_error(X[:, :informative].sum(axis=1), model.predict(X))


@pytest.mark.slow
def test_separate_penalties_switch_off_what_is_noise() -> None:
    X, y = informative_and_noise(3, 29)
    one, each = TunedRidge().fit(X, y), TunedRidge("feature").fit(X, y)
    assert each.separate_
    assert error_on_new_rows(each, 3) < 0.9 * error_on_new_rows(one, 3)
    assert np.median(each.penalty_[3:]) > 2 * np.median(each.penalty_[:3])


@pytest.mark.slow
def test_the_guard_keeps_to_one_penalty_where_features_are_alike() -> None:
    X, y = informative_and_noise(32, 0)
    guarded, free = TunedRidge("feature").fit(X, y), TunedRidge("feature", guard=False).fit(X, y)
    assert np.ptp(np.log(guarded.penalty_)) < 0.1 < np.ptp(np.log(free.penalty_))
    assert free.value_ < guarded.value_  # what the folds were fooled by
    assert error_on_new_rows(guarded, 32) < error_on_new_rows(free, 32)


@pytest.mark.slow
def test_groups_share_a_penalty() -> None:
    X, y = informative_and_noise(3, 29)
    groups = np.array(["signal"] * 3 + ["noise"] * 29)
    model = TunedRidge("group", groups=groups).fit(X, y)
    assert len(np.unique(model.penalty_)) == 2
    assert model.penalty_[-1] > 10 * model.penalty_[0]


@pytest.mark.slow
def test_a_loss_that_no_penalty_changes_has_a_gradient_of_zero_and_says_so() -> None:
    # One row trains in each fold: its fit is a constant, whatever the penalty.
    X, y = standard(load_diabetes)
    certificate = TunedRidge(cv=2).fit(X[:2], y[:2]).certificate_
    assert certificate.ok and certificate.error == certificate.gradient_norm == 0


def test_the_unit_of_the_target_does_not_change_the_penalty() -> None:
    X, y = regression()
    one, tiny = TunedRidge().fit(X, y), TunedRidge().fit(X, 1e-12 * y)
    assert tiny.certificate_.ok
    # rounding is different, and a stage ends where a step gains less than 1e-9
    assert tiny.penalty_ == pytest.approx(one.penalty_, rel=1e-3)


@pytest.mark.slow
def test_a_validation_set_decides_and_is_not_fitted() -> None:
    X, y = regression()
    ours = TunedRidge().fit(X[:80], y[:80], validation=(X[80:], y[80:]))
    assert_same_fit(ours, Ridge(ours.penalty_, solver="cholesky").fit(X[:80], y[:80]))
    error = mean_squared_error(y[80:], ours.predict(X[80:]))
    assert ours.value_ == pytest.approx(error, rel=1e-6)


@pytest.mark.slow
def test_the_log_loss_of_a_validation_set_is_that_of_scikit_learn() -> None:
    X, y = standard(load_wine)
    ours = TunedLogisticRegression().fit(X[::2], y[::2], validation=(X[1::2], y[1::2]))
    assert ours.value_ == pytest.approx(log_loss(y[1::2], ours.predict_proba(X[1::2])), rel=1e-6)


def test_it_works_where_scikit_learn_estimators_do() -> None:
    X, y = regression()
    names = list("abcdef")
    pipeline = make_pipeline(StandardScaler(), TunedRidge())
    assert np.min(cross_val_score(pipeline, X, y, cv=3)) > 0.5
    fitted = clone(pipeline).set_output(transform="pandas").fit(pd.DataFrame(X, columns=names), y)
    assert list(fitted[-1].feature_names_in_) == names
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again[-1].coef_, fitted[-1].coef_)
    frame = pl.DataFrame(X, schema=names)
    polars = TunedRidge().fit(frame, y)
    np.testing.assert_allclose(polars.predict(frame), TunedRidge().fit(X, y).predict(X))
    table = pd.DataFrame(polars.history_)
    assert set(table["stage"]) == {"scalar"} and np.all(np.diff(table["value"]) <= 1e-9)


@pytest.mark.slow
def test_a_fit_that_was_interrupted_can_be_used_and_goes_on(tmp_path: Any) -> None:
    X, y = informative_and_noise(3, 29)
    seen = []

    def interrupt(stage: str, solution: Any) -> None:
        seen.append(stage)
        if seen.count("separate") == 3:
            raise KeyboardInterrupt

    model = TunedRidge("feature", guard=False, checkpoint=tmp_path, verbose=interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert model.separate_ and np.all(np.isfinite(model.coef_))
    steps: list[str] = []
    model.set_params(verbose=lambda stage, solution: steps.append(stage)).fit(X, y)
    whole = TunedRidge("feature", guard=False).fit(X, y)
    assert steps.count("scalar") <= 2  # it was done: a look at where it ended
    assert model.value_ == pytest.approx(whole.value_, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TunedRidge("columns"), 'penalty must be "scalar"'),
        (TunedRidge("group"), "needs groups="),
        (TunedRidge("group", groups=[0, 1]), "one label for each of the 6 features"),
        (TunedRidge(groups=[0] * 6), 'needs penalty="group"'),
        (TunedRidge(max_iter=0), "max_iter must be an integer >= 1"),
        (TunedRidge(pull=-1.0), "pull must be a number >= 0"),
        (TunedElasticNet(l1_ratio=0.0), "use TunedRidge"),
        (TunedRidge(cv=[(np.arange(5), np.arange(0))]), "other folds"),
    ],
)
def test_what_is_wrong_is_said(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.fit(*regression())


def test_classes_that_nothing_trains_on_are_named() -> None:
    X, _ = regression(n=20)
    with pytest.raises(ValueError, match="only one class, 'a'"):
        TunedLogisticRegression().fit(X, ["a"] * 20)
    with pytest.raises(ValueError, match="No row of class 'rare'"):
        TunedLogisticRegression(cv=KFold(2)).fit(X, ["rare"] + ["a"] * 10 + ["b"] * 9)
    with pytest.raises(ValueError, match="a class that y has not"):
        TunedLogisticRegression().fit(X, ["a", "b"] * 10, validation=(X, ["c"] * 20))
