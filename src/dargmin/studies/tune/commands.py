"""What `dargmin tune` and `dargmin predict` do; the command line only reads their options."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dargmin.studies.errors import DataError
from dargmin.studies.report import progress
from dargmin.studies.tune import predict as prediction
from dargmin.studies.tune import tune as tuning
from dargmin.studies.tune.folder import write_atomically
from dargmin.studies.tune.options import Options
from dargmin.studies.tune.page import (
    comparison_sentence,
    difference,
    guard_sentence,
    off_sentence,
)
from dargmin.studies.tune.result import Found
from dargmin.studies.verdict import number

__all__ = ["predict", "tune"]


def tune(source: str, target: str | None, options: Options, out: Path, *, resume: bool) -> int:
    """Tune, say what came out, and name the files; returns the exit code."""
    console = Console()
    with progress() as advance:
        run = tuning.tune(source, target, options, out, resume=resume, advance=advance)
    if run.found is not None:
        _print(console, run.found)
    for file in run.files:
        print(file)  # one a line, whole, to be copied
    if run.interrupted:
        left = "nothing was learnt yet" if run.found is None else "the best so far is kept"
        console.print(f"Interrupted: {left}. The same command with --resume goes on from here.")
        return 130
    if not run.files:
        console.print(f"The run in {out} is finished: there is nothing to resume.")
    return 0


def predict(directory: Path, source: Path, out: Path) -> Path:
    """Write the predictions and say what there is to say; returns the file.

    Raises
    ------
    DataError
        If the file cannot be written, or is the one that is read."""
    if out.exists() and out.samefile(source):
        raise DataError(f"--out {out} is the table itself: name another file.")
    found = prediction.predict(directory, source)
    try:
        write_atomically(out, found.table.to_csv(index=False).encode())
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror}): name another file with --out."
        ) from None
    console = Console(stderr=True)
    for note in found.notes:
        console.print(Text(note))
    return out


def _print(console: Console, found: Found) -> None:
    if found.comparison:
        score = "accuracy" if found.classifies else "R²"
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("held-out rows")
        for name in (found.loss, score, "difference", "seconds"):
            table.add_column(name, justify="right")
        for i, row in enumerate(found.comparison):
            gap = difference(row) if i else ""
            seconds = number(row.seconds)
            table.add_row(row.label, f"{row.loss:.4g}", f"{row.score:.3f}", gap, seconds)
        console.print(table, "")
    sentences = [comparison_sentence(found), guard_sentence(found), off_sentence(found)]
    findings = Table.grid(padding=(0, 1))
    for sentence in [*sentences, *found.notes]:
        findings.add_row("•", Text(sentence))
    console.print(findings, "")
