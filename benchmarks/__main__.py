"""dargmin against other libraries: writes peers.csv, peers.md and figures.

    python -m benchmarks [--quick] [--tune] [--only NAME ...] [--peers NAME ...] [--out DIR]
    python -m benchmarks --device gpu [--scale 4]
    python -m benchmarks --page

Every library is run as it comes and tuned (peers/*.json says how; --tune finds the settings anew),
all in one process, pinned to one core, repetitions interleaved. The problems are those of
problems.py; the grids stand in peers/*.py."""

import argparse
import importlib
import os
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import report  # needs no jax, which has to find the settings of `measure`

PEERS = ("dargmin", "plain_jax", "jaxopt", "optimistix", "torchopt")
RESULTS = Path("benchmarks/results")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="small problems, in a few minutes")
    parser.add_argument("--tune", action="store_true", help="find the settings of all peers anew")
    parser.add_argument("--only", nargs="*", default=[], help="names of problems, or sweeps")
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument(
        "--page", action="store_true", help="only the page, from the table there is"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--scale", type=int, help="rows and columns times this; 1, and 4 on a GPU (data: 16)"
    )
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of timing per problem")
    arguments = parser.parse_args()
    gpu = arguments.device == "gpu"
    scale = arguments.scale or (4 if gpu else 1)
    name, options = "peers", ""
    if arguments.quick:
        name, options = "peers_quick", " --quick"
    elif gpu or scale > 1:
        name, options = f"peers_{arguments.device}_x{scale}", f" --device {arguments.device}"
        options += f" --scale {scale}"
    if not arguments.page:
        measure(arguments, name, scale)
    report.write_page(arguments.out, name, options)
    if arguments.out == RESULTS and name == "peers":
        report.write_summary(RESULTS, Path(__file__).parents[1] / "README.md")


def measure(arguments: argparse.Namespace, name: str, scale: int) -> None:
    """Run what was asked for, on one core or the accelerator; the table grows with every
    problem."""
    if arguments.device == "gpu":
        os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu")
    else:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    warnings.filterwarnings("ignore", "JAXopt is no longer", DeprecationWarning)
    warnings.filterwarnings("ignore", "We.ve integrated functorch", FutureWarning)

    import jax

    jax.config.update("jax_enable_x64", True)
    from benchmarks.problems import cases, sweeps

    modules = load_peers(arguments.peers)
    rows: list[Row] = []
    wanted = lambda name: not arguments.only or name in arguments.only
    budget = 5.0 if arguments.quick else arguments.budget
    anew = arguments.tune or name != "peers"
    for problem, make in cases(arguments.quick, scale).items():
        if wanted(problem):
            rows += rows_of(make(), modules, anew, budget, keep=name == "peers")
            report.write_table(arguments.out, name, rows)
    if wanted("sweeps") and name == "peers":
        for make in sweeps():
            rows += rows_of(make(), modules, arguments.tune, budget / 3)
            report.write_table(arguments.out, name, rows)


def load_peers(names: list[str]) -> dict[str, ModuleType]:
    """The peers whose libraries are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.import_module(f"benchmarks.peers.{name}")
        except ModuleNotFoundError as error:
            print(f"{name} is left out: {error}.", file=sys.stderr)
    return found


def rows_of(
    case: Any, modules: dict[str, ModuleType], search: bool, budget: float, keep: bool = True
) -> list[Row]:
    """One row for each peer, target and way. Settings that are found are kept beside the peers."""
    from benchmarks.measure import (
        bandwidth,
        gradient_program,
        interleaved,
        relative_error,
        summary,
    )
    from benchmarks.tune import TARGETS, load, save, tune

    calls, rows = {("gradient", "", ""): gradient_program(case)}, {}
    for peer, module in modules.items():
        settings = load(peer)
        if search or case.name not in settings:
            begin = time.perf_counter()
            settings[case.name] = tune(module, case)
            if keep:
                save(peer, settings)
            print(
                f"{case.name}: tuned {peer} in {time.perf_counter() - begin:.0f} s", file=sys.stderr
            )
        ways = {
            ("tuned", f"{target:.0e}"): settings[case.name].get(f"{target:.0e}")
            for target in TARGETS
        }
        ways["as it comes", "1e-03"] = {} if module.grid(case) else None
        compiled: dict[str, Any] = {}
        for (how, target), chosen in ways.items():
            row = dict(problem=case.name, sweep=case.sweep, d=case.x0.size, p=case.theta.size)
            row |= dict(condition=case.condition, peer=peer, how=how, target=target)
            rows[peer, how, target] = row
            if chosen is None:
                row["note"] = "does not reach it" if module.grid(case) else "not offered"
                continue
            choice = {k: v for k, v in chosen.items() if isinstance(v, str)}
            row["settings"] = ", ".join(f"{k}={v}" for k, v in chosen.items() if k != "seconds")
            key = str(choice)
            try:
                compiled[key] = compiled.get(key) or make_program(module, case, choice)
                program = compiled[key]
                tols = chosen.get("tol", 0.0), chosen.get("adjoint_tol", 0.0)
                calls[peer, how, target] = program.bind(*tols)
                row["error"] = relative_error(calls[peer, how, target](), case)
            except Exception as error:
                calls.pop((peer, how, target), None)
                row["note"] = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
                continue
            row |= dict(compile_s=program.compile_seconds, temporaries_mb=program.temporaries)
    times = interleaved(calls, budget)
    unit, _ = summary(times.pop(("gradient", "", "")))
    for key, measured in times.items():
        middle, spread = summary(measured)
        rows[key] |= dict(ms=middle, spread=spread, gradient_equivalents=middle / unit)
    if "dargmin" in modules:
        rows["dargmin", "as it comes", "1e-03"] |= certificate(modules["dargmin"], case)
        if speeds := bandwidth(case):
            fast = dict(zip(("read_gbs", "copy_gbs"), speeds, strict=True))
            rows["dargmin", "as it comes", "1e-03"] |= fast
    for row in rows.values():
        print(
            {
                k: v
                for k, v in row.items()
                if k in ("problem", "peer", "how", "target", "ms", "error", "settings", "note")
            },
            file=sys.stderr,
        )
    return list(rows.values())


def make_program(module: ModuleType, case: Any, choice: dict[str, str]) -> Any:
    """A compiled program, by the module's own compiler if it brings one (torch)."""
    from benchmarks.measure import compile_program

    function = module.hypergradient(case, choice)
    return getattr(module, "compile_program", compile_program)(function, case)


def certificate(module: ModuleType, case: Any) -> Row:
    """What dargmin's default says of itself."""
    import equinox as eqx

    error, ok, cost = eqx.filter_jit(module.report(case))(case.f, case.outer, case.x0, case.theta)
    counts = dict(
        gradients=cost.gradients, products=cost.products, factorisations=cost.factorisations
    )
    return dict(estimate=float(error), ok=bool(ok)) | {k: int(v) for k, v in counts.items()}


if __name__ == "__main__":
    main()
