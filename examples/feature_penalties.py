"""A penalty for each feature: when can a data set pay for that many hyperparameters?
==================================================================================

::

    min_θ φ(w*₁(θ), ..., w*₅(θ)),   w*ₖ(θ) = argmin_w (1/2nₖ) ‖Xₖ w - yₖ‖² + ½ Σⱼ e^θⱼ wⱼ²,

where w*ₖ is fitted without fold k and φ is the mean of the folds' errors: the five-fold
cross-validated error of ridge regression, minimised over all the penalties at once by L-BFGS-B from
certified hypergradients, starting from the best single penalty. Then all rows are fitted with them.

::

    python examples/feature_penalties.py [--out dargmin-out] [--quick]

Mean squared test errors at full size (means of ten seeds; about two minutes of CPU)::

                              10 useful features, 40 useless       diabetes + 40 of noise
    rows                        60    120    240    480    960       110    220    330
    one penalty (RidgeCV)     2.11   1.50   1.26   1.10   1.06     0.662  0.605  0.596
    lasso (LassoCV)           1.54   1.25   1.13   1.06   1.03     0.599  0.554  0.545
    a penalty for each        2.31   1.41   1.17   1.06   1.04     0.744  0.600  0.569
      cross-validated         0.58   0.91   0.96   0.98   1.01     0.403  0.467  0.478

With about as many rows as features, 50 penalties overfit the folds: the cross-validated error that
they minimise is far below the test error, which is worse than that of one penalty. With more rows
they beat one penalty (from 120 rows here, from 220 to 330 there) and come close to the lasso, which
stays ahead: it has one hyperparameter, and such data are what it is made for. About half of the
features are shut out (θ > 5). Certified relative errors of the hypergradients are at most 0.8 %.
Test rows are used for this table alone.

References
----------
Foo, Do, Ng (2007), "Efficient multiple hyperparameter learning for log-linear models"; Poon, Peyré
(2021), arXiv:2106.01429, for what smooth bilevel programs have to do with the lasso."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV, RidgeCV

import dargmin
from dargmin import bilevel

FOLDS, BOUND = 5, 6.0  # -6 <= θ <= 6; features have variance 1, so that e⁶ leaves 1/400 of them
SINGLE = np.linspace(-BOUND, BOUND, 49)
COLORS = {"one penalty": "#6b7280", "lasso": "#0072B2", "a penalty for each": "#D55E00"}
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Squares(eqx.Module):
    """Σₖ (1/2nₖ) ‖Xₖ wₖ - yₖ‖², where wₖ is row k of w, by Gram matrices: nₖ costs nothing."""

    XX: jax.Array
    Xy: jax.Array
    yy: jax.Array

    def __init__(self, X: np.ndarray, y: np.ndarray, folds: list[np.ndarray]):
        mean = lambda product: jnp.asarray([product(X[k], y[k]) / len(k) for k in folds])
        self.XX = mean(lambda X, y: X.T @ X)
        self.Xy = mean(lambda X, y: X.T @ y)
        self.yy = mean(lambda X, y: y @ y)

    def __call__(self, w: jax.Array, theta: Any) -> jax.Array:
        quadratic = jnp.einsum("ki,kij,kj->", w, self.XX, w)
        return 0.5 * quadratic - jnp.sum(self.Xy * w) + 0.5 * jnp.sum(self.yy)


class Penalised(eqx.Module):
    """The squares + ½ Σₖⱼ e^θⱼ wₖⱼ²: block diagonal, all folds in one solve."""

    squares: Squares

    def __call__(self, w: jax.Array, theta: jax.Array) -> jax.Array:
        return self.squares(w, theta) + 0.5 * jnp.sum(jnp.exp(theta) * w**2)

    def diagonal(self, w: jax.Array, theta: jax.Array) -> jax.Array:
        return jnp.diagonal(self.squares.XX, axis1=1, axis2=2) + jnp.exp(theta)


class CrossValidated(eqx.Module):
    """The mean over the folds of (1/nₖ) ‖Xₖ wₖ - yₖ‖²."""

    squares: Squares

    def __call__(self, w: jax.Array, theta: Any) -> jax.Array:
        return 2 * self.squares(w, theta) / len(w)


def synthetic(seed: int, n: int) -> Split:
    """50 independent features, of which 10 matter, from 1 down to 0.1; noise of variance 1."""
    rng = np.random.default_rng(seed)
    w = np.zeros(50)
    w[:10] = rng.choice([-1, 1], 10) * np.geomspace(1, 0.1, 10)
    X = rng.normal(size=(n + 5000, 50))
    y = X @ w + rng.normal(size=len(X))
    return X[:n], y[:n], X[n:], y[n:]


def diabetes(seed: int, n: int) -> Split:
    """The 10 features of scikit-learn's diabetes data and 40 of noise; standardised on n rows."""
    rng = np.random.default_rng(seed)
    X, y = load_diabetes(return_X_y=True)
    X, rows = np.column_stack([X, rng.normal(size=(len(y), 40))]), rng.permutation(len(y))
    scaled = lambda v: (v[rows] - v[rows[:n]].mean(axis=0)) / v[rows[:n]].std(axis=0)
    X, y = scaled(X), scaled(y)
    return X[:n], y[:n], X[n:], y[n:]


