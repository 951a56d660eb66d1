"""Bilevel problems with and without warm start, and with explicit truncation."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax

from dargmin.bilevel import minimize
from dargmin.methods import AbstractMethod, GradientDescent, ProximalGradient
from dargmin.modes import LateStart, Unrolled
from dargmin.problems import AbstractProblem, zoo
from dargmin.studies.charts import curves
from dargmin.studies.runner import (
    HOLDS,
    LIMITS,
    MISSED,
    Figure,
    Frame,
    Parameters,
    Study,
    Table,
    Verdict,
)

VARIANTS = ("cold", "warm", "cold, truncated", "warm, truncated")
PROBLEMS = ("ridge", "logistic", "elastic net")


class SquaredError(eqx.Module):
    """‖Xw - y‖² / 2n on validation data."""

    X: Any
    y: Any

    def __call__(self, w: Any, theta: Any) -> Any:
        return 0.5 * jnp.mean((self.X @ w - self.y) ** 2)


class Case(NamedTuple):
    """A training problem, an outer objective, and a method with its largest stable step."""

    problem: AbstractProblem
    outer: SquaredError
    method: AbstractMethod
    theta0: np.ndarray
    x0: Any


def tasks(quick: bool) -> list[Parameters]:
    problems = PROBLEMS[:1] if quick else PROBLEMS
    variants = VARIANTS[:2] if quick else VARIANTS
    outer, inner = (4, 20) if quick else (40, 60)
    return [
        {"problem": p, "variant": v, "outer_steps": outer, "inner_steps": inner}
        for p in problems
        for v in variants
    ]


def case(name: str) -> Case:
    """200 rows of 30 correlated features, half of them for validation; a random start."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 30)) @ np.linalg.cholesky(0.6 * np.eye(30) + 0.4).T
    y = X[:, :8] @ rng.normal(size=8) + 2.0 * rng.normal(size=200)
    if name == "logistic":
        y = np.sign(y)
    train, valid = slice(None, 100), slice(100, None)
    make = {"ridge": zoo.ridge, "logistic": zoo.logistic, "elastic net": zoo.elastic_net}[name]
    instance = make(X[train], y[train])
    theta0 = np.array([-3.0, -3.0]) if name == "elastic net" else np.array(-2.0)
    _, L = instance.spectrum(theta0)
    method: AbstractMethod = GradientDescent(1.95 / (L + np.exp(-1.0)))
    if name == "elastic net":
        method = ProximalGradient(accelerate=False)
    outer = SquaredError(jnp.asarray(X[valid]), jnp.asarray(y[valid]))
    return Case(instance.problem, outer, method, theta0, jnp.asarray(2 * rng.normal(size=30)))


def run(problem: str, variant: str, outer_steps: int, inner_steps: int) -> Table:
    made = case(problem)
    truncated = variant.endswith("truncated")
    found = minimize(
        made.outer, made.problem, made.x0, jnp.asarray(made.theta0), optimizer=optax.adam(0.1),
        steps=outer_steps, method=made.method, inner_steps=inner_steps, bounds=(-7.0, -1.0),
        mode=LateStart(last=inner_steps // 4) if truncated else Unrolled(),
        warm_start=variant.startswith("warm"), throw=False,
    )  # fmt: skip
    history = found.history.to_dataframe()
    return {
        "step": history["step"], "objective": history["value"],
        "hypergradient error": history["error"], "effective K": history["effective_start"],
    }  # fmt: skip


def verdict(frame: Frame) -> Verdict:
    later = frame[frame["step"] >= 2]  # the first step has nothing to start from
    error = later.groupby(["problem", "variant"])["hypergradient error"].median().unstack()
    gain = error["cold"] / error["warm"]
    K = later[later["variant"] == "warm"].groupby("problem")["effective K"].median()
    least = frame.groupby(["problem", "variant"])["objective"].min().unstack()
    better = int((least["warm"] <= least["cold"] * (1 + 1e-9)).sum())
    helped = int((gain > 1).sum())
    return Verdict(
        HOLDS if helped == len(gain) else LIMITS if helped else MISSED,
        f"A warm start makes the unrolled hypergradient {gain.min():.3g} to {gain.max():,.0f} "
        f"times more accurate at the same cost on {helped} of {len(gain)} problems: it is worth "
        f"{K.min():.0f} to {K.max():.0f} inner steps before the differentiated ones. The lowest "
        f"outer objective is as low or lower on {better} of {len(gain)}.",
        {
            "problems": len(gain),
            "more accurate": helped,
            "smallest gain": float(gain.min()),
            "largest gain": float(gain.max()),
            "objective as low or lower": better,
        },
    )


def figure(frame: Frame) -> Figure:
    what = ["hypergradient error", "objective", "effective K"]
    long = frame.melt(["problem", "variant", "step"], what, "quantity", "value")
    return curves(
        long, x="step", y="value", series="variant", scales=("linear", "log"), rule=None,
        titles=("outer step", "value"),
        controls={"problem": str(frame["problem"].iloc[0]), "quantity": what[0]},
    )  # fmt: skip


STUDY = Study(
    name="warm-start",
    title="Is a warm start a late start?",
    claim="In bilevel optimization, starting the inner iterations where the last ones ended acts "
    "like leaving the first K steps out of the derivative: the hypergradient error falls, and the "
    "effective K can be computed.",
    source="arXiv 2602.19733, section on warm starts",
    settings="Ridge, logistic regression and elastic net on synthetic data (100 rows for training, "
    "100 for validation, 30 features, seed 0); Adam(0.1) on the log-penalties, 40 outer steps of "
    "60 inner steps with a step size near 2/L (elastic net: 1/L), unrolled; truncated: the last 15 "
    "differentiated. Errors are those of certificates.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="Over the outer steps, the error of the hypergradient is mostly lower with a warm "
    "start than with a cold one; menus show the outer objective and the effective K instead.",
)
