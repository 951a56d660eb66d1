"""Learnt penalties against searched ones: test loss, time and fits, by nested cross-validation.

    python benchmarks/estimators.py [--out benchmarks/results] [--quick] [--only NAME ...]

Every estimator sees the same standardised training rows, and chooses its penalties by 5 folds of
them; the outer folds only judge. Times are of `fit`; that of the first fold compiles, and is given
apart. A case can be run alone; its rows replace those in the table."""

import argparse
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
import statsmodels.datasets
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.linear_model import (
    ElasticNet,
    ElasticNetCV,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeCV,
)
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import (
    GridSearchCV,
    KFold,
    RandomizedSearchCV,
    StratifiedKFold,
)
from sklearn.preprocessing import StandardScaler

from dargmin.estimators import TunedElasticNet, TunedLogisticRegression, TunedRidge

FOLDS, SEED = 5, 0
ALPHAS = np.logspace(-4, 6, 41)
CS = np.logspace(-5, 4, 19)
RATIOS = [0.1, 0.5, 0.7, 0.9, 0.95, 1.0]
DRAWS = 40
QUICK = ("diabetes", "wine", "irrelevant 200x100")


class Table(NamedTuple):
    X: Any
    y: Any
    groups: Any = None


class Case(NamedTuple):
    """How to load a table, which model, how many outer folds."""

    load: Any
    model: str
    folds: int = 5
    helps: bool = False  # irrelevant or grouped features


