"""Late start where the inner problem is no quadratic, and where the map is no gradient step."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pandas as pd

from dargmin.methods import (
    AbstractMethod,
    FixedPointIteration,
    GradientDescent,
    HeavyBall,
    Nesterov,
    ProximalGradient,
)
from dargmin.modes import LateStart
from dargmin.problems import AbstractProblem, FixedPoint, zoo
from dargmin.solve import solve
from dargmin.studies.catalogue.common import data_set, late_starts, relative, times
from dargmin.studies.charts import curves
from dargmin.studies.data import class_indices, regression_target
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

CASES = {
    "ridge, heavy ball": 250, "ridge, Nesterov": 300, "logistic, gradient descent": 600,
    "elastic net, proximal gradient": 800, "elastic net, FISTA": 250, "equilibrium layer": 400,
}  # fmt: skip
SHARES = np.linspace(0, 0.9, 10)


class Layer(eqx.Module):
    """tanh(Wx + e^θ c)."""

    W: Any
    c: Any

    def __call__(self, x: Any, theta: Any) -> Any:
        return jnp.tanh(self.W @ x + jnp.exp(theta) * self.c)


class Case(NamedTuple):
    """A problem with a scalar θ, a method, and the exact answer."""

    problem: AbstractProblem
    method: AbstractMethod
    theta: float
    solution: np.ndarray
    derivative: np.ndarray


def tasks(quick: bool) -> list[Parameters]:
    names = ("equilibrium layer",) if quick else tuple(CASES)
    starts = ("random",) if quick else ("zero", "random")
    return [
        {"case": n, "begin": s, "steps": 60 if quick else CASES[n]} for n in names for s in starts
    ]


def made(name: str) -> Case:
    model, _, method = name.partition(", ")
    if model == "equilibrium layer":
        return _layer()
    data = data_set("breast_cancer")
    theta = float(np.log(0.01))
    if model == "logistic":
        instance = zoo.logistic(data.X, class_indices(data)[0])
        mu, L = instance.spectrum(theta)
        chosen: AbstractMethod = GradientDescent(2 / (L + mu))
    else:
        y = regression_target(data)[0][:, 0]
        if model == "elastic net":
            instance = zoo.elastic_net(data.X, y)
            both = np.array([theta, np.log(0.05)])
            chosen = ProximalGradient(accelerate=method == "FISTA")
            f = _First(instance.problem, jnp.asarray(both[1]))
            return Case(f.problem(), chosen, theta, instance.solution(both),
                        instance.jacobian(both)[:, 0])  # fmt: skip
        instance = zoo.ridge(data.X, y)
        mu, L = instance.spectrum(theta)
        chosen = (HeavyBall if method == "heavy ball" else Nesterov).tuned(mu, L)
    return Case(instance.problem, chosen, theta, instance.solution(theta), instance.jacobian(theta))


class _First(eqx.Module):
    """An elastic net in its first penalty alone."""

    inner: Any
    second: Any

    def problem(self) -> AbstractProblem:
        both = lambda theta: jnp.stack([theta, self.second])
        inner = self.inner
        return type(inner)(
            lambda x, theta: inner.f(x, both(theta)),
            lambda v, theta, step: inner.prox(v, both(theta), step),
            inner.step_size,
        )


def _layer() -> Case:
    """W not symmetric, of norm 0.97; the truth by Newton's method."""
    rng, d, theta = np.random.default_rng(0), 40, 0.0
    W = rng.normal(size=(d, d))
    W *= 0.97 / np.linalg.norm(W, 2)
    c, x = 0.05 * rng.normal(size=d), np.zeros(d)
    for _ in range(50):
        slope = 1 - np.tanh(W @ x + c) ** 2
        x = x - np.linalg.solve(np.eye(d) - slope[:, None] * W, x - np.tanh(W @ x + c))
    slope = 1 - np.tanh(W @ x + c) ** 2
    dx = np.linalg.solve(np.eye(d) - slope[:, None] * W, slope * c)
    A = Layer(jnp.asarray(W), jnp.asarray(c))
    return Case(FixedPoint(A), FixedPointIteration(), theta, x, dx)


