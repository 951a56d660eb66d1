"""What `dargmin study` and `dargmin report` do; the command line only reads their options."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from dargmin.studies.catalogue import STUDIES
from dargmin.studies.data import did_you_mean, listing
from dargmin.studies.errors import DataError
from dargmin.studies.page import write_report
from dargmin.studies.runner import HOLDS, LIMITS, Interrupted, Outcome, Store, Study, Task
from dargmin.studies.runner import run_tasks as run_missing
from dargmin.studies.verdict import count

__all__ = ["list_studies", "make_report", "run_studies", "show_study"]

COLOURS = {HOLDS: "green", LIMITS: "yellow"}  # else red


def list_studies(out: Path, quick: bool) -> None:
    """Name every study, and say how many of its tasks have a result."""
    store, table = Store(out), _table("study", "what it asks", "results")
    for study in STUDIES.values():
        total, missing = len(study.tasks(quick)), len(store.missing(study, quick))
        table.add_row(study.name, study.title, f"{total - missing} of {total}")
    Console().print(table)


def run_studies(
    names: list[str], out: Path, *, quick: bool, jobs: int | None, scheduler: str | None
) -> int:
    """Run what is missing of the studies; returns the exit code.

    Raises
    ------
    DataError
        If there is no such study, or no such scheduler."""
    if jobs is not None and jobs < 0:
        raise DataError(f"--jobs must be at least 0, but is {jobs}: leave it out for all cores.")
    studies, store, console = choose(names), Store(out), Console()
    missing = [task for study in studies for task in store.missing(study, quick)]
    total = sum(len(study.tasks(quick)) for study in studies)
    try:
        with _progress(len(missing)) as advance:
            outcome = run_missing(missing, store, jobs=jobs, scheduler=scheduler, advance=advance)
    except Interrupted as interrupt:
        left = len(missing) - interrupt.outcome.done
        console.print(
            f"Interrupted. {count(total - left, 'task')} of {total} are done and kept in {out}; "
            "the same command goes on from there."
        )
        return 130
    _print_outcome(console, studies, store, quick, outcome, total - len(missing))
    return 1 if outcome.failed else 0


def show_study(name: str, out: Path, quick: bool) -> None:
    """Print a study's claim and settings, and its verdict and table where it has been run."""
    (study,), console = choose([name]), Console()
    for label, words in (
        (study.name, study.title), ("claim", study.claim), ("source", study.source),
        ("settings", study.settings), ("tasks", str(len(study.tasks(quick)))),
    ):  # fmt: skip
        console.print(Text.assemble((f"{label}: ", "bold"), words))
    store = Store(out)
    if store.missing(study, quick):
        console.print(f"Not run yet: dargmin study run {name}{' --quick' if quick else ''}")
        return
    frame = store.read(study, quick)
    verdict = study.verdict(frame)
    console.print(_verdict_text(verdict.status, verdict.sentence))
    for what, value in verdict.numbers.items():
        console.print(f"  {what}: {value:.4g}")
    console.print(f"{len(frame)} rows: {', '.join(map(str, frame.columns))}")
    console.print(frame.head(8).to_string(index=False), highlight=False)


def make_report(out: Path, quick: bool) -> list[Path]:
    """Write the page, the figures and the tables of all studies that have been run.

    Raises
    ------
    DataError
        If none has."""
    store = Store(out)
    ready = [study for study in STUDIES.values() if not store.missing(study, quick)]
    if not ready:
        option = " --quick" if quick else ""
        raise DataError(f"No study has been run into {out}: dargmin study run --all{option}")
    left = [study.name for study in STUDIES.values() if study not in ready]
    return write_report(store, ready, left, quick)


def choose(names: list[str]) -> list[Study]:
    """The studies of these names; all if there are none.

    Raises
    ------
    DataError
        If there is no such study."""
    for name in names:
        if name not in STUDIES:
            raise DataError(
                f"There is no study '{name}'{did_you_mean(name, STUDIES)}: choose from "
                f"{listing(STUDIES, 20)}."
            )
    return [STUDIES[name] for name in dict.fromkeys(names)] or list(STUDIES.values())


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[Task, int], None]]:
    """A bar with the time that is left, on a terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        row = bar.add_task("starting the workers", total=total)
        yield lambda task, done: bar.update(row, description=task.label[:60], completed=done)


def _print_outcome(
    console: Console, studies: list[Study], store: Store, quick: bool, outcome: Outcome, had: int
) -> None:
    table = _table("study", "tasks", "seconds", "verdict")
    for study in studies:
        total, missing = len(study.tasks(quick)), len(store.missing(study, quick))
        said = Text("incomplete", style="red")
        if not missing:
            verdict = study.verdict(store.read(study, quick))
            said = _verdict_text(verdict.status, verdict.sentence)
        seconds = f"{store.seconds(study, quick):.0f}"
        table.add_row(study.name, f"{total - missing} of {total}", seconds, said)
    console.print(table)
    console.print(f"{count(outcome.done, 'task')} run, {had} done before.")
    for label, reason in outcome.failed.items():
        console.print(Text(f"Failed: {label}: {reason}", style="red"))


def _verdict_text(status: str, sentence: str) -> Text:
    return Text.assemble((f"{status}. ", COLOURS.get(status, "red")), sentence)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        table.add_column(name)
    return table