def synthetic(n: int, d: int, kind: str, *, binary: bool = False) -> Any:
    """y = Xw + noise (or its sign): w sparse, dense, or nonzero in 2 of 10 groups."""

    def load() -> Table:
        rng = np.random.default_rng(SEED)
        X = rng.normal(size=(n, d))
        w, groups = np.zeros(d), np.arange(d) % 10
        support = {"sparse": slice(d // 10), "dense": slice(d), "grouped": groups < 2}[kind]
        w[support] = rng.normal(size=w[support].shape)
        signal = X @ w / np.linalg.norm(w)
        y = signal + rng.normal(size=n) * (0.5 if not binary else 0.3)
        if kind == "sparse" and not binary:
            X = X * np.exp(rng.normal(size=d) * 2)  # scales over orders of magnitude
        return Table(X, (y > 0).astype(int) if binary else y, groups)

    return load


def bundled(loader: Any) -> Any:
    return lambda: Table(*loader(return_X_y=True))


def with_noise(loader: Any, columns: int) -> Any:
    """A real table, and as many columns of noise."""

    def load() -> Table:
        X, y = loader(return_X_y=True)
        noise = np.random.default_rng(SEED).normal(size=(len(X), columns))
        groups = np.r_[np.zeros(X.shape[1], int), np.ones(columns, int)]
        return Table(np.hstack([X, noise]), y, groups)

    return load


def from_statsmodels(name: str, target: str, *, positive: bool = False) -> Any:
    def load() -> Table:
        frame = getattr(statsmodels.datasets, name).load_pandas().data
        y = frame[target].to_numpy()
        X = frame.drop(columns=target).to_numpy(float)
        return Table(X, (y > 0).astype(int) if positive else y.astype(float))

    return load


CASES = {
    "diabetes": Case(bundled(load_diabetes), "ridge"),
    "diabetes + 50 noise": Case(with_noise(load_diabetes, 50), "ridge", helps=True),
    "randhie": Case(from_statsmodels("randhie", "mdvis"), "ridge", 3),
    "irrelevant 200x100": Case(synthetic(200, 100, "sparse"), "ridge", helps=True),
    "dense 200x60": Case(synthetic(200, 60, "dense"), "ridge"),
    "grouped 300x200": Case(synthetic(300, 200, "grouped"), "ridge", helps=True),
    "irrelevant 1000x2000": Case(synthetic(1000, 2000, "sparse"), "ridge", 3, helps=True),
    "diabetes, elastic net": Case(bundled(load_diabetes), "elastic net"),
    "irrelevant 200x100, elastic net": Case(
        synthetic(200, 100, "sparse"), "elastic net", helps=True
    ),
    "breast_cancer": Case(bundled(load_breast_cancer), "logistic"),
    "breast_cancer + 50 noise": Case(with_noise(load_breast_cancer, 50), "logistic", helps=True),
    "fair": Case(from_statsmodels("fair", "affairs", positive=True), "logistic", 3),
    "wine": Case(bundled(load_wine), "logistic"),
    "digits": Case(bundled(load_digits), "logistic", 3),
    "irrelevant 50000x100": Case(
        synthetic(50_000, 100, "sparse", binary=True), "logistic", 3, helps=True
    ),
}


def estimators(model: str, groups: Any) -> dict[str, Any]:
    """The competitors. Searches refit; fits are counted as folds × candidates + 1."""
    search = dict(cv=FOLDS, scoring="neg_log_loss" if model == "logistic" else None)
    search["scoring"] = search["scoring"] or "neg_mean_squared_error"
    if model == "ridge":
        tuned: Any = TunedRidge
        spread = dict(alpha=scipy.stats.loguniform(ALPHAS[0], ALPHAS[-1]))
        found = {
            "RidgeCV": RidgeCV(ALPHAS),
            "GridSearchCV": GridSearchCV(Ridge(), dict(alpha=ALPHAS), **search),
            "RandomizedSearchCV": RandomizedSearchCV(
                Ridge(), spread, n_iter=DRAWS, random_state=SEED, **search
            ),
        }
    elif model == "elastic net":
        tuned = TunedElasticNet
        long = ElasticNet(max_iter=10_000)
        alphas = np.logspace(-4, 1, 21)
        spread = dict(alpha=scipy.stats.loguniform(1e-4, 10), l1_ratio=RATIOS)
        found = {
            "ElasticNetCV": ElasticNetCV(l1_ratio=RATIOS, cv=FOLDS, max_iter=10_000),
            "GridSearchCV": GridSearchCV(long, dict(alpha=alphas, l1_ratio=RATIOS), **search),
            "RandomizedSearchCV": RandomizedSearchCV(
                long, spread, n_iter=DRAWS, random_state=SEED, **search
            ),
        }
    else:
        tuned = TunedLogisticRegression
        long = LogisticRegression(max_iter=2000)
        spread = dict(C=scipy.stats.loguniform(CS[0], CS[-1]))
        found = {
            "LogisticRegressionCV": LogisticRegressionCV(
                Cs=CS, cv=FOLDS, scoring="neg_log_loss", max_iter=2000, l1_ratios=(0.0,),
                use_legacy_attributes=False,
            ),
            "GridSearchCV": GridSearchCV(long, dict(C=CS), **search),
            "RandomizedSearchCV": RandomizedSearchCV(
                long, spread, n_iter=len(CS), random_state=SEED, **search
            ),
        }  # fmt: skip
    kinds = ["scalar", "feature"] if groups is None else ["scalar", "feature", "group"]
    for kind in kinds:
        labels = groups if kind == "group" else None
        found[f"{tuned.__name__}, {kind}"] = tuned(kind, groups=labels, cv=FOLDS)
    if model == "ridge":
        free = lambda pull: TunedRidge("feature", cv=FOLDS, guard=False, pull=pull)
        found["TunedRidge, feature, no guard"] = free(0.01)
        found["TunedRidge, feature, no guard, no pull"] = free(0.0)
    return found


def fits(estimator: Any) -> float:
    """Inner problems solved, each of one fold (or of all rows)."""
    if isinstance(estimator, GridSearchCV | RandomizedSearchCV):
        return FOLDS * len(estimator.cv_results_["params"]) + 1
    if isinstance(estimator, RidgeCV):
        return 1  # leave-one-out, by one decomposition
    if isinstance(estimator, ElasticNetCV):
        return FOLDS * len(RATIOS) * 100 + 1
    if isinstance(estimator, LogisticRegressionCV):
        return FOLDS * len(CS) + 1
    return float((FOLDS + 1) * (estimator.history_["hypergradients"].sum() + 12))


def run(name: str, case: Case) -> pd.DataFrame:
    """One row for each estimator and outer fold."""
    X, y, groups = case.load()
    classify = case.model == "logistic"
    splitter: Any = (StratifiedKFold if classify else KFold)(
        case.folds, shuffle=True, random_state=SEED
    )
    rows = []
    for fold, (train, test) in enumerate(splitter.split(X, y)):
        scaler = StandardScaler().fit(X[train])
        A, B = scaler.transform(X[train]), scaler.transform(X[test])
        for label, estimator in estimators(case.model, groups).items():
            begin = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                estimator.fit(A, y[train])
            elapsed = time.perf_counter() - begin
            if classify:
                loss = log_loss(y[test], estimator.predict_proba(B), labels=np.unique(y))
            else:
                loss = mean_squared_error(y[test], estimator.predict(B)) / np.var(y[train])
            kept = bool(estimator.separate_) if hasattr(estimator, "separate_") else False
            rows.append((name, case.model, label, fold, loss, elapsed, fits(estimator), kept))
        print(f"{name}, outer fold {fold + 1} of {case.folds}", flush=True)
    columns = ["case", "model", "estimator", "fold", "loss", "seconds", "fits", "separate"]
    return pd.DataFrame(rows, columns=columns)


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each case and estimator: means, and the paired difference from the CV class."""
    rows = []
    for (name, model), part in table.groupby(["case", "model"], sort=False):
        wide = part.pivot(index="fold", columns="estimator", values="loss")
        reference = next(c for c in part["estimator"] if c.endswith("CV"))
        scalar = next(c for c in part["estimator"] if c.endswith(", scalar"))
        for label in part["estimator"].unique():
            mine = part[part["estimator"] == label].sort_values("fold")
            away = wide[label] - wide[scalar]
            rows.append(
                dict(
                    case=name, model=model, estimator=label, loss=wide[label].mean(),
                    to_cv=wide[label].mean() / wide[reference].mean(),
                    to_scalar=wide[label].mean() / wide[scalar].mean(),
                    error=away.std(ddof=1) / np.sqrt(len(away)) / wide[scalar].mean(),
                    first=mine["seconds"].iloc[0], later=mine["seconds"].iloc[1:].median(),
                    fits=mine["fits"].mean(), separate=mine["separate"].mean(),
                )
            )  # fmt: skip
    return pd.DataFrame(rows)


def page(summary: pd.DataFrame) -> str:
    """The table as Markdown, with what it says about the aims."""
    lines = [
        "# Learnt penalties against searched ones", "",
        f"`python benchmarks/estimators.py`, {platform.machine()}, Python "
        f"{platform.python_version()}, scikit-learn {version('scikit-learn')}, jax "
        f"{version('jax')}.", "",
        "Loss on outer folds: mean squared error over the variance of y, or log loss. */CV*: loss "
        "over that of RidgeCV, ElasticNetCV or LogisticRegressionCV. */scalar*: loss over that "
        "of one learnt penalty, ± one standard error of the paired difference. *first*: seconds of "
        "the first fit, with compilation; *later*: of those that follow. *fits*: inner problems "
        "of one fold. *kept*: share of outer folds where separate penalties took any step.", "",
        "| case | estimator | loss | /CV | /scalar | first | later | fits | kept |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in summary.itertuples():
        kept = (
            f"{100 * r.separate:.0f} %"
            if ", feature" in r.estimator or ", group" in r.estimator
            else ""
        )
        lines.append(
            f"| {r.case} | {r.estimator} | {r.loss:.4f} | {r.to_cv:.3f} | {r.to_scalar:.3f} ± "
            f"{r.error:.3f} | {r.first:.2f} | {r.later:.2f} | {r.fits:.0f} | {kept} |"
        )
    return "\n".join([*lines, "", *verdicts(summary), ""])


def verdicts(summary: pd.DataFrame) -> list[str]:
    """What holds of the aims, counted."""
    lines = ["## What it says", ""]
    ends = lambda suffix: summary[summary["estimator"].str.endswith(suffix)]
    scalar = ends(", scalar").set_index("case")
    reference = (
        summary[summary["estimator"].isin(["RidgeCV", "ElasticNetCV", "LogisticRegressionCV"])]
        .set_index("case")
        .loc[scalar.index]
    )
    near = scalar["to_cv"] <= 1.005
    faster, compiled = scalar["first"] <= reference["later"], scalar["later"] <= reference["later"]
    name = lambda index: ", ".join(index) or "none"
    lines += [
        f"- One penalty: within 0.5 % of the CV class, or better, in {near.sum()} of {len(near)} "
        f"cases; not in: {name(near.index[~near])}.",
        f"- One penalty: no slower than the CV class in {faster.sum()} of {len(near)} cases with "
        f"compilation, {compiled.sum()} without; without it, slower in: "
        f"{name(compiled.index[~compiled])}.",
    ]
    for suffix in (", feature", ", group"):
        part = ends(suffix).set_index("case")
        better = part["to_scalar"] < 1
        worse = part["to_scalar"] - 1 > np.maximum(part["error"], 1e-3)
        helped = [c for c in part.index if CASES[c].helps]
        lines.append(
            f"- Separate penalties{suffix}: lower loss than one penalty in "
            f"{better[helped].sum()} of {len(helped)} cases with irrelevant or grouped "
            f"features; worse by more than one standard error, and 0.1 %, in {worse.sum()} of "
            f"{len(part)}: {name(part.index[worse])}."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(CASES))
    options = parser.parse_args()
    chosen = options.only or (QUICK if options.quick else list(CASES))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / ("estimators-quick.csv" if options.quick else "estimators.csv")
    known = pd.read_csv(path) if path.exists() and options.only else None
    for name in chosen:
        found = run(name, CASES[name])
        kept = None if known is None else known[known["case"] != name]
        known = found if kept is None else pd.concat([kept, found], ignore_index=True)
        known.to_csv(path, index=False)
        path.with_suffix(".md").write_text(page(compare(known)), encoding="utf-8")
    print(page(compare(known)))


if __name__ == "__main__":
    main()
