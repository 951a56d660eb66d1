"""The honesty set: ten ways to be silently wrong, in three libraries."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pandas as pd

from dargmin.hypergradient import hypergradient
from dargmin.methods import AbstractMethod, FromOptimistix, GradientDescent, ProximalGradient
from dargmin.modes import AbstractMode, Unrolled
from dargmin.problems import Composite, Objective, zoo
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

RTOL = 1e-3
CASES = {
    "S1": "ridge, condition 1e6, adjoint by default",
    "S2": "lasso, adjoint by conjugate gradients",
    "S3": "a quasi-Newton method unrolled, 5 steps",
    "S4": "a quasi-Newton method unrolled, tight tolerance",
    "S5": "a solver that stops on a small step",
    "S6": "gradient descent unrolled in its burn-in",
    "S7": "FISTA unrolled",
    "S8": "singular but consistent",
    "S9": "single precision, condition 6e4",
    "S10": "inner problem solved to 1e-3",
}
LIBRARIES = ("jaxopt", "optimistix", "dargmin")


def tasks(quick: bool) -> list[Parameters]:
    return [{"case": name} for name in (("S1",) if quick else CASES)]


class Sum(eqx.Module):
    """½‖x - 1‖² on what the data determine."""

    M: Any

    def __call__(self, x: Any, theta: Any) -> Any:
        return 0.5 * jnp.sum((self.M @ x - 1) ** 2)


def ridge(condition: float, dtype: Any = float) -> tuple[zoo.Instance, Any]:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=s))[0] for s in ((150, 100), (100, 100)))
    X = np.sqrt(150) * (left * np.sqrt(np.geomspace(1, 0.5 / condition, 100))) @ right.T
    y = X @ rng.normal(size=100) + 0.1 * rng.normal(size=150)
    return zoo.ridge(X.astype(dtype), y.astype(dtype)), np.asarray(np.log(0.5 / condition), dtype)


def setting(case: str) -> tuple[Any, Any, Any, float, Sum]:
    """Problem, x_0, θ, the true hypergradient, and φ."""
    rng = np.random.default_rng(0)
    if case == "S8":
        X, y, u = rng.normal(size=(5, 8)), rng.normal(size=5), rng.normal(size=5)
        f = jax.tree_util.Partial(
            lambda X, y, u, x, theta: 0.5 * jnp.sum((X @ x - y - theta * u) ** 2),
            *map(jnp.asarray, (X, y, u)),
        )
        M, inverse = np.vstack([X, np.zeros((3, 8))]), np.linalg.pinv(X)
        truth = float((M @ inverse @ (y + 0.5 * u) - 1) @ M @ inverse @ u)
        return Objective(f), jnp.zeros(8), jnp.asarray(0.5), truth, Sum(jnp.asarray(M))
    if case in ("S2", "S7"):
        X = rng.normal(size=(15, 30)) + rng.normal(size=(15, 1))
        y = X[:, :4] @ np.ones(4) + 0.3 * rng.normal(size=15)
        instance, theta = zoo.lasso(X, y), np.asarray(-2.0)
    elif case in ("S1", "S9"):
        instance, theta = ridge(1e6) if case == "S1" else ridge(6e4, np.float32)
    elif case == "S6":
        lam = np.geomspace(1e-4, 1, 8)
        instance, theta = zoo.quadratic(lam, linear=lam**2, dense=False), np.asarray(0.0)
    else:
        X = rng.normal(size=(60, 8)) * np.geomspace(1, 0.05, 8)
        labels = (X.sum(axis=1) + rng.logistic(size=60) > 0).astype(int)
        instance, theta = zoo.logistic(X, labels), np.asarray(-6.0)
    x, jacobian = instance.solution(theta), instance.jacobian(theta)
    outer = Sum(jnp.eye(x.size, dtype=instance.x0.dtype))
    truth = float((x - 1) @ jacobian)
    return instance.problem, instance.x0, jnp.asarray(theta), truth, outer


def run(case: str) -> Table:
    problem, x0, theta, truth, outer = setting(case)
    rows = []
    for library, way in zip(LIBRARIES, (by_jaxopt, by_optimistix, by_dargmin), strict=True):
        value, flagged, said = np.nan, False, ""
        try:
            gradient, flagged, said = way(case, problem, x0, theta, outer)
            value = float(np.abs(np.asarray(gradient, float) - truth) / np.abs(truth))
        except NotImplementedError as error:
            said = f"not done: {error}"
        except Exception as error:
            flagged, said = True, f"raises {type(error).__name__}"
        if "not done" not in said and not np.isfinite(value):
            flagged = True  # NaN says that it is wrong
        rows.append({
            "library": library, "what": CASES[case], "error": value, "flagged": flagged,
            "said": said, "asked": 1e-2 if case == "S9" else RTOL,
        })  # fmt: skip
    return dict(pd.DataFrame(rows))


def by_dargmin(case: str, problem: Any, x0: Any, theta: Any, outer: Any) -> tuple[Any, bool, str]:
    """The defaults, or the same algorithm unrolled where that is the case; flagged by status."""
    method: AbstractMethod | None = None
    mode: AbstractMode | None = None
    steps = 10_000
    if case in ("S3", "S4", "S6", "S7"):
        mode, steps = Unrolled(), {"S3": 5, "S4": 60, "S6": 100, "S7": 150}[case]
        method = {
            "S6": GradientDescent(2 / (1 + 1e-4)), "S7": ProximalGradient(),
        }.get(case, FromOptimistix(optx.LBFGS(rtol=1e-9, atol=1e-9)))  # fmt: skip
    h = hypergradient(
        outer, problem, x0, theta, rtol=1e-2 if case == "S9" else RTOL, method=method, mode=mode,
        steps=steps, throw=False,
    )  # fmt: skip
    said = f"certified error {float(h.certificate.error):.2g}"
    return h.gradient, not bool(h.ok), said


def by_jaxopt(case: str, problem: Any, x0: Any, theta: Any, outer: Any) -> tuple[Any, bool, str]:
    """L-BFGS, or the algorithm that the case is about; its status says nothing of derivatives."""
    solver = _jaxopt_solver(case, problem)
    copies = 2 if isinstance(problem, Composite) else 1  # θ of the prox, and of f
    fit = lambda theta: solver.run(x0, *copies * (theta,)).params
    return jax.grad(lambda theta: outer(fit(theta), theta))(theta), False, ""


def _jaxopt_solver(case: str, problem: Any) -> Any:
    if importlib.util.find_spec("jaxopt") is None:
        raise NotImplementedError("jaxopt is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that it is no longer maintained
        jaxopt: Any = importlib.import_module("jaxopt")
    f: Callable = problem.f
    prox = lambda v, theta, scaling=1.0: problem.prox(v, theta, scaling)
    match case:
        case "S2":
            solve = importlib.import_module("jaxopt.linear_solve").solve_cg
            return jaxopt.ProximalGradient(
                f, prox, tol=1e-8, maxiter=5000, implicit_diff_solve=solve
            )
        case "S3" | "S4":
            steps = 5 if case == "S3" else 60
            return jaxopt.LBFGS(f, maxiter=steps, tol=1e-9, implicit_diff=False, unroll=True)
        case "S5":
            return jaxopt.GradientDescent(f, stepsize=1e-3, acceleration=False, maxiter=100)
        case "S6":
            return jaxopt.GradientDescent(
                f, stepsize=2 / (1 + 1e-4), acceleration=False, maxiter=100, tol=0.0,
                implicit_diff=False,
            )  # fmt: skip
        case "S7":
            return jaxopt.ProximalGradient(f, prox, maxiter=150, tol=0.0, implicit_diff=False)
        case _:
            return jaxopt.LBFGS(f, tol=1e-3 if case == "S10" else 1e-8, maxiter=5000)


def by_optimistix(
    case: str, problem: Any, x0: Any, theta: Any, outer: Any
) -> tuple[Any, bool, str]:
    """BFGS with its default adjoint, or the algorithm that the case is about."""
    if isinstance(problem, Composite):
        raise NotImplementedError("optimistix has no proximal methods")
    tight = 1e-3 if case == "S10" else 1e-9
    unrolled = case in ("S3", "S4")
    solver: Any = (optx.LBFGS if unrolled else optx.BFGS)(rtol=tight, atol=tight)
    adjoint: Any = optx.ImplicitAdjoint()
    steps: int = 5000
    if case in ("S3", "S4", "S6"):
        adjoint, steps = optx.RecursiveCheckpointAdjoint(), {"S3": 5, "S4": 60, "S6": 100}[case]
    if case in ("S5", "S6"):
        rate = 2 / (1 + 1e-4) if case == "S6" else 1e-3
        solver = optx.GradientDescent(rate, rtol=tight, atol=tight if case == "S6" else 1e-3)

    def value(theta: Any) -> Any:
        found = optx.minimise(
            lambda x, theta: problem.f(x, theta), solver, x0, theta, adjoint=adjoint,
            max_steps=steps, throw=case not in ("S3", "S4", "S6"),
        )  # fmt: skip
        return outer(found.value, theta)

    return jax.grad(value)(theta), False, ""


def verdict(frame: Frame) -> Verdict:
    done = frame[~frame["said"].str.startswith("not done")]
    silent = ~done["flagged"] & ~(done["error"] <= 3 * done["asked"])
    wrong = silent.groupby(done["library"]).sum().reindex(LIBRARIES, fill_value=0)
    count = done.groupby("library").size().reindex(LIBRARIES, fill_value=0)
    words = ", ".join(f"{name} in {wrong[name]} of {count[name]}" for name in LIBRARIES)
    loud = int(done[done["library"] == "dargmin"]["flagged"].sum())
    return Verdict(
        MISSED if wrong["dargmin"] else HOLDS if wrong["jaxopt"] + wrong["optimistix"] else LIMITS,
        f"Wrong by more than three times the accuracy asked for, without a word: {words} cases. "
        f"dargmin flags {loud} of its {count['dargmin']}, as it was made to unroll there"
        f"{'; the others are right.' if not wrong['dargmin'] else '.'}",
        {f"silently wrong, {name}": int(wrong[name]) for name in LIBRARIES},
    )


def figure(frame: Frame) -> Figure:
    said = np.where(frame["flagged"], "says so", "silent")
    number = frame["case"].str[1:].astype(int)
    shown = frame.assign(says=said, number=number, error=frame["error"].clip(1e-12, 1e12))
    return points(
        shown, x="number", y="error", series="library", shape="says", rule=RTOL,
        scales=("ordinal", "log"), titles=("case S1 to S10", "relative error of the hypergradient"),
        more=("what", "said"),
    )  # fmt: skip


STUDY = Study(
    name="honesty",
    title="Who says when a derivative is wrong?",
    claim="Where other libraries return wrong derivatives without a word, dargmin returns right "
    "ones "
    "or says that they are not.",
    source="ours; tests/test_honesty.py holds dargmin to it",
    settings="; ".join(f"{name}: {what}" for name, what in CASES.items()) + ". Accuracy asked for: "
    "1e-3 (S9: 1e-2). jaxopt: L-BFGS; optimistix: BFGS, unrolled L-BFGS; both with their default "
    "adjoints unless "
    "the "
    "case is about another; NaN and exceptions count as said.",
    tasks=tasks,
    run=run,
    verdict=verdict,
    figure=figure,
    description="Relative error of the hypergradient in ten cases for three libraries; the shape "
    "tells "
    "whether the library said that it is wrong. dargmin's silent ones all lie below the accuracy "
    "asked for, 1e-3.",
)
