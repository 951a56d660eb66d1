"""The tables of calibration.py: what was asked of the estimates, and what was measured."""

import csv
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

RULES = """\
- An estimate and the truth are compared where the truth is above rounding: a relative error above
  ε·κ·√d, with κ the condition number of the Jacobian of the residual at the solution (for the
  elastic net: of the Hessian on the support). Below that, both are noise.
- No estimate (a status that says why, and an infinite error) counts as a miss, never as an excuse.
- An error is detected if the truth is 100 % or more and the estimate at least 50 %. A false alarm
  is an estimate of 100 % or more where the truth is below 10 %.
- The promise of `hypergradient` and `sensitivity` is tested on what came back `ok`, without any
  allowance for rounding; what came back not ok is counted beside it. Near the outer optimum,
  where ∇φ is what a cancellation leaves, and with 100 steps of a first-order method, which are
  often too few, a status that says so is the right answer."""

PROMISE_RULES = """\
- Silent: `ok`, and the true relative error above three times the `rtol` that was asked for, or no
  minimum there. Not covered: `ok`, and above three times the estimate.
- Finite wrong: not `ok`, a finite derivative, and its true error above three times its estimate.
  Here, and for what is not covered, the truth is known to its rounding error and 1e-9.
- Refused: not `ok`, though the derivative that came with it is as accurate as was asked. Not
  reached: any other that is not `ok`. Both count only what the precision allows: ten times the
  rounding error is below `rtol`. The rounding error of a derivative is what it changes by when
  every input is moved by one ε (the larger of two random moves), or ε·κ if that is more, with κ the
  condition number of the Hessian in units in which its diagonal is 1 (fixed points and composite
  problems: of 1 - ∂T).
- `certify` is given the exact derivative, one that is ten percent off, the implicit one at a point
  beside the solution, and one with its sign flipped, at points 0.1 %, 10 %, 100 % and 100 times
  ‖x*‖ away (where there are other minima: 0.1 % and 1 %). An estimate counts as too low below a
  third of the truth, where that is above ten times ε·κ; as too high above ten times the largest of
  the truth, ten times ε·κ, and 1e-6 (float32: 1e-5). Both only where `certify` says ok.
- Cancelling: the outer function is linear, and its gradient nearly orthogonal to the derivative of
  what it looks at; a hundredth of a random direction is left."""


