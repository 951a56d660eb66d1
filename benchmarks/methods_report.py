"""The tables of methods.py: what was asked of the methods, and what was measured."""

import csv
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

LIMIT = "hindsight limit"
WARM = "∂x* at e^½ times the penalty (logistic)"
DEFAULT = "Sobolev(α=0.5, η=μL)"
SHOWN = (
    "Sobolev(α=0, η=μL)",
    "Sobolev(α=0.25, η=μL)",
    DEFAULT,
    "Sobolev(α=1, η=μL)",
    "Chebyshev",
    "Nesterov",
    "gradient descent, 1/L",
)
GOALS = ("to 1e-1", "to 1e-3")
BURN_IN = 1.05

RULES = """\
- The error is ‖dx_t - dx*‖ / ‖dx_0 - dx*‖. A peak above 1.05 is a burn-in: the derivative was worse
  than the one at the start. Steps are counted until the error stays below; in each problem they are
  divided by those of its fastest method, and the table has the geometric means.
- **24 quadratics**, d = 400, exact in the eigenbasis, where dx_t - dx* = P_t(Λ) a + P_t'(Λ) c with
  a = dx_0 - dx* and c = dH (x_0 - x*): four spectra on [κ, 1] (Marchenko-Pastur, uniform,
  log-uniform, and the power law λ_i = i^-p, the spectrum of a kernel), κ = 1e-2 and 1e-4, and
  three pairs, with a and g independent and standard normal:
  c = -Λa (x_0 = 0, dH = I, and the solution Λa is smooth); c = Λg (dH = H, independent of a);
  c = √(μL) g (c excites small eigenvalues as much as large ones).
- **Beyond the 24**, on the same spectra: x* white with dH = I (all error on small eigenvalues, so
  that no one has a burn-in), and c = ‖Λ‖ g with ‖Λ‖² the mean of λ² (a dH of the size of L on
  eigenvectors of eigenvalue μ, while dx* stays of order one, so that everyone has).
- **18 logistic regressions** on breast_cancer (569 x 30, standardised): penalty e^ρ with ρ = -3, -5
  and -7, from x_0 = 0 and x_0 = 3 g, derivatives along the logarithm of the penalty, of one penalty
  per feature (does not commute), and of the weights of the samples; μ = e^ρ and
  L = λ_max(XᵀX/n)/4 + μ.
- `η = true` is ‖c‖² / ‖a‖², which no one knows beforehand; for logistic regression, the estimate of
  `Sobolev.from_derivative` from the exact derivative. The hindsight limit is the least error of any
  polynomial of degree t on that very problem, of any method with fixed coefficients; in double
  precision, and near t = d on ill-conditioned spectra, a little more than the least."""

PILOTED = """\
`Sobolev.from_derivative` takes η from a derivative v that is known before. Here is its ratio to the
η of the exact derivative: for v from n unrolled steps of the default method on the quadratics, and
for v from an outer step ago on the logistic regressions. What a run of less than a few times 1/√κ
steps has not solved for is counted as c, and η is mostly too large; the estimate is meant for a v
that is nearly right. There is not much to gain: see `η = true` above."""


