"""What warm starts save: products in 50 steps of an outer loop whose hypergradients are to 1e-6.

    python benchmarks/warm_start.py [--out benchmarks/results] [--quick]

Adam walks along the same θ in every row; what differs is what each hypergradient is told of the
one before. Solves are by conjugate gradients throughout, so that products can be compared."""

import argparse
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

import dargmin
from dargmin.linear import CG

jax.config.update("jax_enable_x64", True)

STEPS, RTOL, FIRST_THETA = 50, 1e-6, -4.0


class Loss(eqx.Module):
    """mean log(1 + exp(-yᵢ xᵢᵀw))."""

    X: jax.Array
    y: jax.Array

    def __call__(self, w: Any, theta: Any) -> Any:
        return jnp.mean(jax.nn.softplus(-self.y * (self.X @ w)))


class Penalised(eqx.Module):
    """The loss + ½ Σ e^θⱼ wⱼ²."""

    loss: Loss

    def __call__(self, w: Any, theta: Any) -> Any:
        return self.loss(w, theta) + 0.5 * jnp.sum(jnp.exp(theta) * w**2)


class Diagonal(eqx.Module):
    """The diagonal of its Hessian."""

    loss: Loss

    def __call__(self, w: Any, theta: Any) -> Any:
        p = jax.nn.sigmoid(self.loss.y * (self.loss.X @ w))
        return jnp.mean((p * (1 - p))[:, None] * self.loss.X**2, axis=0) + jnp.exp(theta)


class Case(NamedTuple):
    """Data, how many rows train, what to compare, and what the best may cost next to the first."""

    name: str
    X: np.ndarray
    y: np.ndarray
    train: int
    rows: tuple
    target: float


def breast_cancer() -> Case:
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    return Case("breast_cancer, 400 x 30, 30 penalties", X, 2.0 * y - 1, 400, ROWS, 0.5)


def badly_scaled(n: int, d: int) -> Case:
    """Columns of sizes 1 to 0.1."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1, 0.1, d)
    X = rng.normal(size=(n, d)) * sizes
    y = np.sign(X @ (3 * rng.normal(size=d) / sizes / np.sqrt(d)) + rng.normal(size=n))
    return Case(f"badly scaled, {n} x {d}, {d} penalties", X, y, 4 * n // 5, FEW, 0.25)


class Row(NamedTuple):
    """What is handed on: nothing, x, the adjoint, its extrapolation, pairs; Jacobi or not."""

    name: str
    x: bool = False
    adjoint: bool = False
    extrapolated: bool = False
    pairs: int = 0
    jacobi: bool = False


ROWS = (
    Row("cold"),
    Row("x", x=True),
    Row("x, adjoint", x=True, adjoint=True),
    Row("x, adjoint extrapolated", x=True, adjoint=True, extrapolated=True),
    Row("x, adjoint extrapolated, 10 pairs", True, True, True, 10),
    Row("x, adjoint extrapolated, 30 pairs", True, True, True, 30),
    Row("cold, Jacobi", jacobi=True),
    Row("x, adjoint extrapolated, Jacobi", True, True, True, jacobi=True),
    Row("x, adjoint extrapolated, 30 pairs, Jacobi", True, True, True, 30, True),
)


FEW = tuple(row for row in ROWS if row.extrapolated == row.x and row.pairs != 10)
"""For a case where a row takes minutes."""


def remembered(warm: dargmin.WarmStart, row: Row) -> dargmin.WarmStart | None:
    """What `row` hands on of a warm start."""
    if not row.x:
        return None
    if not row.adjoint:
        nothing = jnp.zeros_like(warm.adjoint)
        return eqx.tree_at(lambda w: (w.adjoint, w.previous), warm, (nothing, nothing))
    if not row.extrapolated:
        return eqx.tree_at(lambda w: w.previous, warm, warm.adjoint)
    return warm


def run(case: Case, row: Row, steps: int) -> dict[str, Any]:
    """The costs of `steps` outer steps."""
    X, y = jnp.asarray(case.X), jnp.asarray(case.y)
    inside = Loss(X[: case.train], y[: case.train])
    outside = Loss(X[case.train :], y[case.train :])
    problem = dargmin.Objective(
        Penalised(inside), diagonal=Diagonal(inside) if row.jacobi else None, quadratic=False
    )
    d = X.shape[1]
    x0, theta, adam = jnp.zeros(d), jnp.full(d, FIRST_THETA), optax.adam(0.1)
    state, warm = adam.init(theta), dargmin.WarmStart.zeros(x0, row.pairs)
    costs, failures = [], 0
    for _ in range(steps):
        h = dargmin.hypergradient(
            outside, problem, x0, theta, rtol=RTOL, mode=dargmin.Implicit(CG()),
            warm_start=remembered(warm, row), throw=False,
        )  # fmt: skip
        warm = h.warm_start
        costs.append([int(n) for n in (h.cost.adjoint, h.cost.products, h.cost.gradients)])
        failures += not bool(h.ok)
        updates, state = adam.update(h.gradient, state)
        theta = theta + updates
    adjoint, products, gradients = np.sum(costs, axis=0)
    return {
        "handed on": row.name,
        "adjoint products": adjoint,
        "all products": products,
        "gradients": gradients,
        "not certified": failures,
        "last value": f"{float(h.value):.6f}",
    }


def table(rows: list[dict]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[n]) for n in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def compare(case: Case, steps: int) -> list[str]:
    """The section of one case: its rows, and whether the best of them meets the target."""
    rows = []
    for row in case.rows:
        rows.append(run(case, row, steps))
        print(case.name, rows[-1], flush=True)
    for row in rows:
        row["/ cold"] = f"{row['adjoint products'] / rows[0]['adjoint products']:.2f}"
    best = min(rows, key=lambda row: row["adjoint products"])
    share = best["adjoint products"] / rows[0]["adjoint products"]
    verdict = {
        "target": f"adjoint products at most {case.target} x cold",
        "measured": f"{share:.2f} x ({best['handed on']})",
        "met": "yes" if share <= case.target else "**no**",
    }
    return [f"## {case.name}", table(rows), table([verdict])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="smaller, and ten steps")
    arguments = parser.parse_args()
    steps, scale = (10, 10) if arguments.quick else (STEPS, 1)
    cases = (breast_cancer(), badly_scaled(5000 // scale, 1000 // scale))
    versions = ", ".join(f"{name} {version(name)}" for name in ("dargmin", "jax", "optax"))
    command = "python benchmarks/warm_start.py" + (" --quick" if arguments.quick else "")
    text = [
        "# What warm starts save in an outer loop",
        f"`{command}` ({versions}, Python {platform.python_version()}, {platform.machine()})",
        f"Logistic regression with one penalty for each feature, {steps} outer steps of Adam, each "
        f"hypergradient certified to {RTOL:g}, by conjugate gradients. Adjoint products are those "
        "of the adjoint solves of all rounds, with what certifying them takes; all products "
        "contain also those of the inner solve and of the Newton corrections.",
    ]
    for case in cases:
        text += compare(case, steps)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "warm_start.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))


if __name__ == "__main__":
    main()
