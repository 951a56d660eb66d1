"""Unrolled or implicit: the error at equal cost, and at equal memory."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from dargmin.linear import CG, LinearOptions, prepare, solve_linear
from dargmin.modes import Neumann
from dargmin.problems import AbstractProblem
from dargmin.studies.catalogue.common import METHODS, fitted, late_starts, relative, start
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

BUDGETS = (10, 20, 40, 80, 160, 320)
PRODUCT = 2  # gradients that a Hessian-vector product costs
PROBLEMS = {
    "ridge": ("breast_cancer", 0.05), "logistic": ("breast_cancer", 0.01),
    "multinomial": ("wine", 0.01),
}  # fmt: skip


def tasks(quick: bool) -> list[Parameters]:
    problems = ("ridge",) if quick else tuple(PROBLEMS)
    methods = ("Nesterov",) if quick else (*METHODS,)
    budgets = BUDGETS[:2] if quick else BUDGETS
    return [
        {"problem": p, "method": m, "budgets": list(budgets)} for p in problems for m in methods
    ]


def run(problem: str, method: str, budgets: list[int]) -> Table:
    data, penalty = PROBLEMS[problem]
    fit = fitted(data, "ridge" if problem == "ridge" else "logistic", penalty)
    theta, one = jnp.asarray(fit.theta), jnp.ones(())
    x0, shares = start(fit.solution.shape, "random"), (0.0, 0.5, 0.8)
    rows: list[dict[str, Any]] = []

    def add(way: str, dx: Any, T: int, products: int, gradients: int, stored: int) -> None:
        error = float(relative(np.asarray(dx)[None], fit.derivative)[0])
        cost = T + gradients + PRODUCT * products
        rows.append({"way": way, "T": T, "cost": cost, "memory": stored, "error": error})

    starts = jnp.asarray([[int(s * T) for s in shares] for T in budgets]).ravel()
    xs, dxs = late_starts(
        fit.problem, METHODS[method](*fit.spectrum), x0, theta, one, starts, steps=max(budgets)
    )
    for i, T in enumerate(budgets):
        for j, share in enumerate(shares):
            n = T - int(share * T)
            way = "unrolled" if share == 0 else "late start"
            add(way, dxs[T, len(shares) * i + j], T, n, 0, n)
        for terms in (1, 20, 80):
            dx = _neumann(fit.problem, xs[T], theta, Neumann(terms=terms))
            add("one-step" if terms == 1 else "Neumann", dx, T, terms, 0, 1)
        for rtol in (1e-1, 1e-2, 1e-4, 1e-8):
            dx, products = _implicit(fit.problem, xs[T], theta, jnp.asarray(rtol))
            add("implicit", dx, T, int(products), 0, 1)
            dx, products = _polished(fit.problem, xs[T], theta, jnp.asarray(rtol))
            add("implicit, polished", dx, T, int(products), 1, 1)
    return dict(pd.DataFrame(rows))


@eqx.filter_jit
def _neumann(problem: AbstractProblem, x: Any, theta: Any, mode: Neumann) -> Any:
    along = lambda theta: mode.attach(prepare(problem, x, theta), x, theta, False)
    return jax.jvp(along, (theta,), (jnp.ones_like(theta),))[1]


@eqx.filter_jit
def _implicit(problem: AbstractProblem, x: Any, theta: Any, rtol: Any) -> tuple[Any, Any]:
    """-H⁻¹ ∂_θ∇f at x, and the products that conjugate gradients took."""
    problem = prepare(problem, x, theta)
    change = jax.jvp(lambda t: problem.residual(x, t), (theta,), (jnp.ones_like(theta),))[1]
    found = solve_linear(problem, x, theta, -change, options=LinearOptions(CG(), None, rtol))
    return found.value, found.info.products


@eqx.filter_jit
def _polished(problem: AbstractProblem, x: Any, theta: Any, rtol: Any) -> tuple[Any, Any]:
    """The same at x - H⁻¹∇f."""
    problem, options = prepare(problem, x, theta), LinearOptions(CG(), None, rtol)
    step = solve_linear(problem, x, theta, problem.residual(x, theta), options=options)
    dx, products = _implicit(problem, x - step.value, theta, rtol)
    return dx, products + step.info.products


def least(frame: Frame, budget: str) -> Frame:
    """For each problem and way, the least error within every budget of cost or memory."""
    rows = []
    for limit in np.geomspace(20, 900, 12) if budget == "cost" else (1, 10, 40, 160):
        within = frame[frame[budget] <= limit]
        best = within.groupby(["problem", "way"])["error"].min().unstack("way")
        rows.append(best.assign(limit=limit))
    return pd.concat(rows).reset_index()


def verdict(frame: Frame) -> Verdict:
    ways = sorted(set(frame["way"]))
    at_cost, at_memory = (least(frame, b).dropna(subset="implicit") for b in ("cost", "memory"))
    winner = at_cost[ways].idxmin(axis=1)
    unrolling = at_cost[["unrolled", "late start"]].min(axis=1)
    implicit = at_cost[["implicit", "implicit, polished"]].min(axis=1)
    ratio = (unrolling / implicit).dropna()
    shares = winner.value_counts(normalize=True)
    ours = float(shares.get("implicit", 0) + shares.get("implicit, polished", 0))
    by_memory = at_memory[ways].idxmin(axis=1)
    memory = float(by_memory.str.startswith("implicit").mean())
    return Verdict(
        HOLDS if ours == 1 and memory == 1 else LIMITS if ours > 0.5 else MISSED,
        f"Within equal cost (a product counts as {PRODUCT} gradients) an implicit derivative is "
        f"the "
        f"most accurate in {100 * ours:.0f} % of {len(winner)} budgets, the polished one in "
        f"{100 * shares.get('implicit, polished', 0):.0f} %; the best unrolled or late started "
        f"one, "
        f"whatever its method, has {ratio.median():.3g} times its error in the median. At equal "
        f"memory it is the implicit one in {100 * memory:.0f} %.",
        {
            "budgets": len(winner),
            "share won by implicit, cost": ours,
            "share won by implicit, memory": memory,
            "error unrolled / implicit, median": float(ratio.median()),
            "least ratio": float(ratio.min()),
        },
    )


def figure(frame: Frame) -> Figure:
    fronts = []
    for budget in ("cost", "memory"):
        for (problem, way), part in frame.groupby(["problem", "way"]):
            part = part.sort_values([budget, "error"])
            part = part[part["error"] < part["error"].cummin().shift(fill_value=np.inf)]
            fronts.append(part.assign(problem=problem, way=way, equal=budget, at=part[budget]))
    return points(
        pd.concat(fronts), x="at", y="error", series="way", join=True, rule=1.0,
        more=("method", "T"),
        titles=("cost in gradients, or vectors kept", "derivative error, relative"),
        controls={"problem": str(frame["problem"].iloc[0]), "equal": "cost"},
    )  # fmt: skip


STUDY = Study(
    name="pareto",
    title="Unrolled or implicit, at equal cost?",
    claim="At equal cost, and at equal memory, implicit differentiation is at least as accurate as "
    "any way of unrolling.",
    source="ours: arXiv 2209.13271 does not compare",
    settings="Ridge and logistic regression on breast_cancer, multinomial regression on wine; "
    "standard normal start; six methods, 10 to 320 steps; unrolled, late starts at 0.5 T and 0.8 "
    "T, one step, 20 and 80 terms of Neumann's series, conjugate gradients to relative residuals "
    "from 0.1 to 1e-8, the same at the Newton-corrected point. Memory: vectors kept in reverse "
    "mode.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="Pareto fronts: the least error of each way of differentiating over its cost in "
    "gradients (or its memory in vectors). Where the budget allows for "
    "conjugate gradients at all, the polished implicit derivative is mostly lowest.",
)
