"""Iterate against derivative error, forward and reverse, with bounds and turning points."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from dargmin.studies.catalogue.common import times, unrolled
from dargmin.studies.catalogue.quadratic_pair import PENALTY, tikhonov
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
from dargmin.theory import forward_bound, forward_peak, reverse_bound


def tasks(quick: bool) -> list[Parameters]:
    if quick:
        return [{"N": 2, "seeds": 2, "terms": 4}]
    return [{"N": N, "seeds": 20, "terms": 30} for N in (2, 5, 10)]


def run(N: int, seeds: int, terms: int) -> Table:
    return dict(pd.concat([_one(N, seed, terms) for seed in range(seeds)]))


def _one(N: int, seed: int, terms: int) -> Frame:
    """Forward errors at every k; reverse errors of n steps back through K = 2000, along one w."""
    case, theta = tikhonov(N, seed), jnp.asarray(PENALTY)
    steps = 2000
    xs, dxs = unrolled(case.problem, case.method, case.x0, theta, steps)
    e = np.linalg.norm(xs - case.solution, axis=1)
    forward = np.linalg.norm(dxs - case.derivative, axis=1)
    known = dict(M=case.alpha, e0=case.e0)
    rounding = 1e-12 * case.delta0
    k = np.arange(steps + 1)
    bound = np.asarray(forward_bound(case.rate, k, **known, delta0=case.delta0))
    shown = times(steps)
    rows = {
        "seed": seed, "t": shown, "what": "forward", "error": forward[shown], "bound": bound[shown],
        "iterate": e[shown], "violated": int(np.sum(forward > bound * (1 + 1e-9) + rounding)),
        "peak": int(np.argmax(forward)), "predicted": int(np.argmax(bound)),
        "formula": int(forward_peak(case.rate, **known, delta0=case.delta0)),
        "height": float(forward.max() / forward[0]), "rate": case.rate, "unit": case.delta0,
    }  # fmt: skip
    horizon = int(np.clip(2 * rows["formula"], 20, steps))
    n = np.unique(np.geomspace(1, horizon, terms).round().astype(int))
    w = np.random.default_rng(seed).normal(size=N)
    w /= np.linalg.norm(w)
    # x_{K-1}, x_{K-2}, ...; what is behind x_0 is there for the shape, and not read
    backwards = np.append(xs[:horizon][::-1], np.zeros((steps - horizon, N)), axis=0)
    sums = np.asarray(_reverse(case.problem, case.alpha, jnp.asarray(backwards), theta, w))
    errors = np.abs(sums - case.derivative @ w)
    limit = np.asarray(reverse_bound(case.rate, horizon, n, **known, norm=case.delta0))
    back = {
        "what": "reverse", "t": n, "error": errors[n - 1], "bound": limit, "iterate": np.nan,
        "violated": int(np.sum(errors[n - 1] > limit * (1 + 1e-9) + rounding)),
    }  # fmt: skip
    return pd.concat([pd.DataFrame(rows), pd.DataFrame(rows | back, index=range(n.size))])


@eqx.filter_jit
def _reverse(problem: Any, alpha: float, backwards: Any, theta: Any, w: Any) -> Any:
    """ū_n for n = 1, 2, ...: w_{n+1} = D_xA(x)ᵀ w_n, ū_{n+1} = ū_n + D_uA(x)ᵀ w_n."""

    def back(state: Any, x: Any) -> Any:
        w, total = state
        step = lambda x, theta: x - alpha * problem.residual(x, theta)
        w, gradient = jax.vjp(step, x, theta)[1](w)
        return (w, total + gradient), total + gradient

    return jax.lax.scan(back, (jnp.asarray(w), jnp.zeros_like(theta)), backwards)[1]


def verdict(frame: Frame) -> Verdict:
    violated = int(frame.groupby(["N", "seed", "what"])["violated"].first().sum())
    runs = frame[frame["what"] == "forward"].groupby(["N", "seed"]).first()
    seen = runs[runs["peak"] < 2000]  # turned within the run
    close = ((seen["peak"] <= 2 * seen["formula"]) & (seen["formula"] <= 2 * seen["peak"])).mean()
    early = float((seen["peak"] <= seen["formula"] + 1).mean())
    formula = int((seen["formula"] - seen["predicted"]).abs().max())
    return Verdict(
        MISSED if violated else HOLDS if close > 0.9 else LIMITS,
        f"The forward and the reverse bound are violated {violated} times on {len(runs)} problems. "
        f"{int((runs['height'] > 1.05).sum())} have a burn-in, up to {runs['height'].max():.3g} "
        f"times the error of returning zero. The derivative's error turns within a factor 2 of the "
        f"predicted step in {100 * close:.0f} % of the runs that turn, and not after it in "
        f"{100 * early:.0f} %: the prediction is that of the bound.",
        {
            "bounds violated": violated,
            "turning point within a factor 2": float(close),
            "turns no later than predicted": early,
            "formula against the bound's peak": formula,
            "largest height": float(runs["height"].max()),
        },
    )


def figure(frame: Frame) -> Figure:
    frame = frame[frame["seed"] < 5].astype({"N": str}).reset_index(drop=True)
    steepest = frame.loc[frame["height"].idxmax()]
    parts = [
        frame[["N", "seed", "t"]].assign(
            quantity=frame["what"] + " derivative error", kind="measured",
            error=frame["error"] / frame["unit"],
        ),
        frame[["N", "seed", "t"]].assign(
            quantity=frame["what"] + " derivative error", kind="bound",
            error=frame["bound"] / frame["unit"],
        ),
    ]  # fmt: skip
    ahead = frame[frame["what"] == "forward"]
    start = ahead.groupby(["N", "seed"])["iterate"].transform("first")
    parts.append(ahead[["N", "seed", "t"]].assign(
        quantity="iterate error", kind="measured", error=ahead["iterate"] / start
    ))  # fmt: skip
    return curves(
        pd.concat(parts), x="t", y="error", series="quantity", dash="kind", limits=(1e-8, 1e5),
        titles=("steps k forward, or n backward", "error, relative"),
        controls={"N": str(steepest["N"]), "seed": int(steepest["seed"])},
    )  # fmt: skip


STUDY = Study(
    name="turning-points",
    title="When do derivative errors turn?",
    claim="While the iterates approach the solution, the forward and the reverse derivative errors "
    "first grow; bounds with a term k ρ^(k-1) hold for both, and say when they turn.",
    source="arXiv 2602.19733, theorems on the forward and the reverse mode",
    settings="Gradient descent with α = 2/(L+m) on ‖Ax-b‖²/2 + u‖x‖²/2, u = 0.01, A in ℝ^(N×N), b "
    "standard normal, x_0 ten times as far out, N = 2, 5, 10, 20 seeds each; 2000 steps; "
    "reverse: n steps back through twice the predicted turning point. The derivative starts at "
    "zero.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="Over the steps: the iterate error falls while the forward derivative error rises "
    "to a peak, and the reverse error first falls and then rises; dashed bounds lie above both. "
    "Sliders pick the dimension and the seed.",
)
