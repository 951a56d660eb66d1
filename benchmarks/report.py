"""peers.csv, and the page and figures made from it."""

import csv
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COLUMNS = [
    "problem", "sweep", "d", "p", "condition", "peer", "how", "target", "settings", "error", "ms",
    "spread", "gradient_equivalents", "temporaries_mb", "compile_s", "estimate", "ok", "gradients",
    "products", "factorisations", "note",
]  # fmt: skip


def write_table(out: Path, rows: list[Row], quick: bool) -> None:
    """Merge the rows into the table on disk: a problem that was run again replaces its old rows."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / ("peers_quick.csv" if quick else "peers.csv")
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


def write_page(out: Path, quick: bool) -> None:
    pass
