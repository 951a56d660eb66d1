"""The best of a stated grid, for each library, problem and target.

The grid: every choice of the library's `grid`, times tolerances 10⁰ ... 10⁻¹² of the inner solve,
times tolerances 10⁰ ... 10⁻¹⁰ of the adjoint one. Of each choice, the two loosest inner tolerances
that can reach the target are tried, with the loosest adjoint tolerance that does; the fastest of
all wins."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.measure import compile_program, relative_error, seconds_of
from benchmarks.problems import Case

PEERS = Path(__file__).parent / "peers"
TOLERANCES = [10.0**-k for k in range(13)]
TARGETS = (1e-3, 1e-6)


def load(peer: str) -> dict[str, Any]:
    path = PEERS / f"{peer}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(peer: str, settings: dict[str, Any]) -> None:
    text = json.dumps(settings, indent=1, sort_keys=True)
    (PEERS / f"{peer}.json").write_text(text + "\n", encoding="utf-8")


def tune(module: ModuleType, case: Case) -> dict[str, Any]:
    """{target: settings}, without the targets that the library does not reach."""
    best: dict[str, Any] = {}
    for choice in module.grid(case):
        make = getattr(module, "compile_program", compile_program)
        program = make(module.hypergradient(case, choice), case)
        errors: dict[tuple[float, float], float] = {}

        def error(tol: float, adjoint_tol: float) -> float:
            key = tol, adjoint_tol
            if key not in errors:  # noqa: B023
                try:
                    errors[key] = relative_error(program.bind(*key)(), case)  # noqa: B023
                except Exception:  # a solve that raises does not reach the target
                    errors[key] = float("inf")  # noqa: B023
            return errors[key]  # noqa: B023

        for target in TARGETS:
            name = f"{target:.0e}"
            for tol, adjoint_tol in _candidates(error, target):
                seconds = seconds_of(program.bind(tol, adjoint_tol))
                if seconds < best.get(name, {"seconds": np.inf})["seconds"]:
                    best[name] = {
                        **choice,
                        "tol": tol,
                        "adjoint_tol": adjoint_tol,
                        "seconds": seconds,
                    }
    return best


def _candidates(error: Any, target: float) -> list[tuple[float, float]]:
    """For the two loosest inner tolerances that do, the loosest adjoint tolerance that does."""
    tightest, found = TOLERANCES[-3], []
    for tol in TOLERANCES:
        if error(tol, tightest) > target:
            continue
        low, high = 0, len(TOLERANCES) - 3  # the error is about monotone: halve the interval
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if error(tol, TOLERANCES[middle]) <= target else (middle + 1, high)
            )
        found.append((tol, TOLERANCES[low]))
        if len(found) == 2:
            break
    return found
