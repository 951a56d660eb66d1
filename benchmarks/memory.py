"""Memory and time of exact reverse mode through gradient descent: writes memory.md and memory.csv.

    python benchmarks/memory.py [--out DIR] [--quick]

The same steps in every library, in one run, repetitions interleaved. Memory is what XLA sets aside
for temporaries, beside arguments and result; time is without compilation."""

import argparse
import csv
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import optimistix as optx

import dargmin

jax.config.update("jax_enable_x64", True)

PEER = "optimistix, RecursiveCheckpointAdjoint"


class Diagonal(eqx.Module):
    """f(x, θ) = ½ Σ aᵢ e^θᵢ xᵢ² + ¼ Σ xᵢ⁴ - bᵀx: every coordinate has its own hyperparameter."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x: Any, theta: Any) -> Any:
        return jnp.sum(self.a * jnp.exp(theta) * x**2 / 2 + x**4 / 4 - self.b * x)


class Logistic(eqx.Module):
    """f(w, θ) = mean log(1 + exp(-yᵢ xᵢᵀw)) + ½ Σ e^θⱼ wⱼ², with a data matrix to drag along."""

    X: jax.Array
    y: jax.Array

    def __call__(self, w: Any, theta: Any) -> Any:
        loss = jnp.mean(jax.nn.softplus(-self.y * (self.X @ w)))
        return loss + jnp.sum(jnp.exp(theta) * w**2) / 2


def contenders(f: Any, step: float, steps: int) -> dict[str, Callable]:
    """x_T as a function of (f, x0, θ), in every library and mode."""
    method = dargmin.GradientDescent(step)

    def dargmin_in(mode: Any) -> Callable:
        def solution(f: Any, x0: Any, theta: Any) -> Any:
            problem = dargmin.Objective(f)
            return dargmin.solve(problem, method, x0, theta, steps=steps, mode=mode, throw=False).x

        return solution

    def plain(f: Any, x0: Any, theta: Any) -> Any:
        def one(x: Any, _: None) -> tuple[Any, None]:
            return x - step * jax.grad(f)(x, theta), None

        return jax.lax.scan(one, x0, None, length=steps)[0]

    def optimistix(f: Any, x0: Any, theta: Any) -> Any:
        solver = optx.OptaxMinimiser(optax.sgd(step), rtol=0.0, atol=0.0)
        adjoint = optx.RecursiveCheckpointAdjoint()
        return optx.minimise(
            f, solver, x0, theta, max_steps=steps, adjoint=adjoint, throw=False
        ).value

    def by_jaxopt(f: Any, x0: Any, theta: Any) -> Any:
        solver = jaxopt.GradientDescent(
            f, stepsize=step, maxiter=steps, tol=0.0, acceleration=False, implicit_diff=False,
            unroll=True, jit=True,
        )  # fmt: skip
        return solver.run(x0, theta).params

    return {
        "dargmin, Unrolled()": dargmin_in(dargmin.Unrolled()),
        'dargmin, Unrolled("sqrt")': dargmin_in(dargmin.Unrolled(checkpoint="sqrt")),
        "dargmin, LateStart(last=20)": dargmin_in(dargmin.LateStart(last=20)),
        "dargmin, Implicit()": dargmin_in(dargmin.Implicit()),
        "plain jax.lax.scan": plain,
        PEER: optimistix,
        "jaxopt, unrolled": by_jaxopt,
    }


def measure(f: Any, x0: Any, theta: Any, step: float, steps: int, repeats: int) -> list[dict]:
    """One row per contender: temporaries, median time, and the distance from plain scan."""
    programs = {}
    for name, solution in contenders(f, step, steps).items():
        gradient = jax.grad(lambda theta, f, s=solution: jnp.sum(jnp.sin(s(f, x0, theta))))
        dynamic, static = eqx.partition(f, eqx.is_array)
        program = jax.jit(lambda theta, d, g=gradient, s=static: g(theta, eqx.combine(d, s)))
        programs[name] = program.lower(theta, dynamic).compile(), dynamic
    times: dict[str, list[float]] = {name: [] for name in programs}
    values = {}
    shuffle = random.Random(0).sample  # whoever follows on a run of gigabytes pays for it
    for _ in range(repeats + 1):
        for name in shuffle(list(programs), len(programs)):
            program, dynamic = programs[name]
            begin = time.perf_counter()
            values[name] = jax.block_until_ready(program(theta, dynamic))
            times[name].append(time.perf_counter() - begin)
    exact = np.asarray(values["plain jax.lax.scan"])
    rows = []
    for name, (program, _) in programs.items():
        difference = np.linalg.norm(np.asarray(values[name]) - exact) / np.linalg.norm(exact)
        # repetition by repetition, so that what else the machine does falls on both
        ratios = [mine / peer for mine, peer in zip(times[name], times[PEER], strict=True)]
        rows.append({
            "": name,
            "temporaries, MB": round(program.memory_analysis().temp_size_in_bytes / 1e6, 2),
            "median time, ms": round(1e3 * statistics.median(times[name][1:]), 1),
            "smallest, ms": round(1e3 * min(times[name][1:]), 1),
            "largest, ms": round(1e3 * max(times[name][1:]), 1),
            "median time / optimistix": round(statistics.median(ratios[1:]), 2),
            "difference from plain scan": f"{difference:.1e}",
        })  # fmt: skip
    return rows


def verdict(rows: list[dict], d: int, steps: int) -> list[dict]:
    """The two targets of square-root checkpointing."""
    mine = next(row for row in rows if row[""] == 'dargmin, Unrolled("sqrt")')
    allowed = 0.15 * d * steps * 8 / 1e6 + 20
    memory, ratio = mine["temporaries, MB"], mine["median time / optimistix"]
    return [
        {
            "target": "temporaries at most 0.15 d T 8 bytes + 20 MB",
            "measured": f"{memory:.1f} of {allowed:.1f} MB",
            "met": "yes" if memory <= allowed else "**no**",
        },
        {
            "target": f"time at most 0.25 x {PEER}",
            "measured": f"{ratio:.2f} x",
            "met": "yes" if ratio <= 0.25 else "**no**",
        },
    ]


def table(rows: list[dict]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[n]) for n in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    arguments = parser.parse_args()
    scale, repeats = (10, 3) if arguments.quick else (1, 9)
    rng = np.random.default_rng(0)

    d, steps = 100_000 // scale, 300
    f = Diagonal(jnp.asarray(rng.uniform(0.5, 1, d)), jnp.asarray(rng.normal(size=d) / 10))
    diagonal = measure(f, jnp.zeros(d), jnp.zeros(d), 0.5, steps, repeats)

    n, p = 200, 10_000 // scale
    X = rng.normal(size=(n, p)) / np.sqrt(p)
    g = Logistic(jnp.asarray(X), jnp.asarray(np.sign(X[:, 0])))
    logistic = measure(g, jnp.zeros(p), jnp.full(p, -3.0), 1.0, steps, repeats)

    names = ("dargmin", "jax", "optimistix", "jaxopt")
    command = "python benchmarks/memory.py" + (" --quick" if arguments.quick else "")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    text = [
        "# Memory and time of exact reverse-mode derivatives",
        f"`{command}` ({versions}, Python {platform.python_version()}, {platform.machine()})",
        f"## No data: d = {d}, T = {steps}, gradient descent, one hyperparameter per coordinate",
        table(diagonal),
        table(verdict(diagonal, d, steps)),
        f"## Logistic regression, {n} x {p} data ({X.nbytes / 1e6:.0f} MB), T = {steps}",
        "Data that were kept at every step would take "
        f"{X.nbytes * steps / 1e6:.0f} MB. `LateStart` and `Implicit` are other derivatives.",
        table(logistic),
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "memory.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    with (arguments.out / "memory.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [{"problem": "diagonal"} | row for row in diagonal]
        rows += [{"problem": "logistic"} | row for row in logistic]
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("\n\n".join(text))


if __name__ == "__main__":
    main()
