"""peers.csv, and the page and figures made from it."""

import csv
import datetime
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COLUMNS = [
    "problem", "sweep", "d", "p", "condition", "peer", "how", "target", "settings", "error", "ms",
    "spread", "gradient_equivalents", "temporaries_mb", "compile_s", "estimate", "ok", "gradients",
    "products", "factorisations", "read_gbs", "copy_gbs", "note",
]  # fmt: skip


def write_table(out: Path, name: str, rows: list[Row]) -> None:
    """Merge the rows into the table on disk: a problem that was run again replaces its old rows."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.csv"
    again = {(row["problem"], row["peer"]) for row in rows}
    kept = [r for r in read_table(path) if (r["problem"], r["peer"]) not in again]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in [*kept, *rows]:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def read_table(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


BEGIN, END = "<!-- peers: python -m benchmarks writes this -->", "<!-- end of peers -->"
LIBRARIES = ("jaxopt", "optimistix", "torchopt")
TIME_TARGETS = {
    "ridge diabetes": 0.4,
    "ridge 2000x500, condition 1e2": 0.85,
    "ridge 2000x500, condition 1e4": 0.25,
    "logistic breast_cancer": 0.5,
    "logistic 5000x1000": 0.4,
    "softmax 50000 parameters": 0.8,
    "elastic net 500x1000": 0.5,
    "lasso 500x1000": 0.5,
}


def write_page(out: Path, name: str, options: str) -> None:
    """The page and its figures, from the table of that name alone."""
    rows = read_table(out / f"{name}.csv")
    table = [row for row in rows if not row["sweep"]]
    problems = _problems(table)
    measured = [p for p in LIBRARIES if any(row["peer"] == p for row in rows)]
    versions = ", ".join(f"{p} {_version(p)}" for p in ("dargmin", "jax", *measured))
    day = datetime.date.fromtimestamp((out / f"{name}.csv").stat().st_mtime)
    text = [
        "# dargmin and other libraries",
        f"`python -m benchmarks{options}` ({versions}, Python "
        f"{platform.python_version()}, {platform.machine()}, {day})",
        "Times are processor time on one pinned core, medians of interleaved repetitions, ± half "
        "the distance between the quartiles; compilation is apart. *g.e.* is the time over that of "
        "one inner gradient. Tuned: the fastest of a grid (benchmarks/peers) that reaches the "
        "target. As it comes: every option at its default, 1e-3 asked for where one has to ask. "
        "Ratios are to the fastest tuned library; plain JAX, written by hand for the problem at "
        "hand, is shown beside it.",
        "## Ratios",
        _markdown(_ratios(table, problems)),
        *_means(table, problems),
    ]
    if profile := _profile(table, problems):
        text += [
            "## Where the time goes",
            "Of dargmin as it comes. A gradient and a product with the Jacobian take about one "
            "*g.e.* each: what is left over are factors, linearisations, and the work on vectors "
            "beside them. A product reads the data twice: where they are longer than the cache, it "
            "cannot be faster than a long vector is read and written.",
            _markdown(profile),
        ]
    for problem in problems:
        text += [f"## {problem}", _markdown(_details(table, problem))]
    if _draw(out, name, table, problems):
        text.insert(3, f"![error against time]({name}.png)")
    swept = [row for row in rows if row["sweep"]]
    if swept and _draw_sweeps(out, name, swept):
        text += [
            "## Growth",
            "With the condition number: ridge 400x200. With d: ½ Σ e^θⱼ aⱼ xⱼ² + ¼ Σ xⱼ⁴ - bᵀx, "
            "which has no data matrix, and as many hyperparameters as coordinates. With the number "
            "of hyperparameters: ridge 100x10000, whose coordinates share penalties in groups. "
            "A cross is further than 1e-3 from the truth; where a line ends, memory did.",
            f"![time against size]({name}_growth.png)",
            "Milliseconds; ratios are to the fastest tuned library.",
            _markdown(_growth(swept)),
        ]
    (out / f"{name}.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


def write_summary(out: Path, readme: Path) -> None:
    """The ratios and their means, between the two marks in the README."""
    rows = [row for row in read_table(out / "peers.csv") if not row["sweep"]]
    problems = _problems(rows)
    columns = {
        "problem": "problem",
        "dargmin, 1e-03": "time, tuned to 1e-3",
        "dargmin, 1e-06": "to 1e-6",
        "as it comes, certified": "as it comes",
    }
    table = [{new: line[old] for old, new in columns.items()} for line in _ratios(rows, problems)]
    for line, problem in zip(table, problems, strict=True):
        for peer in ("dargmin", "jaxopt", "optimistix"):
            found = _find(rows, problem, peer, "as it comes", "1e-03")
            error = f"{float(found['error']):.0e}" if found and found["error"] else "none"
            line[f"error of {peer}"] = error
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    body = "\n\n".join([BEGIN, _markdown(table), *_means(rows, problems), END])
    readme.write_text(before + body + after, encoding="utf-8")


def _problems(rows: list[Row]) -> list[str]:
    """Those with a target first, in its order."""
    found = dict.fromkeys(row["problem"] for row in rows)
    return sorted(found, key=lambda p: list(TIME_TARGETS).index(p) if p in TIME_TARGETS else 99)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _ms(row: Row | None) -> float:
    return float(row["ms"]) if row and row["ms"] else math.inf


def _find(rows: list[Row], problem: str, peer: str, how: str, target: str) -> Row | None:
    key = (problem, peer, how, target)
    found = [r for r in rows if (r["problem"], r["peer"], r["how"], r["target"]) == key]
    return found[0] if found else None


def _best(rows: list[Row], problem: str, target: str) -> float:
    """The time of the fastest tuned library."""
    return min(_ms(_find(rows, problem, peer, "tuned", target)) for peer in LIBRARIES)


def _ratios(rows: list[Row], problems: list[str]) -> list[Row]:
    lines = []
    for problem in problems:
        line = {"problem": problem}
        for target in ("1e-03", "1e-06"):
            best = _best(rows, problem, target)
            for peer in ("dargmin", "plain_jax"):
                own = _ms(_find(rows, problem, peer, "tuned", target))
                line[f"{peer.replace('_', ' ')}, {target}"] = _ratio(own, best)
        default = _find(rows, problem, "dargmin", "as it comes", "1e-03")
        best = _best(rows, problem, "1e-03")
        line["as it comes, certified"] = _ratio(_ms(default), best)
        line["target"] = str(TIME_TARGETS.get(problem, ""))
        lines.append(line)
    return lines


def _growth(rows: list[Row]) -> list[Row]:
    """A line for each problem of the sweeps."""
    lines = []
    for problem in _problems(rows):
        line: Row = {"problem": problem}
        for target in ("1e-03", "1e-06"):
            own = _ms(_find(rows, problem, "dargmin", "tuned", target))
            line[f"dargmin, {target}"] = _number(own)
            line[f"ratio, {target}"] = _ratio(own, _best(rows, problem, target))
        default = _find(rows, problem, "dargmin", "as it comes", "1e-03")
        line["as it comes, certified"] = _number(_ms(default))
        line["ratio"] = _ratio(_ms(default), _best(rows, problem, "1e-03"))
        lines.append(line)
    return lines


def _ratio(own: float, best: float) -> str:
    return _number(own / best) if math.isfinite(best) else ""


def _means(rows: list[Row], problems: list[str]) -> list[str]:
    """Geometric means over the problems where there is something to compare with."""
    named = {
        "tuned, 1e-03": ("tuned", "1e-03"),
        "tuned, 1e-06": ("tuned", "1e-06"),
        "as it comes, certified, against tuned at 1e-03": ("as it comes", "1e-03"),
    }
    lines = []
    for name, (how, target) in named.items():
        ratios = [
            _ms(_find(rows, p, "dargmin", how, target)) / _best(rows, p, target) for p in problems
        ]
        ratios = [r for r in ratios if math.isfinite(r) and r > 0]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            lines.append(f"- {name}: geometric mean **{mean:.2f}** of {len(ratios)} problems")
    return ["\n".join(lines)]


def _profile(rows: list[Row], problems: list[str]) -> list[Row]:
    """What the certified default consists of, and how fast products read the data."""
    lines = []
    for problem in problems:
        row = _find(rows, problem, "dargmin", "as it comes", "1e-03")
        if not row or not row["gradients"] or not row["gradient_equivalents"]:
            continue
        formed = int(row["factorisations"]) > 0
        products = int(row["products"])
        whole = float(row["gradient_equivalents"])
        counted = int(row["gradients"]) + (0 if formed else products)
        line = {
            "problem": problem,
            "g.e.": _number(whole),
            "gradients": row["gradients"],
            "products": f"{products}, batched" if formed else products,
            "factors": row["factorisations"],
            "left over": f"{max(1 - counted / whole, 0):.0%}",
            "products read": "",
            "a long vector": "",
        }
        if row.get("read_gbs"):
            line["products read"] = f"{float(row['read_gbs']):.0f} GB/s"
            line["a long vector"] = f"{float(row['copy_gbs']):.0f} GB/s"
        lines.append(line)
    return lines


def _details(rows: list[Row], problem: str) -> list[Row]:
    lines = []
    for row in rows:
        if row["problem"] != problem:
            continue
        spread = f" ± {float(row['spread']):.0%}" if row["spread"] else ""
        says = ""
        if row["ok"]:
            verdict = "ok" if row["ok"] == "True" else "not ok"
            says = (
                f"{verdict}, at most {float(row['estimate']):.0e}; {row['gradients']} gradients, "
            )
            says += f"{row['products']} products, {row['factorisations']} factors"
        lines.append({
            "": f"{row['peer'].replace('_', ' ')}, {row['how']} {row['target']}",
            "error": f"{float(row['error']):.1e}" if row["error"] else row["note"],
            "ms": _number(_ms(row)) + spread,
            "g.e.": _number(float(row["gradient_equivalents"] or "inf")),
            "MB": _number(float(row["temporaries_mb"] or "inf")),
            "compile s": _number(float(row["compile_s"] or "inf")),
            "settings": row["settings"],
            "it says": says,
        })  # fmt: skip
    return lines


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else ""


def _markdown(lines: list[Row]) -> str:
    names = list(lines[0])
    body = [[str(line[n]) for n in names] for line in lines]
    return "\n".join("| " + " | ".join(r) + " |" for r in [names, ["---"] * len(names), *body])


COLOURS = {
    "dargmin": "C3", "plain_jax": "0.5", "jaxopt": "C0", "optimistix": "C2", "torchopt": "C1"
}  # fmt: skip


def _draw(out: Path, name: str, rows: list[Row], problems: list[str]) -> bool:
    """Error against time, a panel for each problem."""
    plt = _pyplot()
    if plt is None:
        return False
    from matplotlib import ticker

    columns = min(3, len(problems))
    lines = -(-len(problems) // columns)
    size = (4 * columns, 3 * lines + 0.5)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, problem in zip(axes.flat, problems, strict=False):
        for peer, colour in COLOURS.items():
            shown = [r for r in rows if (r["problem"], r["peer"]) == (problem, peer) and r["ms"]]
            for how, marker in (("tuned", "o"), ("as it comes", "x")):
                points = [
                    (float(r["ms"]), max(float(r["error"]), 1e-16))
                    for r in shown
                    if r["how"] == how and r["error"] not in ("", "inf")
                ]
                if points:
                    label = f"{peer.replace('_', ' ')}, {how}"
                    axis.plot(*zip(*points, strict=True), marker, color=colour, label=label)
        axis.set(xscale="log", yscale="log", title=problem)
        axis.title.set_fontsize(9)
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(
            ticker.LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,))
        )
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.axhline(1e-3, color="0.8", lw=0.8, zorder=0)
        axis.axhline(1e-6, color="0.8", lw=0.8, zorder=0)
    for axis in list(axes.flat)[len(problems) :]:
        axis.remove()
    figure.supxlabel("milliseconds")
    figure.supylabel("relative error")
    known = {}
    for axis in figure.axes:
        known |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(out / f"{name}.png", dpi=120)
    plt.close(figure)
    return True


def _draw_sweeps(out: Path, name: str, rows: list[Row]) -> bool:
    """Time against the condition number, d, and the number of hyperparameters."""
    plt = _pyplot()
    if plt is None:
        return False
    axes_of = {  # sweep: (column, label)
        "condition": ("condition", "condition number"),
        "d": ("d", "d"),
        "hyperparameters": ("p", "hyperparameters"),
    }
    axes_of = {k: v for k, v in axes_of.items() if any(row["sweep"] == k for row in rows)}
    size = (4 * len(axes_of) + 1, 3.8)
    figure, axes = plt.subplots(1, len(axes_of), figsize=size, squeeze=False, layout="constrained")
    axes = axes[0]
    for axis, (sweep, (column, xlabel)) in zip(axes, axes_of.items(), strict=True):
        for peer, colour in COLOURS.items():
            for how, style in (("tuned", "-"), ("as it comes", "--")):
                points = sorted(
                    (float(r[column]), float(r["ms"]), float(r["error"]) <= 1e-3)
                    for r in rows
                    if (r["sweep"], r["peer"], r["how"], r["target"]) == (sweep, peer, how, "1e-03")
                    and r["ms"]
                )
                if not points:
                    continue
                where, times, _ = zip(*points, strict=True)
                label = f"{peer.replace('_', ' ')}, {how}"
                axis.plot(where, times, style, color=colour, label=label)
                for reaches, marker in ((True, "o"), (False, "x")):
                    marked = [p[:2] for p in points if p[2] is reaches]
                    if marked:
                        axis.plot(*zip(*marked, strict=True), marker, color=colour, ms=5)
        axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="milliseconds")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=1 + len(axes_of), fontsize=8)
    figure.savefig(out / f"{name}_growth.png", dpi=120)
    plt.close(figure)
    return True


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("agg")
        import matplotlib.pyplot as plt
    except ModuleNotFoundError:
        return None
    return plt