def learn(X: np.ndarray, y: np.ndarray, start: float, steps: int) -> bilevel.BilevelSolution:
    """The penalties that minimise the cross-validated error."""
    valid = np.array_split(np.arange(len(y)), FOLDS)
    train = [np.setdiff1d(np.arange(len(y)), rows) for rows in valid]
    f = Penalised(Squares(X, y, train))
    problem = dargmin.Objective(f, diagonal=f.diagonal)
    w0, theta0 = jnp.zeros((FOLDS, X.shape[1])), jnp.full(X.shape[1], start)
    outer = CrossValidated(Squares(X, y, valid))
    bounds = -BOUND, BOUND
    return bilevel.minimize(
        outer, problem, w0, theta0, optimizer="lbfgs", steps=steps, bounds=bounds
    )


def compare(split: Split, steps: int) -> dict[str, float]:
    """Test errors, and the cross-validated error that learning ends with."""
    X, y, X_test, y_test = split
    n = len(y) * (FOLDS - 1) / FOLDS  # what scikit-learn calls alpha is n e^θ in a fold
    one = RidgeCV(n * np.exp(SINGLE), fit_intercept=False, cv=FOLDS).fit(X, y)
    lasso = LassoCV(cv=FOLDS, eps=1e-2, fit_intercept=False, max_iter=100_000).fit(X, y)
    learnt = learn(X, y, float(np.log(one.alpha_ / n)), steps)
    w = np.linalg.solve(X.T @ X / len(y) + np.diag(np.exp(learnt.theta)), X.T @ y / len(y))
    error = lambda w: float(np.mean((X_test @ w - y_test) ** 2))
    return {
        "one penalty": error(one.coef_),
        "lasso": error(lasso.coef_),
        "a penalty for each": error(w),
        "a penalty for each, cross-validated": float(learnt.value),
        "features shut out": float(np.sum(learnt.theta > BOUND - 1)),
        "certified error": float(learnt.history["error"].max()),
    }


def study(data: Callable, sizes: tuple[int, ...], seeds: int, steps: int) -> dict[str, np.ndarray]:
    """For each number of rows: means over the seeds, and the largest certified error of all."""
    table = [[compare(data(seed, n), steps) for seed in range(seeds)] for n in sizes]
    over_seeds = lambda name: np.max if name == "certified error" else np.mean
    return {n: np.array([over_seeds(n)([r[n] for r in row]) for row in table]) for n in table[0][0]}


def draw(studies: dict[str, tuple[tuple[int, ...], dict[str, np.ndarray]]], path: Path):
    figure, axes = plt.subplots(1, len(studies), figsize=(10.5, 4.2), layout="constrained")
    for ax, (title, (sizes, means)) in zip(axes, studies.items(), strict=True):
        for name, color in COLORS.items():
            ax.plot(sizes, means[name], "o-", color=color, label=name, lw=2)
        promised = means["a penalty for each, cross-validated"]
        label = "cross-validated error of these"
        ax.plot(sizes, promised, "o:", color=COLORS["a penalty for each"], label=label, mfc="white")
        ax.set(xscale="log", xlabel="rows to fit and validate on", title=title)
        ax.set_xticks(sizes, [str(n) for n in sizes])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean squared error")
    axes[0].legend(frameon=False)
    figure.suptitle("50 penalties overfit a small validation set, and pay off on a larger one")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def run(
    *,
    out: Path,
    sizes: tuple[int, ...] = (60, 120, 240, 480, 960),
    real: tuple[int, ...] = (110, 220, 330),
    seeds: int = 10,
    steps: int = 30,
) -> dict[str, dict[str, np.ndarray]]:
    """Mean errors for each number of rows; draws feature_penalties.png in `out`."""
    studies = {
        "10 useful features, 40 useless": (sizes, study(synthetic, sizes, seeds, steps)),
        "diabetes: 10 features, 40 of noise": (real, study(diabetes, real, seeds, steps)),
    }
    out.mkdir(parents=True, exist_ok=True)
    draw(studies, out / "feature_penalties.png")
    return {title: {"rows": np.array(n)} | means for title, (n, means) in studies.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("dargmin-out"))
    parser.add_argument("--quick", action="store_true", help="1 seed, 2 sizes of each data set")
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    quick = lambda out: run(out=out, sizes=(60, 240), real=(110, 220), seeds=1)
    for title, means in (quick(given.out) if given.quick else run(out=given.out)).items():
        print(title)
        for name, values in means.items():
            print(f"  {name:38s}" + "".join(f"{value:10.4g}" for value in values))
