"""The exact worst case: measured, and by the formula."""

import jax.numpy as jnp
import numpy as np

from dargmin.methods import AbstractMethod, Chebyshev, GradientDescent
from dargmin.problems import zoo
from dargmin.studies.catalogue.common import relative, times, unrolled
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
from dargmin.theory import burn_in, unrolled_peak, worst_case_error

D = 40


def tasks(quick: bool) -> list[Parameters]:
    exponents = (1, 2) if quick else (1, 2, 3, 4)
    return [{"method": m, "log10_condition": k} for k in exponents for m in ("GD", "Chebyshev")]


def run(method: str, log10_condition: int) -> Table:
    """Independent coordinates with eigenvalues μ..L: what each does is what a problem with that
    eigenvalue alone would do, so that the largest of them is the measured worst case."""
    condition = 10.0**log10_condition
    mu, L = 1 / condition, 1.0
    name, solver, steps = _method(method, mu, L)
    lam = np.geomspace(mu, L, D)
    instance = zoo.quadratic(lam, linear=np.ones(D), dense=False)
    _, dxs = unrolled(instance.problem, solver, instance.x0, 0.0, steps)
    truth = instance.jacobian(0.0)
    measured = np.max(np.abs(dxs / truth - 1), axis=1)
    # a dense one, with weight on all eigenvalues alike: b = H² z makes dx* = -z
    z = np.random.default_rng(0).normal(size=D)
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(D, D)))[0]
    dense = zoo.quadratic(lam, seed=1)
    H = np.asarray(dense.problem.f.H)  # pyright: ignore[reportAttributeAccessIssue]
    dense = zoo.quadratic(lam, seed=1, linear=H @ H @ (basis @ z))
    _, typical = unrolled(dense.problem, solver, dense.x0, 0.0, steps)
    exact = np.asarray(worst_case_error(solver, mu, L, steps, A=1.0, G=0.0))
    seen, formula = burn_in(jnp.asarray(measured)), unrolled_peak(solver, mu, L)
    shown = times(steps)
    return {
        "name": name, "t": shown, "measured": measured[shown], "formula": exact[shown],
        "random": relative(typical, dense.jacobian(0.0))[shown],
        "deviation": float(np.max(np.abs(measured - exact) / np.maximum(exact, 1e-9))),
        "peak": int(seen.peak), "height": float(seen.height), "length": int(seen.length),
        "predicted peak": float(formula[0]), "predicted height": float(formula[1]),
        "predicted length": int(burn_in(jnp.asarray(exact)).length),
    }  # fmt: skip


def _method(method: str, mu: float, L: float) -> tuple[str, AbstractMethod, int]:
    """Long enough for the burn-in to be over."""
    if method == "GD":
        return "gradient descent 2/(L+μ)", GradientDescent(2 / (L + mu)), int(8 * L / mu)
    return "Chebyshev", Chebyshev(mu, L), int(12 * (L / mu) ** 0.5)


def verdict(frame: Frame) -> Verdict:
    cases = frame.groupby(["name", "log10_condition"]).first()
    deviation = float(cases["deviation"].max())
    lengths = int((cases["length"] - cases["predicted length"]).abs().max())
    heights = (cases["predicted height"] / cases["height"] - 1).abs()
    violated = int((frame["random"] > frame["formula"] * (1 + 1e-6) + 1e-9).sum())
    exact = deviation < 1e-4 and lengths <= 1 and not violated
    steep = cases.loc[cases.index.get_level_values("log10_condition") >= 2, "height"]
    return Verdict(
        HOLDS if exact else LIMITS if not violated else MISSED,
        f"The formula and the measured worst case agree to {deviation:.1g} at every t; the burn-in "
        f"is as long as predicted, give or take {lengths} steps, and reaches {steep.max():.4g} "
        f"times the error of returning zero at condition 1e{frame['log10_condition'].max()}. A "
        f"random problem exceeds the bound {violated} times. The short formulas for the peak are "
        f"off by at most {100 * heights.max():.2g} % (leading order in μ/L).",
        {
            "largest relative deviation": deviation,
            "largest difference of lengths": lengths,
            "bound violated": violated,
            "largest peak": float(cases["height"].max()),
        },
    )


def figure(frame: Frame) -> Figure:
    long = frame.melt(
        ["name", "log10_condition", "t"], ["measured", "formula", "random"], "what", "error"
    )
    return curves(
        long, x="t", y="error", series="name", dash="what", limits=(1e-6, 1e4),
        titles=("iteration t", "derivative error, relative"), controls={"log10_condition": 2},
    )  # fmt: skip


STUDY = Study(
    name="worst-case",
    title="Is the worst-case rate of unrolling exact?",
    claim="The Jacobian error of gradient descent and of Chebyshev's method is at most a known "
    "function of t and of the condition number, which is attained: a rate with a burn-in, at first "
    "rising, whose peak and length grow with the condition.",
    source="arXiv 2209.13271, theorems on gradient descent and Chebyshev's method",
    settings="Quadratics with 40 eigenvalues from 1/condition to 1, derivative in a shift of the "
    "Hessian, start at zero; worst case: every eigenvalue by itself; random: one dense problem "
    "whose dx* has equal weight everywhere.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="For gradient descent and Chebyshev, the error rises from 1 to a peak and then "
    "falls; measured and predicted worst case lie on top of each other, and a random problem stays "
    "below. A slider changes the condition number.",
)
