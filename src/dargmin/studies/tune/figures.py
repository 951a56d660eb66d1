"""Three figures of a run: its losses, its penalties, and what was switched off."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from dargmin.studies.figures import STYLE
from dargmin.studies.tune.result import Found

__all__ = ["figures"]

SHARED, SEPARATE, UNSEEN = "#0072B2", "#D55E00", "#009E73"
SHOWN = 24  # features with a bar, or a name beside their line
DARK: Any = {
    "figure.facecolor": "#16181d",
    "axes.facecolor": "#16181d",
    "text.color": "#e6e8ec",
    "axes.labelcolor": "#e6e8ec",
    "axes.edgecolor": "#9aa1ad",
    "xtick.color": "#9aa1ad",
    "ytick.color": "#9aa1ad",
}
WIDTH = 5.6  # inches: still readable at the width of a phone


def figures(found: Found, *, dark: bool = False) -> dict[str, Figure]:
    """Draw them, by the name of their file."""
    style = STYLE | {"font.size": 12} | (DARK if dark else {})
    with mpl.rc_context(style):
        drawn = {"loss": _losses(found), "penalties": _penalties(found), "features": _bars(found)}
        for figure in drawn.values():
            figure.draw_without_rendering()  # in this style, whenever it is saved
    return drawn


def _figure(height: float, rows: int = 1, ratios: list | None = None) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), dpi=150, layout="constrained")
    return figure, figure.subplots(rows, sharex=True, height_ratios=ratios)


def _losses(found: Found) -> Figure:
    """The validation loss, and below it the hypergradient with its certified error."""
    figure, (top, bottom) = _figure(5.2, 2, [3, 2])
    history, begin = found.model.history_, 0
    for stage, color, label in (
        ("scalar", SHARED, "one penalty for all"),
        ("separate", SEPARATE, "separate penalties"),
    ):
        at = history["stage"] == stage
        if not at.any():
            continue
        steps = begin + history["step"][at]
        gradient, error = history["gradient_norm"][at], history["error"][at]
        top.plot(steps, history["value"][at], "o-", color=color, ms=4, lw=1.8, label=label)
        # a bar down to nothing would have no end on a logarithmic axis
        low = np.minimum(error, 0.999) * gradient
        bottom.errorbar(
            steps, gradient, [low, error * gradient], fmt="o-", color=color, ms=4, lw=1.8,
            ecolor=mpl.rcParams["text.color"], elinewidth=1.2, capsize=3,
        )  # fmt: skip
        if stage == "scalar":
            begin = int(steps[-1])
    if found.model.guard_losses_ is not None:
        losses = found.model.guard_losses_
        steps = begin + np.arange(len(losses))
        top.plot(steps, losses, "s--", color=UNSEEN, ms=3.5, lw=1.3, label="of rows left out")
        best = int(np.argmin(losses))
        top.plot(begin + best, losses[best], "o", ms=12, mfc="none", mec=UNSEEN, mew=1.5)
    top.set_ylabel(f"validation {found.loss}")
    top.legend(frameon=False, fontsize=11)
    bottom.set(ylabel="gradient", xlabel="outer step", yscale="log")
    bottom.yaxis.set_major_locator(_log_ticks(bottom))
    bottom.yaxis.set_minor_locator(NullLocator())
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _penalties(found: Found) -> Figure:
    """Every penalty after every step; where there are few, with the names of their features."""
    figure, ax = _figure(4.2)
    path, shared = found.path, found.shared
    names = found.penalties
    if len(path):
        ax.plot(np.arange(shared), path[:shared, 0], "o-", color=SHARED, ms=4, lw=2)
    if len(path) > shared:
        steps = np.arange(shared - 1, len(path) - 1)
        groups = np.asarray(found.groups)
        off = [found.off[groups == name].all() for name in names]
        for j in np.argsort(path[-1]):
            color, style = (mpl.rcParams["axes.edgecolor"], ":") if off[j] else (SEPARATE, "-")
            ax.plot(steps, path[shared:, j], style, color=color, lw=1.3, alpha=0.9)
    ax.set(yscale="log", xlabel="outer step", ylabel="penalty α")
    low, high = ax.get_ylim()
    middle = np.sqrt(low * high)  # a decade at least: less is no change to speak of
    ax.set_ylim(min(low, middle / np.sqrt(10)), max(high, middle * np.sqrt(10)))
    ax.yaxis.set_major_locator(_log_ticks(ax))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if shared < len(path) and len(names) <= SHOWN:
        _name_lines(ax, float(len(path) - 2), path[-1], names)
    return figure


def _log_ticks(ax: Axes) -> LogLocator:
    """Powers of ten, and 2 and 5 times these where there are few of them."""
    low, high = ax.get_ylim()
    return LogLocator(10, subs=(1, 2, 5) if high < 200 * low else (1,), numticks=9)


def _name_lines(ax: Axes, x: float, ends: np.ndarray, names: list[str]) -> None:
    """Names at the right ends of lines, pushed apart where they would overlap."""
    low, high = np.log(ax.get_ylim())
    grey = mpl.rcParams["axes.edgecolor"]
    order, gap = np.argsort(ends), 0.041  # of the height of the axes
    at = (np.log(ends[order]) - low) / (high - low)
    spread = at.copy()
    for i in range(1, len(at)):
        spread[i] = max(spread[i], spread[i - 1] + gap)
    spread -= np.mean(spread - at)
    spread -= max(spread[-1] - 1, 0)
    spread += max(-spread[0], 0)
    for y, j in zip(spread, order, strict=True):
        ax.annotate(
            names[j][:22], (x, ends[j]), (1.06, y), size=8, va="center",
            textcoords="axes fraction", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": grey, "relpos": (0, 0.5)},
        )  # fmt: skip


def _bars(found: Found) -> Figure:
    """The largest coefficients, and how many are none."""
    order = np.argsort(-found.sizes, kind="stable")[:SHOWN]
    figure, ax = _figure(1.2 + 0.27 * len(order))
    grey = mpl.rcParams["axes.edgecolor"]
    coef = np.atleast_2d(found.model.coef_)
    values = coef[0] if len(coef) == 1 else found.sizes
    at = np.arange(len(order))[::-1]
    on = ~found.off[order]
    ax.barh(at[on], values[order][on], color=SHARED, height=0.66)
    ax.plot(np.zeros((~on).sum()), at[~on], "o", mfc="none", mec=grey, ms=6, label="switched off")
    ax.axvline(0, color=grey, lw=0.8)
    ax.set_yticks(at, [found.features[j][:28] for j in order], size=10)
    ax.set_ylim(-0.7, len(order) - 0.3)
    what = "coefficient" if len(coef) == 1 else "largest |coefficient| of a class"
    ax.set_xlabel(f"{what}, standardised features")
    if not on.all():
        ax.legend(frameon=False, fontsize=11, loc="best")
    return figure