def report(out: Path, command: str, rows: list[Row], pilots: list[Row], difference: float) -> None:
    """Write methods.md and methods.csv into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write(out / "methods.csv", rows)
    quadratic, logistic, beyond = (
        [row for row in rows if row["problem"] == name]
        for name in ("quadratic", "logistic", "beyond")
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("dargmin", "jax", "numpy"))
    text = [
        "# Burn-in and speed of unrolled derivatives",
        f"`{command}` ({versions}, Python {platform.python_version()}, {platform.machine()})",
        RULES,
        "## Targets",
        table(targets(quadratic, logistic)),
        f"## Quadratics ({count(quadratic)} problems)",
        table(summary(quadratic)),
        "Polynomials and methods differ by at most "
        f"{difference:.0e} (relative, on the first family, 150 steps).",
        "### Largest peaks, by spectrum and by c",
        table(peaks(quadratic, "data", "target")),
        "### Largest peaks, beyond the 24",
        table(peaks(beyond, "data", "target")),
        f"## Logistic regression ({count(logistic)} problems)",
        table(summary(logistic)),
        "### Largest peaks, by start and by direction",
        table(peaks(logistic, "start", "data")),
        "## η from a derivative that is already known",
        PILOTED,
        table(quantiles(pilots)),
    ]
    (out / "methods.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print("\n\n".join(text))


def targets(quadratic: list[Row], logistic: list[Row]) -> list[Row]:
    """What was hoped for, and whether it came true."""
    lines = []
    first, second, third = "Sobolev(α=0, η=μL)", "Sobolev(α=0.25, η=μL)", DEFAULT
    smooth = [row for row in quadratic if row["data"] != "power law"]
    near = [row for row in logistic if row["start"] == "zero"]
    for rows, name, limits in (
        (quadratic, "quadratics", {first: BURN_IN, second: BURN_IN, third: 1.5}),
        (smooth, "of them, no power law", {first: BURN_IN, second: BURN_IN, third: 1.5}),
        (logistic, "logistic regressions", {third: 1.5}),
        (near, "of them, from x_0 = 0", {third: 1.5}),
    ):
        for method, limit in limits.items():
            mine = [row["peak"] for row in rows if row["method"] == method]
            over = sum(peak > limit for peak in mine)
            lines.append({
                "method": method, "on": f"{len(mine)} {name}",
                "target": f"largest peak at most {limit:g}",
                "measured": f"{max(mine):.2f} ({over} over)",
                "met": "yes" if over == 0 else "**no**",
            })  # fmt: skip
    return lines


def summary(rows: list[Row]) -> list[Row]:
    """One line for each method."""
    best = fastest(rows)
    limit = {key(row): row for row in rows if row["method"] == LIMIT}
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        share = np.mean([row["peak"] > BURN_IN for row in mine])
        line = {
            "method": f"**{method}**" if method == DEFAULT else method,
            "largest peak": f"{max(row['peak'] for row in mine):.3g}",
            "median peak": f"{np.median([row['peak'] for row in mine]):.3g}",
            "burn-in": f"{share:.0%}",
        }
        for goal in GOALS:
            line[f"steps {goal} / fastest"] = mean(
                [row[goal] / best[key(row)][goal] for row in mine]
            )
        if limit:
            goal = GOALS[0]
            line[f"steps {goal} / limit"] = mean(
                [row[goal] / limit[key(row)][goal] for row in mine]
            )
        lines.append(line)
    return lines


def peaks(rows: list[Row], first: str, second: str) -> list[Row]:
    """The largest peak of a few methods, for each pair of values of two columns."""
    lines = []
    for pair in dict.fromkeys((row[first], row[second]) for row in rows):
        mine = [row for row in rows if (row[first], row[second]) == pair]
        top = {m: max(row["peak"] for row in mine if row["method"] == m) for m in SHOWN}
        lines.append({"problems": ", ".join(pair)} | {m: f"{top[m]:.3g}" for m in SHOWN})
    return lines


def quantiles(pilots: list[Row]) -> list[Row]:
    lines = []
    for v in dict.fromkeys(row["v"] for row in pilots):
        ratios = [row["ratio"] for row in pilots if row["v"] == v]
        low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
        lines.append({
            "v": v, "problems": len(ratios), "5 %": f"{low:.2g}", "median": f"{middle:.2g}",
            "95 %": f"{high:.2g}",
        })  # fmt: skip
    return lines


def fastest(rows: list[Row]) -> dict[tuple, Row]:
    """The least number of steps in each problem, over the methods."""
    best: dict[tuple, Row] = {}
    for row in rows:
        if row["method"] != LIMIT:
            before = best.setdefault(key(row), dict.fromkeys(GOALS, np.inf))
            best[key(row)] = {goal: np.fmin(before[goal], row[goal]) for goal in GOALS}
    return best


def key(row: Row) -> tuple:
    """What tells one problem from another."""
    return tuple(row.get(name) for name in ("data", "κ", "target", "start"))


def mean(ratios: list[float]) -> str:
    """The geometric mean over the problems where the error got that low, and where it did not."""
    reached = [ratio for ratio in ratios if np.isfinite(ratio)]
    missed = len(ratios) - len(reached)
    value = f"{np.exp(np.mean(np.log(reached))):.2f}" if reached else "-"
    return value + (f" ({missed} never)" if missed else "")


def count(rows: list[Row]) -> int:
    return len({key(row) for row in rows})


def table(rows: list[Row]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[n]) for n in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(path: Path, rows: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
