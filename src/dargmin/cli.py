"""The command line: `dargmin curse --data breast_cancer --model ridge`.

jax, and all that imports it, is imported where a command runs, so that `--help` is instant."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

from dargmin import __version__

EXTRA = {
    "altair", "dask", "distributed", "matplotlib", "pandas", "pyarrow", "rich", "scipy", "sklearn",
    "statsmodels", "typer", "vl_convert",
}  # fmt: skip
"""What dargmin[studies] brings."""


def _what_to_install(error: ModuleNotFoundError) -> str:
    return (
        f"dargmin's command line needs {error.name}, which is not installed: "
        "pip install 'dargmin[studies]'"
    )


try:
    import typer
except ModuleNotFoundError as error:
    sys.exit(_what_to_install(error))

app = typer.Typer(
    name="dargmin",
    help="The derivative of argmin, with an error bar.",
    add_completion=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; say what to install where an optional package is missing."""
    try:
        app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        sys.exit(_what_to_install(error))


def _show_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"dargmin {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """The derivative of argmin, with an error bar."""


@app.command()
def curse(
    data: Annotated[
        str,
        typer.Option(
            help="breast_cancer, diabetes, digits, wine, or a CSV, Parquet or libsvm file."
        ),
    ] = "breast_cancer",
    model: Annotated[str, typer.Option(help="ridge or logistic.")] = "ridge",
    target: Annotated[
        str | None, typer.Option(help="Column to predict; required for CSV and Parquet files.")
    ] = None,
    drop_constant: Annotated[
        bool, typer.Option("--drop-constant", help="Drop constant columns of a file.")
    ] = False,
    penalty: Annotated[
        float | None,
        typer.Option(
            help="e^θ in ½ e^θ ‖w‖², on standardised features. (default: ridge 0.1, logistic 0.03)"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Iterations T. (default: 5 L/μ, between 50 and 5000)")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Some of gd, gd-optimal, heavy-ball, nesterov, chebyshev, sobolev; by commas."
        ),
    ] = "gd,gd-optimal,heavy-ball,nesterov,chebyshev,sobolev",
    start: Annotated[
        str, typer.Option(help="Where w starts: random (standard normal) or zeros.")
    ] = "random",
    seed: Annotated[int, typer.Option(help="Seed of a random start.")] = 0,
    late_start: Annotated[
        int | None,
        typer.Option(
            help="Iteration at which the late start begins to differentiate. (default: T/2)"
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Directory for the figure (PNG, SVG) and the data (Parquet, CSV).")
    ] = Path("dargmin-out"),
) -> None:
    """Watch the curse of unrolling on real data: how wrong is dw/dθ after t iterations?

    Fits w by gradient descent (steps 1/L and 2/(L+μ)), heavy ball, Nesterov, Chebyshev and Sobolev,
    and compares the derivative of w in the log-penalty θ, unrolled through the iterations, with
    the truth and with what theory predicts; then late start, Neumann and implicit differentiation
    at the same last iterate, each with the error that its certificate estimates."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from rich.console import Console

    from dargmin.studies.curse import Options, study_curse
    from dargmin.studies.data import DataError, load
    from dargmin.studies.figures import save_curse_figure
    from dargmin.studies.report import progress, report

    try:
        options = Options(
            model, penalty, steps, _split(methods), start=start, seed=seed, late_start=late_start
        )
        table = load(data, target, drop_constant=drop_constant)
        _make_writable(out)
        with progress() as advance:
            study = study_curse(table, options, advance)
            advance("saving", 1.0)
            files = [*save_curse_figure(study, out), *study.save(out)]
    except DataError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    Console().print(report(study), "")
    for file in files:  # one a line, whole, to be copied
        typer.echo(file)


