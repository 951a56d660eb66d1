"""Certificates: the estimated error against the true one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from dargmin.certificate import certify
from dargmin.linear import prepare
from dargmin.methods import (
    AbstractMethod,
    Chebyshev,
    FixedPointIteration,
    GradientDescent,
    ProximalGradient,
)
from dargmin.modes import Implicit, Neumann
from dargmin.problems import AbstractProblem, FixedPoint, zoo
from dargmin.status import is_ok
from dargmin.studies.catalogue.common import late_starts
from dargmin.studies.catalogue.other_maps import Layer
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

FAMILIES = ("quadratic", "ridge", "logistic", "elastic net", "equilibrium layer")
TIMES = (5, 20, 80, 320)
ROUNDING = 1e-9  # errors below this are not compared


def tasks(quick: bool) -> list[Parameters]:
    families = ("ridge",) if quick else FAMILIES
    return [{"family": f, "seeds": 2 if quick else 12} for f in families]


def random(family: str, seed: int) -> tuple[AbstractProblem, AbstractMethod, Any, Any, Any, Any]:
    """Problem, method, θ, a random θ̇, x* and dx*."""
    rng = np.random.default_rng([FAMILIES.index(family), seed])
    condition = 10.0 ** rng.uniform(1, 4)
    if family == "equilibrium layer":
        return _layer(rng)
    if family == "quadratic":
        lam = np.geomspace(1 / condition, 1, 20)
        instance: zoo.Instance = zoo.quadratic(lam, seed=seed)
        theta, tangent = np.zeros(20), lam.mean() * rng.normal(size=20)
    else:
        X = rng.normal(size=(60, 20)) * np.geomspace(1, condition**-0.5, 20)
        y = X @ rng.normal(size=20) + 0.3 * rng.normal(size=60)
        make: Any = {"ridge": zoo.ridge, "logistic": zoo.logistic, "elastic net": zoo.elastic_net}
        instance = make[family](X, np.sign(y) if family == "logistic" else y)
        theta = np.full(2 if family == "elastic net" else 20, np.log(1 / condition))
        tangent = rng.normal(size=theta.size)
    mu, L = instance.spectrum(theta)
    if family == "elastic net":
        method: AbstractMethod = ProximalGradient()
    else:
        method = Chebyshev(mu, L) if seed % 2 else GradientDescent(2 / (L + mu))
    dx = instance.jacobian(theta) @ tangent
    return instance.problem, method, theta, tangent, instance.solution(theta), dx


def _layer(rng: np.random.Generator) -> tuple[Any, Any, Any, Any, Any, Any]:
    d = 20
    W = rng.normal(size=(d, d))
    W *= rng.choice([0.8, 0.95, 0.99]) / np.linalg.norm(W, 2)
    c, x = 0.1 * rng.normal(size=d), np.zeros(d)
    for _ in range(100):
        slope = 1 - np.tanh(W @ x + c) ** 2
        x = x - np.linalg.solve(np.eye(d) - slope[:, None] * W, x - np.tanh(W @ x + c))
    dx = np.linalg.solve(np.eye(d) - slope[:, None] * W, slope * c)
    problem = FixedPoint(Layer(jnp.asarray(W), jnp.asarray(c)))
    return problem, FixedPointIteration(), np.zeros(()), np.ones(()), x, dx


def run(family: str, seeds: int) -> Table:
    return dict(pd.concat([_one(family, seed) for seed in range(seeds)]))


def _one(family: str, seed: int) -> Frame:
    problem, method, theta, tangent, solution, derivative = random(family, seed)
    theta, tangent = jnp.asarray(theta), jnp.asarray(tangent)
    x0 = start = jnp.asarray(np.random.default_rng(seed).normal(size=solution.size) * (seed % 3))
    starts = jnp.asarray([0, *(T // 2 for T in TIMES)])
    xs, dxs = late_starts(problem, method, start, theta, tangent, starts, steps=TIMES[-1])
    rows = []
    for i, T in enumerate(TIMES):
        claims = {
            "unrolled": dxs[T, 0], "late start": dxs[T, 1 + i], "zero": jnp.zeros_like(x0),
            "Neumann": _attached(problem, xs[T], theta, tangent, Neumann(terms=20)),
            "implicit": _attached(problem, xs[T], theta, tangent, Implicit()),
        }  # fmt: skip
        for mode, dx in claims.items():
            found = certify(problem, xs[T], theta, tangent=tangent, jvp=dx)
            truth = np.linalg.norm(np.asarray(dx) - derivative) / np.linalg.norm(derivative)
            rows.append({
                "mode": mode, "T": T, "seed": seed, "truth": float(truth),
                "estimate": float(found.error), "ok": bool(is_ok(found.status)),
            })  # fmt: skip
    return pd.DataFrame(rows)


@eqx.filter_jit
def _attached(problem: AbstractProblem, x: Any, theta: Any, tangent: Any, mode: Any) -> Any:
    along = lambda theta: mode.attach(prepare(problem, x, theta), x, theta, False)
    return jax.jvp(along, (theta,), (tangent,))[1]


def verdict(frame: Frame) -> Verdict:
    judged = frame[np.isfinite(frame["truth"]) & (frame["truth"] > ROUNDING)]
    estimate = judged["estimate"].where(judged["ok"], np.inf)
    ratio = estimate / judged["truth"]
    large, small = judged["truth"] >= 1, judged["truth"] < 0.1
    missed, false = int((large & (estimate < 0.5)).sum()), int((small & (estimate >= 1)).sum())
    within = float(((ratio < 10) & (ratio > 0.1)).mean())
    below = float((ratio < 1 / 3).mean())
    good = within >= 0.95 and below <= 0.01 and missed <= 0.03 * large.sum()
    return Verdict(
        HOLDS if good and false <= 0.03 * small.sum() else LIMITS if within > 0.8 else MISSED,
        f"Of {len(judged)} derivatives in five ways, {100 * within:.1f} % are estimated within a "
        f"factor 10, "
        f"{100 * below:.1f} % below a third of the truth. {missed} of {int(large.sum())} errors "
        f"of 100 % or "
        f"more are missed; {false} of {int(small.sum())} below 10 % raise a false alarm.",
        {
            "derivatives": len(judged), "within a factor 10": within, "below a third": below,
            "missed alarms": missed, "false alarms": false, "median ratio": float(ratio.median()),
        },
    )  # fmt: skip


def figure(frame: Frame) -> Figure:
    shown = frame[(frame["truth"] > ROUNDING) & frame["ok"]]
    # on quadratics one Newton correction is exact, and the points lie on the diagonal by themselves
    first = "logistic" if "logistic" in set(shown["family"]) else str(shown["family"].iloc[0])
    return points(
        shown, x="truth", y="estimate", series="mode", diagonal=True, more=("T", "seed"),
        titles=("true relative error", "estimated relative error"),
        controls={"family": first},
    )  # fmt: skip


STUDY = Study(
    name="certificates",
    title="Can the error estimates be trusted?",
    claim="The estimated error of a derivative is close to the true one, whatever way the "
    "derivative "
    "was computed.",
    source="ours; benchmarks/calibration.py tests it on some 16,000 derivatives",
    settings="Random quadratics, ridge, logistic and elastic net regressions (20 unknowns, "
    "condition "
    "10 to 1e4) and tanh layers (norm 0.8 to 0.99), 12 each, starts of norm 0 to twice the normal "
    "one; after 5, 20, 80, 320 steps: unrolled, late start at T/2, 20 terms of Neumann's series, "
    "implicit, and the derivative zero.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="Estimated against true error on logarithmic axes, a colour for each mode; the "
    "points "
    "lie on the diagonal. A menu picks the family of problems.",
)
