"""The trade-off over step sizes: rate against burn-in."""

import jax.numpy as jnp
import numpy as np
import pandas as pd

from dargmin.methods import GradientDescent
from dargmin.problems import zoo
from dargmin.studies.catalogue.common import steps_to, unrolled
from dargmin.studies.charts import points
from dargmin.studies.runner import HOLDS, LIMITS, Figure, Frame, Parameters, Study, Table, Verdict
from dargmin.theory import budget_step_size, burn_in, rate, unrolled_peak

LEVEL = 1e-2


def tasks(quick: bool) -> list[Parameters]:
    exponents = (1,) if quick else (1, 2, 3, 4)
    return [{"log10_condition": k, "sizes": 6 if quick else 25} for k in exponents]


def run(log10_condition: int, sizes: int) -> Table:
    """The measured worst case over 30 eigenvalues, each by itself, for every step size."""
    mu, L = 10.0**-log10_condition, 1.0
    largest, steps = 2 / (1 + mu), int(10 / mu)
    # dense towards 2/(L + μ), and the budget's optimum at four horizons
    wanted = 2 - np.geomspace(1, 2 - largest, sizes)
    budgets = [float(budget_step_size(mu, L, int(f / mu))) for f in (0.3, 1, 3)]
    instance = zoo.quadratic(np.geomspace(mu, L, 30), linear=np.ones(30), dense=False)
    truth, rows = instance.jacobian(0.0), []
    for h in np.unique([*wanted, *budgets]):
        method = GradientDescent(h / L)
        _, dxs = unrolled(instance.problem, method, instance.x0, 0.0, steps)
        worst = np.max(np.abs(dxs / truth - 1), axis=1)
        seen = burn_in(jnp.asarray(worst))
        rows.append({
            "hL": h, "distance": 2 - h, "rate": float(rate(method, mu, L)),
            "peak": float(seen.height), "length": int(seen.length),
            "reached": steps_to(worst, LEVEL),
            "predicted peak": float(unrolled_peak(method, mu, L)[1]),
        })  # fmt: skip
    return dict(pd.DataFrame(rows))


def verdict(frame: Frame) -> Verdict:
    gains, monotone = [], True
    for k, part in frame.groupby("log10_condition"):
        part = part.sort_values("hL")
        monotone &= bool((part["rate"].diff().dropna() <= 1e-12).all())
        monotone &= bool((part["length"].diff().dropna() >= 0).all())
        best = part.loc[part["reached"].idxmin()]
        last = part.iloc[-1]
        gains.append((last["reached"] / best["reached"], last["peak"], best["peak"], best["hL"], k))
    off = float((frame["predicted peak"] / frame["peak"] - 1).abs().max())
    slower, peak, calm, h, k = max(gains)
    return Verdict(
        HOLDS if monotone and off < 0.1 else LIMITS,
        f"Longer steps have a better rate and a longer burn-in, "
        f"{'without' if monotone else 'but for some'} exception{'' if monotone else 's'}, and the "
        f"peak is the predicted one{'' if off < 1e-9 else f' within {100 * off:.2g} %'}. But the "
        f"price of a shorter step is small: "
        f"at condition 1e{k} {h:.4g}/L reaches an error of {LEVEL:g} {slower:.2g} times "
        f"sooner than 2/(L+μ), with a peak of {calm:.3g} instead of {peak:.3g}.",
        {"peak, largest deviation": off, "time saved, factor": slower, "monotone": float(monotone)},
    )


def figure(frame: Frame) -> Figure:
    names = {
        "peak": "peak of the burn-in, times zero's error",
        "length": "length of the burn-in, steps · μ/L",
        "reached": "steps to an error of 1e-2, · μ/L",
    }
    scaled = frame.assign(**{
        name: frame[name] * 10.0 ** -frame["log10_condition"] for name in ("length", "reached")
    })  # fmt: skip
    scaled = scaled.rename(columns=names)
    keep = ["log10_condition", "distance", "hL", "rate"]
    long = scaled.melt(keep, list(names.values()), "what", "value")
    return points(
        long, x="distance", y="value", series="what", join=True, more=("hL", "rate"),
        titles=("2 - hL (0: the limit of stability)", "peak, or steps · μ/L"),
        controls={"log10_condition": int(frame["log10_condition"].max())}, rule=1.0,
    )  # fmt: skip


STUDY = Study(
    name="step-size",
    title="What does the step size trade?",
    claim="Gradient descent can have a fast rate for the unrolled derivative or a short burn-in, "
    "not both: the step size trades one for the other.",
    source="arXiv 2209.13271, on the choice of the step size",
    settings="Worst case over 30 eigenvalues from 1/condition to 1, each by itself; steps from 1/L "
    "to 2/(L+μ), and those that are best for budgets of 0.3, 1 and 3 L/μ steps; 10 L/μ steps.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="Over the distance of the step from its limit: towards the limit, the peak and the "
    "length of the burn-in rise steeply, while the number of steps to an error of 1e-2 has a "
    "minimum shortly before.",
)
