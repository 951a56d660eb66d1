"""How sensitive Sobolev methods are to α, η, and to wrong μ and L."""

from typing import Any

import numpy as np
import pandas as pd

from dargmin.methods import Chebyshev, Sobolev
from dargmin.studies.catalogue.common import steps_to
from dargmin.studies.catalogue.sobolev import TARGETS, D, spectrum
from dargmin.studies.charts import points
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
from dargmin.theory import residual_polynomial

LEVEL = 1e-3
KNOBS = {
    "α": (-0.25, 0.0, 0.25, 0.5, 1.0, 2.0),
    "η / μL": (1e-4, 1e-2, 1.0, 1e2, 1e4),
    "assumed L / true L": (0.9, 0.95, 1.0, 1.05, 1.2, 1.5, 2.0),
    "assumed μ / true μ": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
}
DEFAULTS = {"α": 0.5, "η / μL": 1.0, "assumed L / true L": 1.0, "assumed μ / true μ": 1.0}


def tasks(quick: bool) -> list[Parameters]:
    spectra = ("uniform",) if quick else ("uniform", "Marchenko-Pastur", "log-uniform")
    names = ("η / μL",) if quick else tuple(KNOBS)
    return [
        {"spectrum_of": s, "knob": k, "log10_condition": 1 if quick else 3}
        for k in names
        for s in spectra
    ]


def run(spectrum_of: str, knob: str, log10_condition: int) -> Table:
    lam, rows = spectrum(spectrum_of, 10.0**-log10_condition), []
    g, h = np.random.default_rng(0).normal(size=(2, D))
    steps = int(40 * 10 ** (log10_condition / 2))
    for value in KNOBS[knob]:
        set_to = DEFAULTS | {knob: value}
        mu, L = set_to["assumed μ / true μ"] * lam[0], set_to["assumed L / true L"] * lam[-1]
        tried: dict[str, Any] = {"Sobolev": Sobolev(mu, L, set_to["α"], set_to["η / μL"] * mu * L)}
        if knob.startswith("assumed"):
            tried["Chebyshev"] = Chebyshev(mu, L)
        for method, made in tried.items():
            P, dP = residual_polynomial(made, lam, steps)
            for target, make in TARGETS.items():
                a, c = make(lam, g, h)
                with np.errstate(over="ignore", invalid="ignore"):  # a wrong L may diverge
                    errors = np.linalg.norm(P * a + dP * c, axis=1) / np.linalg.norm(a)
                rows.append({
                    "method": method, "target": target, "value": value,
                    "peak": np.max(np.nan_to_num(errors, nan=np.inf, posinf=np.inf)),
                    "reached": steps_to(errors, LEVEL),
                })  # fmt: skip
    return dict(pd.DataFrame(rows))


def costs(frame: Frame) -> Frame:
    """Steps to 1e-3 over those with the default value of the knob; infinite if never."""
    keys = ["spectrum_of", "knob", "method", "target"]
    usual = frame[frame["value"] == frame["knob"].map(DEFAULTS)].set_index(keys)["reached"]
    ratio = frame.set_index(keys)["reached"].fillna(np.inf) / usual.reindex(
        pd.MultiIndex.from_frame(frame[keys])
    )
    return frame.assign(cost=ratio.to_numpy())


def verdict(frame: Frame) -> Verdict:
    table = costs(frame)
    ours = table[table["method"] == "Sobolev"]
    by = lambda knob: ours[ours["knob"] == knob]
    eta = by("η / μL")
    mild = float(eta[(eta["value"] >= 1e-2) & (eta["value"] <= 1e2)]["cost"].max())
    numbers = {"cost of η wrong by 100": mild}
    sentence = f"η wrong by a factor 100 costs at most {mild:.2f} times the steps"
    low, status = np.inf, HOLDS if mild < 1.5 else LIMITS
    if "α" in set(ours["knob"]):
        L, mu = by("assumed L / true L"), by("assumed μ / true μ")
        alpha = by("α")
        low = float(L[L["value"] == 0.95]["cost"].max())
        numbers |= {
            "cost of α from -1/4 to 2": float(alpha["cost"].max()),
            "cost of L 5 % too small": low,
            "cost of L 50 % too large": float(L[L["value"] == 1.5]["cost"].max()),
            "cost of μ 10 times too small": float(mu[mu["value"] == 0.1]["cost"].max()),
        }
        worst = alpha.loc[alpha["peak"].idxmax()]
        diverges = "diverges" if not np.isfinite(low) else f"costs {low:.2f} times the steps"
        sentence += (
            f", α between -1/4 and 2 at most {numbers['cost of α from -1/4 to 2']:.2f} (but the "
            f"peak can be {worst['peak']:.3g}, at α = {worst['value']:g}); an L 50 % too large "
            f"{numbers['cost of L 50 % too large']:.2f}, a μ ten times too small "
            f"{numbers['cost of μ 10 times too small']:.2f}. With an L 5 % too small it {diverges}."
        )
        status = MISSED if mild > 3 else LIMITS if not low < 2 else status
    return Verdict(status, sentence.rstrip(".") + ".", numbers)


def figure(frame: Frame) -> Figure:
    table = costs(frame).rename(
        columns={"cost": "steps / steps at the default", "peak": "highest error"}
    )
    table["curve"] = table["method"] + ", " + table["spectrum_of"]
    long = table.melt(
        ["knob", "curve", "target", "value"],
        ["steps / steps at the default", "highest error"], "what", "shown",
    )  # fmt: skip
    return points(
        long, x="value", y="shown", series="curve", join=True, rule=1.0,
        titles=("value of the parameter", "factor"), scales=("ordinal", "linear"),
        controls={
            "knob": str(table["knob"].iloc[-1]), "what": "steps / steps at the default",
            "target": str(table["target"].iloc[0]),
        },
    )  # fmt: skip


STUDY = Study(
    name="sensitivity",
    title="What if α, η, μ or L are wrong?",
    claim="Sobolev methods do not depend much on their parameters.",
    source="arXiv 2209.13271 (α, η); wrong μ and L: ours",
    settings="Quadratics with 200 eigenvalues of condition 1e3, three spectra, two relations of c "
    "to a (seed 0); one parameter is changed at a time from α=½, η=μL, true μ and L.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="For each value of one parameter, the number of steps to an error of 1e-3 relative "
    "to that at its default, or the highest error; menus pick the parameter and the quantity. "
    "Points are missing where the method diverges.",
)