def report(
    out: Path, command: str, certified: list[Row], own: list[Row], kinds: list[Row],
    promised: list[Row],
) -> None:  # fmt: skip
    """Write calibration.md, calibration.csv and calibration_worst.csv into `out`.

    `certified` and `own` are the rows of calibration.py, `kinds` (from elsewhere) and `promised`
    (our own) those of calibration_promise.py."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("dargmin", "jax", "numpy"))
    counts = len(certified) + len(kinds), len(own) + len(promised)
    text = [
        "# Calibration of the error estimates",
        f"`{command}` ({versions}, Python {platform.python_version()}, {platform.machine()})",
        f"Derivatives: {counts[0]} from elsewhere, {counts[1]} our own.",
    ]
    if promised:
        write(out / "calibration_promise.csv", kinds + promised)
        misjudged = lambda row: row["ok"] and (below_third(row) or above_ten(row))
        worst = [row for holds in (silent, finite_wrong, refused, unreached)
                 for row in spread(filter(holds, promised))]  # fmt: skip
        worst += spread(filter(misjudged, kinds))
        write(out / "calibration_promise_worst.csv", worst)
        text += promise_text(kinds, promised)
    if certified:
        rows = [row | {"ratio": ratio(row)} for row in certified + own]
        write(out / "calibration.csv", rows)
        far = sorted(filter(above_rounding, rows), key=lambda row: -abs(np.log(row["ratio"])))
        foreign = [row for row in far if "rtol" not in row]
        missed = [r for r in rows if "rtol" in r and r["status"] == "ok" and not covered(r)]
        write(out / "calibration_worst.csv", foreign[:50] + missed[:50])
        text += curse_text(certified, own)
    (out / "calibration.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


def curse_text(certified: list[Row], own: list[Row]) -> list[str]:
    cases = {(row["family"], row["name"], row["dtype"]) for row in certified}
    return [
        "## Along the iterations of quadratic and linear models",
        f"{len(cases)} problems; derivatives: {len(certified)} from elsewhere, {len(own)} our own.",
        RULES,
        "### `certify`, on derivatives from elsewhere",
        table(certify_targets(certified)),
        table(by_family(certified)),
        "### `hypergradient` and `sensitivity`, on their own results",
        table(own_targets(own)),
        table(own_by_family(own)),
    ]


# ---- many kinds of problems ----------------------------------------------------------------------


def promise_text(kinds: list[Row], promised: list[Row]) -> list[str]:
    families = {row["family"] for row in promised}
    return [
        "## The promise, on many kinds of problems",
        f"{len(families)} kinds; {len(kinds)} derivatives from elsewhere, {len(promised)} our own.",
        PROMISE_RULES,
        table(promise_targets(kinds, promised)),
        "### `hypergradient` and `sensitivity`, on their own results",
        table(promise_by_family(promised)),
        "### `certify`, on derivatives from elsewhere",
        table(kinds_by_family(kinds)),
    ]


def promise_targets(kinds: list[Row], promised: list[Row]) -> list[Row]:
    found = []
    for dtype, failures in (("float64", 4), ("float32", 10)):
        mine = [row for row in promised if row["dtype"] == dtype]
        reach = [row for row in mine if allowed(row)]
        theirs = [row for row in kinds if row["dtype"] == dtype and row["ok"]]
        found += [
            target(dtype, "silent", -0.0, mine, silent),
            target(dtype, "finite wrong", -0.0, mine, finite_wrong),
            target(dtype, "refused or not reached", -failures, reach, lambda r: not r["ok"]),
            target(dtype, "certify: below a third of the truth", -0.1, theirs, below_third),
            target(dtype, "certify: above ten times it", -2, theirs, above_ten),
        ]
    return found


def promise_by_family(rows: list[Row]) -> list[Row]:
    lines = []
    for (dtype, family), mine in grouped(rows):
        reach = [row for row in mine if allowed(row)]
        count = lambda rows, holds: sum(map(bool, map(holds, rows)))
        lines.append({
            "precision": dtype, "family": family, "derivatives": len(mine),
            "ok": count(mine, lambda row: row["ok"]), "silent": count(mine, silent),
            "not covered": count(mine, uncovered), "finite wrong": count(mine, finite_wrong),
            "allowed": len(reach), "refused": count(reach, refused),
            "not reached": count(reach, unreached),
        })  # fmt: skip
    return lines


def kinds_by_family(rows: list[Row]) -> list[Row]:
    lines = []
    for (dtype, family), mine in grouped(rows):
        fine = [row for row in mine if row["ok"]]
        lines.append({
            "precision": dtype, "family": family, "derivatives": len(mine), "ok": len(fine),
            "below a third": sum(map(below_third, fine)), "above ten": sum(map(above_ten, fine)),
        })  # fmt: skip
    return lines


def spread(rows: Iterable[Row]) -> list[Row]:
    """At most five rows of each family and precision."""
    return [row for _, mine in grouped(list(rows)) for row in mine[:5]]


def grouped(rows: list[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    """The rows of each precision and family, in the order in which they came."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["dtype"], row["family"]), []).append(row)
    return list(groups.items())


def allowed(row: Row) -> bool:
    """Whether the precision allows the accuracy that was asked for."""
    return bool(10 * row["rounding"] < row["rtol"])


def unknown(row: Row) -> float:
    """How well the truth is known: to the rounding error of the inputs, and to 1e-9."""
    return row["rounding"] + 1e-9


def silent(row: Row) -> bool:
    return bool(row["ok"]) and not (row["known"] and row["true"] <= 3 * row["rtol"])


def uncovered(row: Row) -> bool:
    limit = 3 * row["estimate"] + unknown(row)
    return bool(row["ok"]) and not (row["known"] and row["true"] <= limit)


def finite_wrong(row: Row) -> bool:
    if row["ok"] or not row["number"]:
        return False
    if not row["known"]:  # no minimum there
        return not np.isfinite(row["estimate"])
    limit = 3 * row["estimate"] + unknown(row)
    return not (np.isfinite(row["estimate"]) and row["true"] <= limit)


def refused(row: Row) -> bool:
    return not row["ok"] and allowed(row) and bool(row["true"] <= row["rtol"])


def unreached(row: Row) -> bool:
    return not row["ok"] and allowed(row) and not row["true"] <= row["rtol"]


def below_third(row: Row) -> bool:
    return bool(row["true"] > 10 * row["rounding"] and 3 * row["estimate"] < row["true"])


def above_ten(row: Row) -> bool:
    solved = 1e-5 if row["dtype"] == "float32" else 1e-6  # what its linear solves are asked for
    return bool(row["estimate"] > 10 * max(row["true"], 10 * row["rounding"], solved))


# ---- along the iterations ------------------------------------------------------------------------


