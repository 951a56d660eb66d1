"""A study as a person reads it in a terminal: settings, two tables, the verdict."""

import contextlib
from collections.abc import Callable, Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from dargmin.bilevel.progress import console as shared_console
from dargmin.studies.results import CurseStudy, MethodRun, ModeError
from dargmin.studies.verdict import NEGLIGIBLE, count, number, verdict

__all__ = ["progress", "report"]


def report(study: CurseStudy) -> RenderableType:
    """The settings, the tables and the verdict, for a rich Console to print."""
    findings = Table.grid(padding=(0, 1))
    for sentence in verdict(study):
        findings.add_row("•", Text(sentence))
    parts = [Text(_settings(study)), *(Text(note, style="dim") for note in study.notes), ""]
    parts += [burn_in_table(study), "", mode_table(study), "", findings]
    return Group(*parts)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """Show a bar on the terminal, if there is one; yields `advance(what comes next, share)`."""
    console = shared_console()
    columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"))
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def burn_in_table(study: CurseStudy) -> Table:
    """Peak and end of every burn-in, and the errors at w_T."""
    table = _table(
        "Unrolled, iteration by iteration",
        f"Errors are relative; 1 is that of returning zero. T = {study.steps}.",
    )
    table.add_column("")
    table.add_column("burn-in\npeak", justify="right")
    table.add_column("\nat t", justify="right")
    table.add_column("\nover at", justify="right")
    table.add_column("predicted\npeak", justify="right")
    table.add_column("\nat t", justify="right")
    table.add_column("error at T\nof w", justify="right")
    table.add_column("\nof dw", justify="right")
    for run in study.runs:
        burn_in = run.burn_in
        cells = ["none", "", ""]
        if burn_in.visible:
            end = f"not by {study.steps}" if burn_in.end is None else str(burn_in.end)
            cells = [f"{number(burn_in.height)}×", str(burn_in.peak), end]
        cells[0] = f"[bold red]{cells[0]}[/]" if burn_in.visible else f"[green]{cells[0]}[/]"
        cells += _expected_cells(run)
        table.add_row(
            run.short, *cells, number(run.iterate_error[-1]), number(run.derivative_error[-1])
        )
    return table


def _expected_cells(run: MethodRun) -> list[str]:
    """The predicted peak and its iteration; ≤ marks a worst case."""
    if (expected := run.expected) is None:
        return ["", ""]
    if not expected.visible:
        return ["none", ""]
    sign = "" if run.predicted is not None else "≤"
    return [f"{sign}{number(expected.height)}×", str(expected.peak)]


def mode_table(study: CurseStudy) -> Table:
    """The true error of every mode at w_T, and beside it what its certificate estimates."""
    n = study.steps - study.late_start
    table = _table(
        "Four derivatives at the same w_T: true error (certificate's estimate)",
        f"Late start differentiates the last {count(n, 'step')}; Neumann sums {count(n, 'term')}.",
    )
    table.add_column("")
    for mode in study.runs[0].modes:
        table.add_column(mode.mode, justify="right")
    for run in study.runs:
        best = min((mode.error for mode in run.modes), default=float("nan"))
        table.add_row(run.short, *(_mode_cell(mode, best) for mode in run.modes))
    return table


def _settings(study: CurseStudy) -> str:
    start = "zero" if study.start == "zeros" else f"random (standard normal, seed {study.seed})"
    return (
        f"{study.model.capitalize()} regression on {study.data}: {study.rows} rows, "
        f"{study.columns} features, {study.coefficients} coefficients w. Start: {start}. "
        f"Penalty e^θ = {study.penalty:g}, so μ = {study.mu:.3g}, L = {study.L:.3g}, "
        f"L/μ = {study.L / study.mu:.3g}. Derivative: dw/dθ."
    )


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )


def _mode_cell(mode: ModeError, best: float) -> str:
    if mode.error < NEGLIGIBLE:
        truth = f"<{number(NEGLIGIBLE)}"
    else:
        truth = f"{number(mode.error)} [dim]({number(mode.estimate)})[/]"
    if mode.error <= max(best * 1.001, NEGLIGIBLE):
        truth = f"[bold green]{truth}[/]"
    flag = "" if mode.status == "ok" else "[bold red]![/]"
    return f"{truth}{flag}"