@app.command()
def tune(
    table: Annotated[
        str,
        typer.Argument(
            help="A CSV, Parquet or libsvm file; or breast_cancer, diabetes, digits, wine."
        ),
    ],
    model: Annotated[str, typer.Option(help="ridge, logistic or elastic-net.")],
    target: Annotated[
        str | None, typer.Option(help="Column to predict; required for CSV and Parquet files.")
    ] = None,
    penalty: Annotated[
        str, typer.Option(help="scalar: one for all; feature: one for each; group: see --groups.")
    ] = "scalar",
    groups: Annotated[
        str,
        typer.Option(
            help="auto: the features that come from one column are a group; or a CSV file with the "
            "columns feature and group."
        ),
    ] = "auto",
    test_size: Annotated[
        float, typer.Option(help="Share of the rows held out to compare on; 0 for none.")
    ] = 0.25,
    cv: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the split and the folds.")] = 0,
    max_iter: Annotated[int, typer.Option(help="Outer steps of each stage, at most.")] = 100,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out that was interrupted.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the results. (default: dargmin-out/tune-TABLE-MODEL)"),
    ] = None,
) -> None:
    """Learn the penalties of a linear model from a table, and compare on rows held out.

    Fills in and encodes the columns, learns one penalty or many by hypergradient of the
    cross-validated loss, and leaves in --out the fitted pipeline (model.joblib: load it only if
    you trust where it comes from, as any pickle), coefficients and penalties, the history,
    figures, and summary.html. Ctrl-C leaves the best so far; --resume goes on from there."""
    from dargmin.studies.errors import DataError
    from dargmin.studies.tune import commands
    from dargmin.studies.tune.options import Options

    try:
        options = Options(model, penalty, groups, test_size, cv, seed, max_iter)
        out = out or Path("dargmin-out") / f"tune-{Path(table).stem}-{model}"
        _make_writable(out)
        code = commands.tune(table, target, options, out, resume=resume)
    except DataError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(code)


@app.command()
def predict(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --out of dargmin tune.")],
    table: Annotated[Path, typer.Argument(metavar="NEW", help="A CSV, Parquet or libsvm file.")],
    out: Annotated[
        Path | None, typer.Option(help="CSV file to write. (default: NEW-predictions.csv)")
    ] = None,
) -> None:
    """Predict with a model that `dargmin tune` left in DIR; says how good, if the target is there.

    DIR/model.joblib is a pickle, which can run code when it is loaded: trust where it comes from.
    """
    from dargmin.studies.errors import DataError
    from dargmin.studies.tune import commands

    try:
        file = commands.predict(directory, table, out or Path(f"{table.stem}-predictions.csv"))
    except DataError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(file)


study_app = typer.Typer(
    help="Studies of the curse: claims, the numbers that decide them, verdicts.",
    no_args_is_help=True,
)
app.add_typer(study_app, name="study")
OUT = Annotated[Path, typer.Option(help="Directory of the results.")]
QUICK = Annotated[bool, typer.Option("--quick", help="Small settings: seconds, not minutes.")]


@study_app.command("list")
def list_studies(out: OUT = Path("dargmin-out"), quick: QUICK = False) -> None:
    """Name the studies, and say how much of each is done."""
    from dargmin.studies import commands

    commands.list_studies(out, quick)


@study_app.command("run")
def run_studies(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...")] = None,
    every: Annotated[bool, typer.Option("--all", help="Run every study.")] = False,
    quick: QUICK = False,
    out: OUT = Path("dargmin-out"),
    jobs: Annotated[
        int | None, typer.Option(help="Worker processes; 0: none. (default: one for each core)")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler, to use its workers instead.")
    ] = None,
) -> None:
    """Run what is missing of studies, on dask workers; what is done is kept, whatever happens."""
    from dargmin.studies import commands
    from dargmin.studies.errors import DataError

    try:
        if bool(names) == every:
            raise DataError("Name the studies to run, or say --all: see `dargmin study list`.")
        _make_writable(out)
        code = commands.run_studies(names or [], out, quick=quick, jobs=jobs, scheduler=scheduler)
    except DataError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(code)


@study_app.command("show")
def show_study(name: str, out: OUT = Path("dargmin-out"), quick: QUICK = False) -> None:
    """Print a study's claim, its verdict, and the first rows of its table."""
    from dargmin.studies import commands
    from dargmin.studies.errors import DataError

    try:
        commands.show_study(name, out, quick)
    except DataError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def report(out: OUT = Path("dargmin-out"), quick: QUICK = False) -> None:
    """Write the page, the figures and the tables of the studies that have been run."""
    from dargmin.studies import commands
    from dargmin.studies.errors import DataError

    try:
        _make_writable(out)
        files = commands.make_report(out, quick)
    except DataError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None
    for file in files:
        typer.echo(file)


def _split(names: str) -> tuple[str, ...]:
    """The names between the commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))


def _make_writable(directory: Path) -> None:
    """Make the directory, and find out before the work whether files can be written there."""
    from dargmin.studies.files import DataError

    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise DataError(
            f"Nothing can be written to --out {directory} ({error.strerror}): "
            "name a directory that is yours."
        ) from None
