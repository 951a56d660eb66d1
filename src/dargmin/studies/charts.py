"""Charts of studies: curves, points and maps with zoom, tooltips, legend toggles and sliders."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

__all__ = ["PALETTE", "curves", "heat_map", "points"]

PALETTE = [
    "#2f8fd0", "#e0692e", "#c99a1e", "#22a07f", "#c45cb3", "#7f7ce0", "#8a8f98", "#d0496b",
    "#5aa82e", "#2fb5c0",
]  # fmt: skip
MARGIN = 6  # pixels between an axis and a mark, which the axis would cut in half
DRAG = "[mousedown, window:mouseup] > window:mousemove!"  # the mouse alone: a finger scrolls
WHEEL = "wheel![event.shiftKey]"
NUMBER = (
    "(datum.value >= 0.01 && datum.value <= 10000 ? format(datum.value, '~g') : "
    "format(datum.value, '.0e'))"
)
DECADE = (
    "(abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 1e-6"
    " || log(domain('{0}')[1] / domain('{0}')[0]) < 5.3)"
)
"""A power of ten; or anything, where the axis has less than two of them (after zooming in, too)."""


def curves(
    frame: pd.DataFrame, *, x: str, y: str, series: str, titles: tuple[str, str],
    scales: tuple[str, str] = ("log", "log"), dash: str | None = None,
    controls: dict[str, Any] | None = None, rule: float | None = 1.0, detail: str | None = None,
    limits: tuple[float, float] | None = None,
) -> Any:  # fmt: skip
    """One line for each `series`; `dash` tells measured from predicted, or the like.

    `controls` maps columns to the value shown first: words get a menu, numbers a slider. `rule` is
    a horizontal line, the error of returning zero. `limits` cut the vertical axis."""
    used = [x, y, series, dash, detail, *(controls or {})]
    frame = _plottable(frame, x, y, scales, limits, used)
    toggle = _toggle(series)
    base = _controlled(alt.Chart(frame), frame, controls or {})
    encoding: dict[str, Any] = {
        "x": alt.X(x, title=titles[0], **_axis("x", scales[0])),
        "y": alt.Y(y, title=titles[1], **_axis("y", scales[1], limits)),
        "color": _colour(frame, series),
        "opacity": alt.condition(toggle, alt.value(1.0), alt.value(0.08)),
        "tooltip": _tooltip(frame, [series, dash, x, y]),
    }
    if dash is not None:
        encoding["strokeDash"] = alt.StrokeDash(
            dash, type="nominal", title=None, sort=list(dict.fromkeys(frame[dash]))
        )
    if detail is not None:
        encoding["detail"] = alt.Detail(detail, type="nominal")
    lines = base.mark_line(strokeWidth=2.2, clip=True).encode(**encoding)
    hover = base.mark_circle(size=60, opacity=0).encode(
        **{name: encoding[name] for name in ("x", "y", "tooltip")}
    )
    layers = [lines.add_params(toggle, _zoom()), hover]
    if rule is not None:
        layers.insert(0, _rule(rule))
    return alt.layer(*layers).properties(width="container", height=340)


def points(
    frame: pd.DataFrame, *, x: str, y: str, series: str, titles: tuple[str, str],
    scales: tuple[str, str] = ("log", "log"), shape: str | None = None,
    controls: dict[str, Any] | None = None, diagonal: bool = False, more: tuple[str, ...] = (),
    rule: float | None = None, join: bool = False,
) -> Any:  # fmt: skip
    """One mark for each row; with `diagonal`, the line y = x; with `join`, a line per series."""
    used = [x, y, series, shape, *more, *(controls or {})]
    frame = _plottable(frame, x, y, scales, None, used)
    toggle = _toggle(series)
    base = _controlled(alt.Chart(frame), frame, controls or {})
    encoding: dict[str, Any] = {
        "x": alt.X(x, title=titles[0], **_axis("x", scales[0], padding=MARGIN)),
        "y": alt.Y(y, title=titles[1], **_axis("y", scales[1], padding=MARGIN)),
        "color": _colour(frame, series),
        "opacity": alt.condition(toggle, alt.value(0.8), alt.value(0.06)),
        "tooltip": _tooltip(frame, [series, shape, *more, x, y]),
    }
    if shape is not None:
        encoding["shape"] = alt.Shape(shape, type="nominal", title=None)
    if scales[0] == "ordinal" and not join:
        encoding["xOffset"] = alt.XOffset(series, type="nominal")
    selections = [toggle] if scales[0] == "ordinal" else [toggle, _zoom()]
    layers = [base.mark_point(filled=True, size=55).encode(**encoding).add_params(*selections)]
    if join:
        line = {name: encoding[name] for name in ("x", "y", "color", "opacity")}
        layers.insert(0, base.mark_line(strokeWidth=1.6).encode(**line))
    if rule is not None:
        layers.insert(0, _rule(rule))
    if diagonal:
        ends = [frame[[x, y]].min().min(), frame[[x, y]].max().max()]
        same = alt.Chart(pd.DataFrame({x: ends, y: ends}))
        line = same.mark_line(strokeDash=[4, 3], color="#8a8f98").encode(
            x=alt.X(x, type="quantitative"), y=alt.Y(y, type="quantitative")
        )
        layers.insert(0, line)
    return alt.layer(*layers).properties(width="container", height=340)


def heat_map(
    frame: pd.DataFrame, *, x: str, y: str, value: str, titles: tuple[str, str, str],
    controls: dict[str, Any], lines: dict[str, str],
) -> Any:  # fmt: skip
    """log10 `value` over two ordinal axes; `lines` are columns that mark one x for each y."""
    base = _controlled(alt.Chart(frame), frame, controls)
    cells = base.mark_rect().encode(
        x=alt.X(x, type="ordinal", title=titles[0], axis=alt.Axis(labelOverlap=True, labelAngle=0)),
        y=alt.Y(y, type="ordinal", title=titles[1], sort="descending"),
        color=alt.Color(
            value, type="quantitative", title=titles[2],
            scale=alt.Scale(scheme="viridis"),
        ),
        tooltip=_tooltip(frame, [x, y, value, *lines]),
    )  # fmt: skip
    layers = [cells]
    for column, mark in lines.items():
        chosen = base.transform_filter(alt.datum[x] == alt.datum[column])
        layers.append(
            chosen.mark_point(filled=True, size=70, shape=mark, color="white", stroke="black")
            .encode(x=alt.X(x, type="ordinal"), y=alt.Y(y, type="ordinal", sort="descending"))
        )  # fmt: skip
    return alt.layer(*layers).properties(width="container", height=340)


def _plottable(
    frame: pd.DataFrame, x: str, y: str, scales: tuple[str, str], limits: Any,
    used: list[str | None],
) -> pd.DataFrame:  # fmt: skip
    """Without what no axis can show or no mark uses; numbers rounded, to keep the page small."""
    table: Any = frame[list(dict.fromkeys(name for name in used if name))]
    kept = np.isfinite(table[x].astype(float)) & np.isfinite(table[y].astype(float))
    for column, scale in ((x, scales[0]), (y, scales[1])):
        if scale == "log":
            kept &= table[column] > 0
    table = table[kept].copy()
    for column in table.select_dtypes("float"):
        table[column] = [float(f"{value:.4g}") for value in table[column]]
    return table if limits is None else table[table[y].between(limits[0] / 1e3, limits[1] * 1e3)]


def _controlled(chart: Any, frame: pd.DataFrame, controls: dict[str, Any]) -> Any:
    """A menu or a slider for each column, which picks the rows that are shown."""
    for column, first in controls.items():
        choices = sorted(set(frame[column])) if not isinstance(first, str) else None
        name = "pick_" + "".join(c for c in column if c.isalnum())
        if choices is None:
            options = list(dict.fromkeys(frame[column]))
            bind = alt.binding_select(options=options, name=f"{_said(column)} ")
        else:
            step = float(np.min(np.diff(choices))) if len(choices) > 1 else 1.0
            bind = alt.binding_range(
                min=float(choices[0]), max=float(choices[-1]), step=step, name=f"{_said(column)} "
            )
        pick = alt.param(name=name, value=first, bind=bind)
        chart = chart.add_params(pick).transform_filter(alt.datum[column] == pick)
    return chart


def _said(column: str) -> str:
    """What a control is called: its column, but for the logarithms."""
    return column.replace("log10_", "log₁₀ of the ")


def _colour(frame: pd.DataFrame, series: str) -> Any:
    names = list(dict.fromkeys(frame[series]))
    return alt.Color(
        series, type="nominal", title=None,
        scale=alt.Scale(domain=names, range=[PALETTE[i % len(PALETTE)] for i in range(len(names))]),
    )  # fmt: skip


def _toggle(series: str) -> Any:
    return alt.selection_point(fields=[series], bind="legend", toggle="true")


def _zoom() -> Any:
    return alt.selection_interval(bind="scales", translate=DRAG, zoom=WHEEL)


def _rule(value: float) -> Any:
    where = alt.Chart(pd.DataFrame({"level": [value]}))
    return where.mark_rule(color="#8a8f98", strokeDash=[2, 3]).encode(y=alt.Y("level:Q"))


def _axis(
    name: str, kind: Any, limits: tuple[float, float] | None = None, padding: int = 0
) -> dict[str, Any]:
    """Type, scale and axis; a long logarithmic one is marked at powers of ten alone."""
    if kind == "ordinal":
        return {"type": "ordinal", "axis": alt.Axis(labelAngle=0)}
    domain = alt.Undefined if limits is None else list(limits)
    if kind != "log":
        scale = alt.Scale(type=kind, domain=domain, zero=False)
        return {"type": "quantitative", "scale": scale}
    shown = DECADE.format(name)
    axis = alt.Axis(
        labelExpr=f"{shown} ? {NUMBER} : ''",
        gridOpacity=alt.condition(shown, alt.value(1), alt.value(0)),
        tickOpacity=alt.condition(shown, alt.value(1), alt.value(0.3)),
    )
    scale = alt.Scale(type=kind, domain=domain, nice=False, padding=padding)
    return {"type": "quantitative", "axis": axis, "scale": scale}


def _tooltip(frame: pd.DataFrame, columns: list[str | None]) -> list[Any]:
    names = list(dict.fromkeys(name for name in columns if name))
    numeric = {name: pd.api.types.is_numeric_dtype(frame[name].dtype) for name in names}
    return [
        alt.Tooltip(name, type="quantitative", format=".3~g")
        if numeric[name]
        else alt.Tooltip(name, type="nominal")
        for name in names
    ]
