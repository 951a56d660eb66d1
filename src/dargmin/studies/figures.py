"""Figures of the studies, drawn with matplotlib."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from dargmin.studies.results import CurseStudy, MethodRun
from dargmin.studies.verdict import capitalised, headline, times_as_wrong

__all__ = ["curse_figure", "save_curse_figure"]

INK, GREY, FAINT = "#1f2430", "#6b7280", "#d5d9e0"
METHOD_COLORS = {  # Okabe and Ito's palette, safe for colour-blind readers
    "gd": "#0072B2",
    "gd-optimal": "#3F9CCB",
    "heavy-ball": "#B8860B",
    "nesterov": "#009E73",
    "chebyshev": "#D55E00",
    "sobolev": "#AA4499",
}
MODE_MARKERS = {"unrolled": "o", "late start": "D", "Neumann": "^", "implicit": "s"}
ITERATE_LINE: Any = {"color": GREY, "lw": 1.2}
DERIVATIVE_LINE: Any = {"lw": 2.8, "solid_capstyle": "round"}
PREDICTED_LINE: Any = {"color": INK, "lw": 1.0, "ls": (0, (3, 3))}
BOUND_LINE: Any = {"color": INK, "lw": 1.0, "ls": (0, (1, 2))}
SMALLEST = 1e-6  # errors below this are drawn as this
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "svg.hashsalt": "dargmin",
}


def curse_figure(study: CurseStudy) -> Figure:
    """Draw the errors of iterate and derivative, a panel for each method, and the modes at w_T.

    Parameters
    ----------
    study : CurseStudy

    Returns
    -------
    Figure
        Save it with `figure.savefig(path)`."""
    panels = len(study.runs) + 1
    columns = min(3 if panels <= 6 else 4, panels)
    rows = -(-panels // columns)
    with mpl.rc_context(STYLE):
        height = 1.3 + 3.0 * rows
        inner = (0.01, 0.01, 0.98, 0.99 - 0.95 / height)  # below the heading
        layout = ConstrainedLayoutEngine(rect=inner, hspace=0.06, wspace=0.05)
        figure = Figure(figsize=(13.2 if columns < 4 else 16.5, height), dpi=150, layout=layout)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for k, (run, ax) in enumerate(zip(study.runs, axes, strict=False)):
            _draw_run(ax, run, _highest_error(study))
            if k % columns == 0:
                ax.set_ylabel("relative error   (1: returning zero)")
            else:
                ax.tick_params(labelleft=False)
        _draw_key(axes[0], study.runs[0])
        grid = axes[0].get_gridspec()
        for ax in axes[panels - 1 :]:
            ax.remove()
        _draw_modes(figure.add_subplot(grid[-1, (panels - 1) % columns :]), study)
        _write_heading(figure, study)
    return figure


def save_curse_figure(study: CurseStudy, directory: Path) -> list[Path]:
    """Write the figure as PNG and SVG; returns the paths."""
    figure = curse_figure(study)
    paths = [directory / f"{study.stem}{suffix}" for suffix in (".png", ".svg")]
    with mpl.rc_context(STYLE):
        figure.savefig(paths[0])
        figure.savefig(paths[1], metadata={"Date": None})  # the same study gives the same file
    return paths


def _write_heading(figure: Figure, study: CurseStudy) -> None:
    inches = figure.get_figheight()
    figure.text(0.016, 1 - 0.36 / inches, headline(study), size=18, weight="bold", va="center")
    subtitle = (
        f"{study.model.capitalize()} regression on {study.data} ({study.rows} × {study.columns}), "
        f"derivative of the coefficients in the log-penalty; penalty {study.penalty:g}, "
        f"L/μ = {study.L / study.mu:.3g}, "
        + ("started at random" if study.start == "random" else "started at zero")
    )
    figure.text(0.016, 1 - 0.72 / inches, subtitle, size=11, color=GREY, va="center")


def _highest_error(study: CurseStudy) -> float:
    return max([1.0, *(run.burn_in.height for run in study.runs if run.burn_in.height < 1e8)])


def _draw_run(ax: Axes, run: MethodRun, highest: float) -> None:
    color = METHOD_COLORS[run.key]
    t = np.arange(1, run.iterate_error.size)
    error = run.derivative_error[1:]
    ax.set(xscale="log", yscale="log", xlim=(1, max(t[-1], 2)), ylim=(2e-5, 8 * highest))
    ax.axhline(1, color=GREY, lw=0.9)
    ax.fill_between(t, 1, error, where=error >= 1, interpolate=True, color=color, alpha=0.16, lw=0)
    ax.plot(t, run.iterate_error[1:], **ITERATE_LINE)
    ax.plot(t, error, color=color, **DERIVATIVE_LINE)
    if run.predicted is not None:
        ax.plot(t, run.predicted[1:], **PREDICTED_LINE)
    elif run.bound is not None:
        ax.plot(t, run.bound[1:], **BOUND_LINE)
    ax.set_title(capitalised(run.label), loc="left", color=color, weight="bold", size=12, pad=7)
    ax.set_xlabel("iteration t")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_locator(LogLocator(10, numticks=20))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y", color=FAINT, lw=0.6)
    ax.set_axisbelow(True)
    _annotate_burn_in(ax, run, color)


def _annotate_burn_in(ax: Axes, run: MethodRun, color: str) -> None:
    burn_in = run.burn_in
    if not (burn_in.visible and np.isfinite(burn_in.height)):
        words = "diverges" if burn_in.visible else "no burn-in"
        ax.text(0.03, 0.96, words, transform=ax.transAxes, color=color, va="top", weight="bold")
        return
    ax.plot(burn_in.peak, burn_in.height, "o", ms=6.5, color=color, mec="white", mew=1.2, zorder=5)
    words = f"{times_as_wrong(burn_in.height)} at t = {burn_in.peak}"
    if burn_in.end is None:
        words += f", not over at {run.derivative_error.size - 1}"
    else:
        ax.plot(burn_in.end, 1, "o", ms=5.5, color="white", mec=color, mew=1.6, zorder=5)
        words += f", over at {burn_in.end}"
    ax.text(0.03, 0.96, words, transform=ax.transAxes, color=color, va="top", weight="bold")


def _draw_key(ax: Axes, run: MethodRun) -> None:
    handles = [Line2D([], [], color=METHOD_COLORS[run.key], **DERIVATIVE_LINE)]
    labels = ["unrolled derivative"]
    if run.predicted is not None:
        handles.append(Line2D([], [], **PREDICTED_LINE))
        labels.append("predicted from the spectrum")
    elif run.bound is not None:
        handles.append(Line2D([], [], **BOUND_LINE))
        labels.append("worst case, from theory")
    handles.append(Line2D([], [], **ITERATE_LINE))
    labels.append("the coefficients themselves")
    ax.legend(handles, labels, loc="lower left", frameon=False, handlelength=1.6, borderaxespad=0.3)


def _draw_modes(ax: Axes, study: CurseStudy) -> None:
    rows = np.arange(len(study.runs))[::-1]
    for y, run in zip(rows, study.runs, strict=True):
        color = METHOD_COLORS[run.key]
        ax.axhline(y, color=FAINT, lw=0.8, zorder=0)
        ax.text(
            0.0,
            y + 0.27,
            capitalised(run.label),
            transform=ax.get_yaxis_transform(),
            color=color,
            size=9,
        )
        for mode in run.modes:
            marker, error = MODE_MARKERS[mode.mode], max(mode.error, SMALLEST)
            ax.plot(error, y, marker, ms=8, color=color, mec="white", mew=0.8, clip_on=False)
            estimate = max(mode.estimate, SMALLEST)
            ax.plot(estimate, y, "|", ms=13, color=INK, mew=1.3, clip_on=False)
    ax.set(xscale="log", ylim=(-0.5, len(study.runs) + 0.4), yticks=[])
    ax.set_xlim(left=SMALLEST / 2, right=max(2.0, 2 * ax.get_xlim()[1]))
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(LogLocator(10, numticks=20))
    ax.xaxis.set_major_formatter(FuncFormatter(_mode_tick))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_title(
        f"Four derivatives at the same $w_T$, T = {study.steps}",
        loc="left",
        size=12,
        weight="bold",
        pad=7,
    )
    ax.set_xlabel("relative error   ( | : the certificate's estimate)")
    marks = {mode.mode: MODE_MARKERS[mode.mode] for mode in study.runs[0].modes}
    handles = [Line2D([], [], marker=m, color=GREY, ls="", ms=7) for m in marks.values()]
    ax.legend(
        handles,
        list(marks),
        loc="upper left",
        ncols=4,
        frameon=False,
        fontsize=9,
        handletextpad=0.1,
        columnspacing=0.9,
        borderaxespad=0.0,
        borderpad=0.0,
    )


def _mode_tick(value: float, _: int) -> str:
    exponent = round(np.log10(value))
    return f"$\\leq 10^{{{exponent}}}$" if value <= 1.01 * SMALLEST else f"$10^{{{exponent}}}$"
