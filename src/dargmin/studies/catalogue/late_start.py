"""Late start: errors over (T, K), the predicted K against the best, memory and time."""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from dargmin.methods import GradientDescent
from dargmin.modes import AbstractMode, LateStart, Unrolled
from dargmin.problems import zoo
from dargmin.solve import solve
from dargmin.studies.catalogue.common import late_starts
from dargmin.studies.catalogue.quadratic_pair import PENALTY, Tikhonov, tikhonov
from dargmin.studies.charts import heat_map
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
from dargmin.theory import optimal_start

SHARES = np.linspace(0, 0.95, 20)  # of T


def tasks(quick: bool) -> list[Parameters]:
    sizes = (2,) if quick else (2, 5, 10)
    made: list[Parameters] = [{"N": N, "seeds": 2 if quick else 20} for N in sizes]
    return [*made, {"N": 1000 if quick else 50_000, "seeds": 0}]


def run(N: int, seeds: int) -> Table:
    if seeds == 0:
        return dict(pd.concat([_cost(N, share) for share in (0.0, 0.5, 0.8, 0.95)]), kind="cost")
    return dict(pd.concat([_errors(N, seed) for seed in range(seeds)]), kind="error")


def _errors(N: int, seed: int) -> Frame:
    """Horizons of a quarter to four times the time in which x gains a digit."""
    case, rows = tikhonov(N, seed), []
    digit = np.log(10) / -np.log(case.rate)
    horizons = np.unique(np.clip(digit * np.array([0.25, 0.5, 1, 2, 4]), 4, 1000).astype(int))
    for T in horizons:
        K = int(optimal_start(case.rate, T, M=case.alpha, e0=case.e0, delta0=case.delta0))
        starts = np.unique([*(SHARES * T).astype(int), min(K, T - 1)])
        padded = np.append(starts, np.zeros(21 - starts.size, int))
        error = _at(case, int(T), padded)[: starts.size]
        rows.append(pd.DataFrame({
            "seed": seed, "T": int(T), "K": starts, "share": (starts / T).round(2), "error": error,
            "predicted": min(K, T - 1), "best": starts[np.argmin(error)], "rate": case.rate,
            "bounded": K,
        }))  # fmt: skip
    return pd.concat(rows)


def _at(case: Tikhonov, T: int, starts: np.ndarray) -> np.ndarray:
    """The relative errors at T of derivatives that start at each K; the loop is as long for all."""
    _, dxs = late_starts(
        case.problem, case.method, case.x0, jnp.asarray(PENALTY), jnp.ones(()),
        jnp.asarray(starts), steps=1000,
    )  # fmt: skip
    return np.linalg.norm(np.asarray(dxs[T]) - case.derivative, axis=1) / case.delta0


def _cost(d: int, share: float, steps: int = 200) -> Frame:
    """Temporary memory and time of the reverse mode, one parameter for each coordinate."""
    instance = zoo.quadratic(np.geomspace(1e-2, 1, d), dense=False)
    start = int(share * steps)
    mode: AbstractMode = LateStart(start=start) if start else Unrolled()
    theta, method = jnp.zeros(d), GradientDescent(1.9)

    def value(problem: Any, x0: Any, theta: Any) -> Any:
        return jnp.sum(solve(problem, method, x0, theta, steps=steps, mode=mode, throw=False).x)

    gradient = eqx.filter_jit(jax.grad(value, argnums=2))
    arguments = instance.problem, instance.x0, theta
    compiled = gradient.lower(*arguments).compile()
    memory = compiled.compiled.memory_analysis().temp_size_in_bytes
    spent = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        spent.append(time.perf_counter() - begin)
    return pd.DataFrame({"T": [steps], "K": start, "share": share, "megabytes": memory / 1e6,
                         "milliseconds": 1e3 * min(spent)})  # fmt: skip


def verdict(frame: Frame) -> Verdict:
    errors = frame[frame["kind"] == "error"]
    keys = ["N", "seed", "T"]
    at = lambda which: errors[which].groupby(keys)["error"].first()
    predicted, full = at(errors["K"] == errors["predicted"]), at(errors["K"] == 0)
    best = errors.groupby(keys)["error"].min()
    gain, loss = predicted / full, predicted / best
    worse = gain > 1.001
    horizon = errors.groupby(keys)[["T", "bounded"]].first()
    short = float((horizon["bounded"] >= horizon["T"] / 2)[worse].mean()) if worse.any() else 0.0
    share = float(worse.mean())
    cost = frame[frame["kind"] == "cost"].set_index("share")
    memory, spent = (cost[c] / cost.loc[0.0, c] for c in ("megabytes", "milliseconds"))
    status = HOLDS if share < 0.05 else LIMITS if gain.median() < 1 else MISSED
    return Verdict(
        status,
        f"Starting at the predicted K* leaves {gain.median():.2g} times the error of unrolling all "
        f"steps in the median of {len(gain)} runs, and {loss.median():.3g} times that of the best "
        f"K; it is worse than unrolling all in {100 * share:.0f} %, of which {100 * short:.0f} % "
        f"have a T of at most 2 K*, too short for the pessimistic bound. A start at 0.8 T takes "
        f"{100 * memory[0.8]:.0f} % of the "
        f"memory and {100 * spent[0.8]:.0f} % of the time.",
        {
            "error(K*) / error(0), median": float(gain.median()),
            "error(K*) / error(best K), median": float(loss.median()),
            "share worse than K = 0": share,
            "memory at 0.8 T": float(memory[0.8]),
            "time at 0.8 T": float(spent[0.8]),
        },
    )


def figure(frame: Frame) -> Figure:
    errors = frame[(frame["kind"] == "error") & (frame["seed"] < 4)].astype({"N": str})
    for name in ("predicted", "best"):
        errors[name] = (20 * errors[name] / errors["T"]).round().astype(int) / 20
    errors["start"] = (20 * errors["share"]).round().astype(int) / 20
    errors["log10 error"] = np.log10(errors["error"]).round(2)
    errors = errors.groupby(["N", "seed", "T", "start"], as_index=False).first()
    return heat_map(
        errors[["N", "seed", "T", "start", "log10 error", "predicted", "best"]],
        x="start", y="T", value="log10 error",
        titles=("start of the derivative K / T", "steps T", "log10 of the error"),
        controls={"N": "5" if "5" in set(errors["N"]) else "2", "seed": 0},
        lines={"predicted": "circle", "best": "diamond"},
    )  # fmt: skip


STUDY = Study(
    name="late-start",
    title="Where should the derivative start?",
    claim="Leaving the first K steps out of the derivative removes the burn-in, and memory and "
    "time with it; the K that the bound predicts is close to the best.",
    source="arXiv 2602.19733, on truncated differentiation",
    settings="The problems of turning-points; T from a quarter of the steps in which the iterate "
    "gains a digit to four times as many; K from 0 to 0.95 T. Memory and time: reverse mode "
    "through 200 steps in 50,000 dimensions, one parameter for each.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="A map of the error over where the derivative starts and how many steps there are. "
    "Circles mark the predicted start, diamonds the best one; sliders pick dimension and seed.",
)
