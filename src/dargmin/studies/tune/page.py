"""The summary of a run: one page that needs nothing else, light or dark, on any screen."""

import base64
import html

import numpy as np
from matplotlib.figure import Figure

from dargmin.studies.data import listing
from dargmin.studies.tune.compare import Compared
from dargmin.studies.tune.folder import png
from dargmin.studies.tune.result import OFF, Found
from dargmin.studies.verdict import count, number

__all__ = ["comparison_sentence", "difference", "guard_sentence", "off_sentence", "page"]

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1f2430;--grey:#5b6270;--line:#d5d9e0;--card:#f5f6f8}
@media(prefers-color-scheme:dark){:root{--bg:#16181d;--ink:#e6e8ec;--grey:#9aa1ad;--line:#343944;
--card:#1f232b}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:46rem;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.5rem;line-height:1.25;margin:.4rem 0}h2{font-size:1.1rem;margin:1.8rem 0 .4rem}
p,li{margin:.4rem 0}ul{padding-left:1.2rem}.quiet{color:var(--grey);font-size:.9rem}
.lead{background:var(--card);border-left:4px solid #0072b2;padding:.7rem 1rem;border-radius:4px}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:right;padding:.3rem .5rem;border-bottom:1px solid var(--line);
font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}th{color:var(--grey);font-weight:600}
tr.tuned td{font-weight:600}
@media(max-width:480px){table{font-size:.76rem}th,td{padding:.3rem .2rem}}
img{width:100%;height:auto;display:block}figure{margin:.6rem 0}
figcaption{color:var(--grey);font-size:.9rem}code{font-size:.9em}
"""


def page(found: Found, light: dict[str, Figure], dark: dict[str, Figure]) -> str:
    """The page as text; the figures are in it, for both themes."""
    arguments = found.about["arguments"]
    title = f"{arguments['model'].capitalize()}: {found.title}"
    figures = "".join(
        f"<h2>{heading}</h2>{_picture(png(light[name]), png(dark[name]), words)}"
        for name, heading, words in _captions(found)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>
<p class="quiet">dargmin tune</p><h1>{html.escape(title)}</h1>
{_paragraph(comparison_sentence(found), "lead")}
{_comparison(found)}
<h2>Penalties</h2>{_paragraph(guard_sentence(found))}{_paragraph(off_sentence(found))}
{_paragraph(_certificate(found))}
{figures}
<h2>What was done</h2><ul>{"".join(f"<li>{html.escape(s)}</li>" for s in _steps(found))}</ul>
<p class="quiet">{html.escape(_versions(found))}</p>
</body></html>
"""


def comparison_sentence(found: Found) -> str:
    """How the tuned model does beside the others, and whether that can be told from chance."""
    prefix = "Interrupted before the end: this is the best so far. " if found.interrupted else ""
    if not found.comparison:
        return f"{prefix}No rows were held out, so nothing is known about new ones."
    tuned, *others = found.comparison
    rows = found.about["rows"]["held out"]
    said = "; ".join(
        f"{row.label}: {number(abs(row.difference))} {'more' if row.difference > 0 else 'less'} "
        f"(± {number(row.standard_error)}{'' if row.apart else ', not told apart'})"
        for row in others
    )
    beside = f" Beside it, {said}." if said else ""
    return f"{prefix}On {rows} held-out rows the {found.loss} is {tuned.loss:.4g}.{beside}"


def difference(row: Compared) -> str:
    """How much larger a loss is than that of the tuned model, with its standard error."""
    sign = "+" if row.difference >= 0 else "-"
    return f"{sign}{number(abs(row.difference))} ± {number(row.standard_error)}"


def guard_sentence(found: Found) -> str:
    """Whether there are separate penalties, and why."""
    losses = found.about["guard_losses"]
    if found.about["arguments"]["penalty"] == "scalar":
        return f"One penalty for all features: {found.model.penalty_:.4g}."
    kind = found.about["arguments"]["penalty"]
    groups = count(len(set(found.groups)), kind)
    if losses is None:
        state = "separate" if found.model.separate_ else "one for all, so far"
        return f"Penalties of {groups}: {state}."
    best, worst = int(np.argmin(losses)), losses[0]
    if best == 0:
        return (
            f"One penalty for all features: {_one(found):.4g}. Separate ones for {groups} were "
            "tried and refused by the guard: on rows that took no part in learning them they made "
            f"the {found.loss} larger at every step ({worst:.4g} without)."
        )
    return (
        f"Separate penalties for {groups}, {np.min(found.model.penalty_):.2g} to "
        f"{np.max(found.model.penalty_):.2g}. The guard allowed {count(best, 'step')}: on rows "
        f"that took no part in learning them the {found.loss} fell from {worst:.4g} to "
        f"{losses[best]:.4g}, and not further."
    )


def off_sentence(found: Found) -> str:
    """Which features are off."""
    off = [name for name, gone in zip(found.features, found.off, strict=True) if gone]
    if not off:
        return f"None of {count(len(found.features), 'feature')} was switched off."
    return (
        f"Switched off (below {OFF:g} of the largest coefficient): {len(off)} of "
        f"{count(len(found.features), 'feature')}: {listing(off, 12)}."
    )


def _one(found: Found) -> float:
    return float(np.ravel(found.model.penalty_)[0])


def _certificate(found: Found) -> str:
    certificate = found.model.certificate_
    said = "" if certificate.ok else f" Not certified: {certificate.message}"
    return (
        f"At the end the gradient of the validation loss in the log penalties is "
        f"{certificate.gradient_norm:.1g}, known to a relative error of {certificate.error:.1g}."
        f"{said}"
    )


def _comparison(found: Found) -> str:
    if not found.comparison:
        return ""
    score = "accuracy" if found.classifies else "R²"
    rows = []
    for i, row in enumerate(found.comparison):
        gap = difference(row) if i else ""
        cells = [html.escape(row.label), f"{row.loss:.4g}", gap, f"{row.score:.3f}"]
        cells.append(number(row.seconds))
        style = ' class="tuned"' if i == 0 else ""
        rows.append(f"<tr{style}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = [
        "model",
        found.loss.replace("mean squared error", "squared error"),
        "difference",
        score,
    ]
    heads.append("seconds")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        '</table></div><p class="quiet">Difference: mean loss above that of the tuned model, ± the '
        "standard error over the held-out rows, each paired with itself. Seconds to fit; those of "
        "the tuned model include compiling.</p>"
    )


def _captions(found: Found) -> list[tuple[str, str, str]]:
    gone = int(found.off.sum())
    guard = (
        " Dashed: the loss of rows whose fold took no part in learning the penalties; the ring "
        "marks where the guard stops."
        if found.about["guard_losses"] is not None
        else ""
    )
    return [
        (
            "loss", "Validation loss",
            f"Cross-validated {found.loss} after each outer step, and below it the gradient in the "
            f"log penalties with its certified error as a bar.{guard}",
        ),
        (
            "penalties", "Path of the penalties",
            "Each penalty after each outer step; dotted: switched off.",
        ),
        (
            "features", "Features",
            f"The {min(24, len(found.features))} largest coefficients of {len(found.features)}; "
            f"{gone} are switched off.",
        ),
    ]  # fmt: skip


def _picture(light: bytes, dark: bytes, words: str) -> str:
    first, second = (f"data:image/png;base64,{base64.b64encode(p).decode()}" for p in (light, dark))
    return (
        f'<figure><picture><source srcset="{second}" media="(prefers-color-scheme: dark)">'
        f'<img src="{first}" alt="{html.escape(words)}"></picture>'
        f"<figcaption>{html.escape(words)}</figcaption></figure>"
    )


def _steps(found: Found) -> list[str]:
    arguments, rows, columns = (found.about[k] for k in ("arguments", "rows", "columns"))
    numbers = f"{len(columns['numbers'])} of numbers"
    if any(name.startswith("missingindicator_") for name in found.features):
        numbers += " (the median where missing, and a feature that says where)"
    words = f", {len(columns['words'])} of text (one feature for each value, missing being one, "
    words = f"{words}and one for all rare ones)" if columns["words"] else ""
    return [
        f"Rows: {rows['learnt from']} learnt from, {rows['held out']} held out; "
        f"{arguments['cv']} folds, seed {arguments['seed']}.",
        f"Columns: {numbers}{words}. "
        f"That makes {count(len(found.features), 'feature')}, each standardised: coefficients and "
        "penalties are those of standardised features.",
        *found.notes,
        f"{count(found.about['outer_steps'], 'outer step')} in all, the guard's included.",
    ]


def _paragraph(text: str, style: str = "") -> str:
    return f"<p{f' class={style}' if style else ''}>{html.escape(text)}</p>"


def _versions(found: Found) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.about["versions"].items())
