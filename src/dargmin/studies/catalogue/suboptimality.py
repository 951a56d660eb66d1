"""A better function value is not a better derivative."""

import jax
import numpy as np
import pandas as pd

from dargmin.methods import AbstractMethod, Chebyshev, GradientDescent
from dargmin.studies.catalogue.common import fitted, start, times, unrolled
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

STEPS = {"0.5/L": 0.5, "1/L": 1.0, "1.5/L": 1.5}
FASTEST, SLOW = "gradient descent 2/(L+μ)", "gradient descent 1/L"


def tasks(quick: bool) -> list[Parameters]:
    names = ("diabetes",) if quick else (
        "breast_cancer", "diabetes", "digits", "randhie", "synthetic"
    )  # fmt: skip
    most = 100 if quick else 3000
    return [
        {"data": name, "begin": begin, "penalty": 0.1, "most": most}
        for name in names
        for begin in ("zero", "random")
    ]


def run(data: str, begin: str, penalty: float, most: int) -> Table:
    fit = fitted(data, "ridge", penalty)
    mu, L = fit.spectrum
    methods: dict[str, AbstractMethod] = {
        **{f"gradient descent {h}": GradientDescent(s / L) for h, s in STEPS.items()},
        FASTEST: GradientDescent(2 / (L + mu)),
        "Chebyshev": Chebyshev(mu, L),
    }
    steps = int(np.clip(5 * L / mu, 50, most))
    shown, x0 = times(steps), start(fit.solution.shape, begin)
    gradient = jax.vmap(lambda x: fit.problem.residual(x, fit.theta))
    rows = []
    for name, method in methods.items():
        xs, dxs = (u[shown] for u in unrolled(fit.problem, method, x0, fit.theta, steps))
        flat = lambda u: np.asarray(u).reshape(len(shown), -1)
        # f(x) - f* = ½ ⟨∇f(x), x - x*⟩ on a quadratic: no cancellation
        f = 0.5 * np.sum(flat(gradient(xs)) * flat(xs - fit.solution), axis=1)
        J = np.sum(flat(dxs - fit.derivative) ** 2, axis=1) / np.sum(fit.derivative**2)
        rows.append(pd.DataFrame({"method": name, "t": shown, "function": f / f[0], "Jacobian": J}))
    return dict(pd.concat(rows), condition=L / mu)


def inversions(frame: Frame, better: tuple[str, ...]) -> Frame:
    """For each data set and start, the largest factor by which the Jacobian of one of `better` is
    further from the truth than that of gradient descent with 1/L at a t at which its function
    value is smaller; 0 if there is no such t."""
    keys = ["data", "begin", "t"]
    wide = frame.pivot(index=keys, columns="method", values=["function", "Jacobian"])
    f, J = wide["function"], wide["Jacobian"]
    factors = []
    for name in better:
        # below 1e-20 of the first value, what is compared is rounding
        inverted = (f[name] < f[SLOW]) & (f[SLOW] > 1e-20) & (J[name] > J[SLOW])
        factors.append(np.sqrt(J[name] / J[SLOW]).where(inverted, 0.0))
    return pd.concat(factors, axis=1).max(axis=1).groupby(["data", "begin"]).max()


def verdict(frame: Frame) -> Verdict:
    longer = inversions(frame, ("gradient descent 1.5/L", FASTEST))
    chebyshev = inversions(frame, ("Chebyshev",))
    both = ((longer > 1) & (chebyshev > 1)).groupby("begin").agg(["sum", "size"])
    count = {begin: f"{row['sum']} of {row['size']}" for begin, row in both.iterrows()}
    found, cases = int(both["sum"].sum()), int(both["size"].sum())
    return Verdict(
        HOLDS if found == cases else LIMITS if found else MISSED,
        f"Longer steps and Chebyshev have, at the same t, a smaller function value and a worse "
        f"derivative than gradient descent with 1/L on {count['random']} data sets from a random "
        f"start (up to {longer.max():.3g} and {chebyshev.max():.3g} times further from the truth), "
        f"and on {count['zero']} from zero; the study no-curse says why.",
        {
            "inversions, random start": int(both.loc["random", "sum"]),
            "inversions, zero start": int(both.loc["zero", "sum"]),
            "data sets": int(both.loc["zero", "size"]),
            "largest factor, longer steps": float(longer.max()),
            "largest factor, Chebyshev": float(chebyshev.max()),
        },
    )


def figure(frame: Frame) -> Figure:
    long = frame.melt(
        ["data", "begin", "method", "t"], ["Jacobian", "function"], "what", "suboptimality"
    )
    return curves(
        long, x="t", y="suboptimality", series="method", dash="what",
        titles=("iteration t", "suboptimality, relative"), limits=(1e-12, 1e4),
        controls={"data": str(frame["data"].iloc[0]), "begin": "random"},
    )  # fmt: skip


STUDY = Study(
    name="suboptimality",
    title="Does a better function value mean a better derivative?",
    claim="For gradient descent the step that is best for the function value is not the best for "
    "the unrolled Jacobian, and neither is Chebyshev's method: while the function value falls, the "
    "Jacobian gets worse.",
    source="arXiv 2209.13271, figures of the introduction",
    settings="Ridge regression, penalty 0.1 on standardised features, derivative in the "
    "log-penalty; start at zero or standard normal (seed 0); 5 L/μ steps, 3000 at most.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="Two curves for each method over the iterations, on logarithmic axes: the function "
    "suboptimality falls steadily; the Jacobian suboptimality first rises above that of returning "
    "zero, the more the larger the step, and most for Chebyshev.",
)