def certify_targets(rows: list[Row]) -> list[Row]:
    found = []
    for dtype, within, below in (("float64", 95, 1), ("float32", 90, 3)):
        mine = [row for row in rows if row["dtype"] == dtype]
        known = [row for row in mine if above_rounding(row)]
        small = [row for row in mine if row["true"] < 0.1]
        large = [row for row in mine if row["true"] >= 1]
        found += [
            target(dtype, "estimate within a factor 10", within, known, factor_ten),
            target(dtype, "estimate below a third of the truth", -below, known, too_low),
        ]
        if dtype == "float64":
            found += [
                target(dtype, "errors of 100 % or more detected", 97, large, detected),
                target(dtype, "false alarms", -3, small, lambda row: row["estimate"] >= 1),
            ]
    return found


def own_targets(rows: list[Row]) -> list[Row]:
    found = []
    for dtype in ("float64", "float32"):
        fine = [row for row in rows if row["dtype"] == dtype and row["status"] == "ok"]
        found += [
            target(dtype, "ok, and truth at most 3 x estimate", 99, fine, covered),
            target(dtype, "ok, and wrong by more than 3 x what was asked", -0.0, fine, broken),
        ]
    return found


def ratio(row: Row) -> float:
    """Estimate over truth, kept off zero and infinity."""
    if not np.isfinite(row["true"]):
        return 1e-300
    return float(np.clip((row["estimate"] + 1e-300) / (row["true"] + 1e-300), 1e-300, 1e300))


def above_rounding(row: Row) -> bool:
    return row["true"] > row["rounding"]


def factor_ten(row: Row) -> bool:
    return 0.1 <= ratio(row) <= 10


def too_low(row: Row) -> bool:
    return ratio(row) < 1 / 3


def detected(row: Row) -> bool:
    return 0.5 <= row["estimate"] < np.inf


def covered(row: Row) -> bool:
    return row["true"] <= 3 * row["estimate"]


def broken(row: Row) -> bool:
    return row["true"] > 3 * row["rtol"]


def target(
    dtype: str, what: str, percent: float, rows: list[Row], holds: Callable[[Row], Any]
) -> Row:
    """One line of a table; a negative percentage is an upper limit."""
    count = sum(map(bool, map(holds, rows)))
    share = 100 * count / len(rows) if rows else float("nan")
    at_most = str(percent).startswith("-")
    met = share <= abs(percent) if at_most else share >= percent
    return {
        "precision": dtype,
        "target": f"{what}: {'at most' if at_most else 'at least'} {abs(percent):g} %",
        "measured": f"{share:.2f} % ({count} of {len(rows)})",
        "met": "yes" if met else "**no**",
    }


def by_family(rows: list[Row]) -> list[Row]:
    lines = []
    for dtype, family in sorted({(row["dtype"], row["family"]) for row in rows}, reverse=True):
        mine = [row for row in rows if (row["dtype"], row["family"]) == (dtype, family)]
        known = [row for row in mine if above_rounding(row)]
        low, middle, high = np.quantile([ratio(row) for row in known] or [np.nan], [0, 0.5, 1])
        lines.append({
            "precision": dtype, "family": family, "compared": f"{len(known)} of {len(mine)}",
            "estimate / truth: smallest": f"{low:.2g}", "median": f"{middle:.2g}",
            "largest": f"{high:.2g}", "within 10": percent(known, factor_ten),
            "below a third": percent(known, too_low),
        })  # fmt: skip
    return lines


def own_by_family(rows: list[Row]) -> list[Row]:
    lines = []
    keys = {(row["dtype"], row["claim"], row["family"]) for row in rows}
    for dtype, claim, family in sorted(keys, reverse=True):
        mine = [r for r in rows if (r["dtype"], r["claim"], r["family"]) == (dtype, claim, family)]
        fine = [row for row in mine if row["status"] == "ok"]
        default = [row for row in mine if row["method"] == "default"]
        lines.append({
            "precision": dtype, "of": claim, "family": family,
            "ok": f"{len(fine)} of {len(mine)}",
            "ok by default": percent(default, lambda row: row["status"] == "ok"),
            "truth at most 3 x estimate": percent(fine, covered),
            "more than 3 x asked": percent(fine, broken),
        })  # fmt: skip
    return lines


def percent(rows: list[Row], holds: Callable[[Row], Any]) -> str:
    return f"{100 * sum(map(bool, map(holds, rows))) / len(rows):.1f} %" if rows else "-"


def table(rows: list[Row]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[n]) for n in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(path: Path, rows: Iterable[Row]) -> None:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