def run(case: str, begin: str, steps: int) -> Table:
    it, one = made(case), jnp.ones(())
    rng, d = np.random.default_rng(0), it.solution.size
    x0 = jnp.asarray(rng.normal(size=d) if begin == "random" else np.zeros(d))
    starts, theta = np.unique((SHARES * steps).astype(int)), jnp.asarray(it.theta)
    xs, dxs = (
        np.asarray(u)
        for u in late_starts(
            it.problem, it.method, x0, theta, one, jnp.asarray(starts), steps=steps
        )
    )
    shown = times(steps)
    errors = np.stack([relative(dxs[:, i], it.derivative) for i in range(starts.size)])
    mode = LateStart(start="auto")
    automatic = int(np.asarray(_start(it, x0, theta, steps, mode)))
    near = int(np.argmin(np.abs(starts - automatic)))
    unit = float(np.linalg.norm(x0 - it.solution))
    parts = [
        pd.DataFrame({"K": K, "t": shown[shown >= K], "error": errors[i, shown[shown >= K]]})
        for i, K in enumerate(starts)
    ]
    parts.append(pd.DataFrame({
        "K": -1, "t": shown, "error": relative(xs, it.solution, unit)[shown]
    }))  # fmt: skip
    return dict(
        pd.concat(parts), peak=errors[0].max(), automatic=automatic, full=errors[0, -1],
        chosen=errors[near, -1], best=errors[:, -1].min(),
        best_K=int(starts[np.argmin(errors[:, -1])]),
        later_peak=max(errors[near, starts[near]:].max(), 1.0),
    )  # fmt: skip


@eqx.filter_jit
def _start(it: Case, x0: Any, theta: Any, steps: int, mode: LateStart) -> Any:
    return solve(it.problem, it.method, x0, theta, steps=steps, mode=mode, throw=False).start


def verdict(frame: Frame) -> Verdict:
    runs = frame.groupby(["case", "begin"]).first()
    burnt, calm = runs[runs["peak"] > 1.05], runs[runs["peak"] <= 1.05]
    removed = int((burnt["later_peak"] <= 1.05).sum())
    possible = int((runs["best"] < 0.99 * runs["full"]).sum())
    cost = (calm["chosen"] / calm["full"]).max() if len(calm) else 1.0
    kinds = sorted({case for case, _ in burnt.index})
    return Verdict(
        (HOLDS if removed == len(burnt) and possible == len(runs) else LIMITS) if len(burnt)
        else MISSED,
        f"{len(burnt)} of {len(runs)} runs have a burn-in ({'; '.join(kinds) or 'none'}; up to "
        f"{runs['peak'].max():.3g} times the error of returning zero), and "
        f"the automatic start removes it in {removed}. Some late start has a smaller error at "
        f"the end than unrolling all steps in {possible}. Where there is no burn-in, the "
        f"automatic start "
        f"costs a factor {cost:.3g} at most.",
        {
            "runs": len(runs), "runs with a burn-in": len(burnt), "burn-ins removed": removed,
            "runs in which some late start is better": possible,
            "largest cost without a burn-in": float(cost),
        },
    )  # fmt: skip


def figure(frame: Frame) -> Figure:
    label = frame["K"].map(lambda K: "iterate" if K < 0 else "derivative")
    share = (frame["K"] / frame.groupby(["case", "begin"])["t"].transform("max")).round(1)
    table = frame.assign(what=label, share=share.where(frame["K"] >= 0, 0.0), t=frame["t"] + 1)
    both = [table[table["K"] >= 0]]
    both += [table[table["K"] < 0].assign(share=s) for s in sorted(set(share[frame["K"] >= 0]))]
    return curves(
        pd.concat(both).rename(columns={"share": "late start K/T"}), x="t", y="error",
        series="what", titles=("iteration t + 1", "error, relative"), limits=(1e-12, 1e4),
        controls={"case": str(frame["case"].iloc[0]), "begin": "random", "late start K/T": 0.0},
    )  # fmt: skip


STUDY = Study(
    name="other-maps",
    title="Does late start help beyond gradient descent on quadratics?",
    claim="The burn-in and its remedy are those of any fixed-point iteration: nonquadratic and "
    "nonsmooth problems, methods with momentum as maps of (x, previous x), and maps that are no "
    "gradient steps.",
    source="arXiv 2602.19733, general fixed points; the automatic start: ours",
    settings="breast_cancer, penalty 0.01 (elastic net: 0.01 and 0.05): ridge with heavy ball and "
    "Nesterov, logistic regression, elastic net with and without acceleration; a tanh layer with a "
    "non-symmetric W of norm 0.97; start at zero or standard normal (seed 0); derivatives in one "
    "scalar.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="Over the iterations, the error of the iterate and of the derivative that starts "
    "at K; a slider moves K, menus pick the problem and the start.",
)
