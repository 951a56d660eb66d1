"""Whether `plan` chooses well: writes plans.md and plans.csv.

    python benchmarks/plans.py [--out DIR] [--quick]

On every problem all candidates of `dargmin.plan` are run, and their derivatives compared with the
exact Jacobian. What the plan chose is then compared with the best of those that fit the memory.
The problems and their exact answers are those of calibration_cases.py."""

import argparse
import math
import platform
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from calibration_cases import SPECTRA, Case, affine, dense_quadratic, elastic_net, layer, logistic

import dargmin
from dargmin.linear import prepare
from dargmin.loop import Run, freeze, unroll

jax.config.update("jax_enable_x64", True)

STEPS = (20, 300)
EQUAL = 1e-8
"""Errors below this count as equal: linear solves stop at 1e-10 times the condition."""


def problems(quick: bool) -> list[Case]:
    seeds = range(2 if quick else 8)
    rng = lambda *key: np.random.default_rng([77, *key])
    found = [
        dense_quadratic(kind, condition, rng(i, j), np.float64)
        for i, condition in enumerate((1e1, 1e4) if quick else (1e1, 1e2, 1e3, 1e4))
        for j, kind in enumerate(SPECTRA[:1] if quick else SPECTRA[:2])
    ]
    found += [make(seed, np.float64) for make in (logistic, elastic_net) for seed in seeds]
    rates = (0.9,) if quick else (0.5, 0.9)
    for rho in rates:
        for seed in range(2):
            found += [affine(rho, seed, np.float64), layer(rho, seed, np.float64)]
    return found


@eqx.filter_jit
def in_mode(problem: Any, method: Any, x0: Any, theta: Any, steps: int, mode: Any) -> Any:
    solve = partial(dargmin.solve, problem, method, x0, steps=steps, mode=mode, throw=False)
    return jax.jacfwd(lambda theta: solve(theta).x)(theta)


@eqx.filter_jit
def from_start(problem: Any, method: Any, x0: Any, theta: Any, steps: int, start: Any) -> Any:
    """As `LateStart(start)`, compiled once for every start."""
    problem = prepare(problem, x0, theta)
    run = Run(problem, method.prepare(problem, x0, theta), theta)
    carry = jax.lax.stop_gradient(
        eqx.filter(freeze(run, run.begin(x0), start, None)[0], eqx.is_array)
    )
    static = eqx.filter(run.begin(x0), eqx.is_array, inverse=True)

    def last_iterate(theta: Any) -> Any:
        late = Run(run.problem, run.method, theta)
        return unroll(late, eqx.combine(carry, static), steps, limit=jnp.asarray(steps)).x

    return jax.jacfwd(last_iterate)(theta)


def true_error(case: Case, choice: Any) -> float:
    steps, mode = choice.steps, choice.mode
    arguments = case.problem, choice.method, case.x0, case.theta, steps
    if isinstance(mode, dargmin.LateStart):
        jacobian = from_start(*arguments, jnp.asarray(mode.start))
    else:  # checkpoints change nothing in forward mode
        plain = isinstance(mode, dargmin.Unrolled)
        jacobian = in_mode(*arguments, dargmin.Unrolled() if plain else mode)
    error = np.linalg.norm(np.asarray(jacobian) - case.jacobian) / np.linalg.norm(case.jacobian)
    return float(error) if np.isfinite(error) else math.inf


def judge(case: Case, steps: int) -> list[dict]:
    size = case.x0.size * 8
    settings = {
        ("any mode", "all"): {},
        ("any mode", "tight"): dict(memory=8 * size),
        ("unrolled", "all"): dict(mode=dargmin.Unrolled()),
        ("unrolled", "tight"): dict(mode=dargmin.Unrolled(), memory=(steps // 2 + 2) * size),
    }
    known: dict[str, float] = {}
    rows = []
    for (freedom, memory), options in settings.items():
        p = dargmin.plan(case.problem, case.x0, case.theta, steps=steps, **options)
        errors = []
        for choice in (p, *p.alternatives):
            key = f"{type(choice.method).__name__} {choice.note} {choice.mode}"
            if key not in known:
                known[key] = true_error(case, choice)
            errors.append(known[key])
        best = max(min(errors), EQUAL)
        rows.append(
            dict(
                family=case.family, problem=case.name, steps=steps, freedom=freedom, memory=memory,
                method=type(p.method).__name__, mode=type(p.mode).__name__, error=errors[0],
                predicted=p.predicted_error, best=best, ratio=max(errors[0], EQUAL) / best,
                candidates=len(errors),
            )
        )  # fmt: skip
    return rows


def table(frame: pd.DataFrame) -> str:
    lines = [list(frame), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="a quarter of the problems")
    arguments = parser.parse_args()
    begin, rows = time.perf_counter(), []
    cases = problems(arguments.quick)
    for i, case in enumerate(cases):
        print(f"\r{i + 1}/{len(cases)} {case.family:<20}", end="", file=sys.stderr)
        for steps in STEPS:
            rows += judge(case, steps)
    print(file=sys.stderr)
    frame = pd.DataFrame(rows)
    groups = frame.groupby(["freedom", "family"], sort=False)
    summary = groups.ratio.agg(
        plans="size",
        within=lambda r: f"{100 * np.mean(r <= 1.5):.0f} %",
        worst=lambda r: f"{r.max():.3g}",
    ).reset_index()
    summary.columns = ["", "family", "plans", "within 1.5 x of the best", "worst ratio"]
    verdict = []
    for freedom, group in frame.groupby("freedom"):
        within, worst = 100 * np.mean(group.ratio <= 1.5), group.ratio.max()
        for target, met, value in (
            (
                "error within 1.5 x of the best candidate: at least 90 %",
                within >= 90,
                f"{within:.1f} %",
            ),
            ("never worse than 5 x", worst <= 5, f"{worst:.3g} x"),
        ):
            verdict.append(
                {
                    "": freedom,
                    "target": target,
                    "measured": value,
                    "met": "yes" if met else "**no**",
                }
            )
    command = "python benchmarks/plans.py" + (" --quick" if arguments.quick else "")
    versions = ", ".join(f"{name} {version(name)}" for name in ("dargmin", "jax", "numpy"))
    text = [
        "# Whether `plan` chooses well",
        f"`{command}` ({versions}, Python {platform.python_version()}, {platform.machine()})",
        f"{len(cases)} problems x T = {STEPS[0]} and {STEPS[1]} x all the memory and little of it. "
        f"The error is that of the whole Jacobian; errors below {EQUAL:g} count as equal.",
        table(pd.DataFrame(verdict)),
        table(summary),
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "plans.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    frame.to_csv(arguments.out / "plans.csv", index=False, float_format="%.3g")
    print("\n\n".join(text))
    print(f"{len(frame)} plans in {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
