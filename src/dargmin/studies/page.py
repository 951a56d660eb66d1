"""The report: one HTML page that needs no network, pictures of its figures, and tables."""

import html
import json
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import pandas as pd
import vl_convert as vlc

from dargmin import __version__
from dargmin.studies.runner import HOLDS, LIMITS, Store, Study, Verdict

__all__ = ["Finding", "find", "verdict_table", "write_report"]

VEGA_LITE = "6.4"  # what Altair 6.3 writes
PICTURE_WIDTH = 680
MARKS = {HOLDS: ("✓", "holds"), LIMITS: ("≈", "limits")}  # else ("✗", "missed")


class Finding(NamedTuple):
    """What a study found."""

    study: Study
    frame: pd.DataFrame
    verdict: Verdict
    specification: dict[str, Any]
    seconds: float


def find(study: Study, store: Store, quick: bool) -> Finding:
    """Read a study's results; its verdict, and its figure as a Vega-Lite specification."""
    frame = store.read(study, quick)
    with alt.data_transformers.enable("default", max_rows=None):
        specification = study.figure(frame).to_dict()
    specification.pop("config", None)  # the page and the pictures bring their own
    return Finding(study, frame, study.verdict(frame), specification, store.seconds(study, quick))


def write_report(store: Store, studies: list[Study], missing: list[str], quick: bool) -> list[Path]:
    """Write report.html, results.md and, for each study, a CSV table, a PNG and an SVG.

    Parameters
    ----------
    store : Store
        Where the results are; what is written goes to the same directory.
    studies : list of Study
        All of their tasks must have been run.
    missing : list of str
        Names of the studies that have not, which the page says.
    quick : bool
        Whether the results are those of small settings, which the page says, too."""
    findings = [find(study, store, quick) for study in studies]
    note = _note(findings, missing, quick)
    tables, figures = store.directory / "tables", store.directory / "figures"
    for directory in (tables, figures):
        directory.mkdir(parents=True, exist_ok=True)
    page, results = store.directory / "report.html", store.directory / "results.md"
    page.write_text(_page(findings, note), encoding="utf-8")
    results.write_text(verdict_table(findings, note), encoding="utf-8")
    written = [page, results, store.directory / "verdicts.csv"]
    _verdicts(findings).to_csv(written[-1], index=False)
    for found in findings:
        name, picture = found.study.name, json.dumps(_picture(found.specification))
        written += [tables / f"{name}.csv", figures / f"{name}.png", figures / f"{name}.svg"]
        found.frame.to_csv(written[-3], index=False)
        written[-2].write_bytes(vlc.vegalite_to_png(picture, vl_version=VEGA_LITE, scale=2))
        written[-1].write_text(vlc.vegalite_to_svg(picture, vl_version=VEGA_LITE), encoding="utf-8")
    return written


def verdict_table(findings: list[Finding], note: str) -> str:
    """The verdicts as a Markdown page: a table to look over, and a section for each study."""
    lines = ["# What the studies found", "", f"`dargmin report` writes this page. {note}", ""]
    lines += ["| study | it asks | the claim |", "| --- | --- | --- |"]
    for found in findings:
        study = found.study
        lines.append(f"| [{study.name}](#{study.name}) | {study.title} | {found.verdict.status} |")
    for found in findings:
        study, verdict = found.study, found.verdict
        numbers = "; ".join(f"{name}: {value:.4g}" for name, value in verdict.numbers.items())
        lines += [
            "", f"## {study.name}",
            "", f"*{study.claim}* ({study.source})",
            "", f"**{verdict.status.capitalize()}.** {verdict.sentence}",
            "", f"Numbers: {numbers}.",
            "", f"Settings: {study.settings}",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _verdicts(findings: list[Finding]) -> pd.DataFrame:
    rows = [
        {"study": f.study.name, "verdict": f.verdict.status, "number": name, "value": value}
        for f in findings
        for name, value in f.verdict.numbers.items()
    ]
    return pd.DataFrame(rows)


def _note(findings: list[Finding], missing: list[str], quick: bool) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "numpy"))
    minutes = sum(found.seconds for found in findings) / 60
    note = (
        f"{len(findings)} studies, {minutes:.0f} minutes of computation in all; dargmin "
        f"{__version__}, {versions}, float64."
    )
    if quick:
        note += " These are the small settings of --quick: too few cases to decide anything."
    if missing:
        note += f" Not run yet: {', '.join(missing)}."
    return note


def _picture(specification: dict[str, Any]) -> dict[str, Any]:
    """With a width in numbers, a light theme, and the menus at what they show first."""
    config = json.loads(_resource("themes.json"))["light"] | {"background": "white"}
    shown = ", ".join(
        f"{p['bind'].get('name', '').strip()}: {p['value']}"
        for p in specification.get("params", [])
        if isinstance(p.get("bind"), dict) and "value" in p
    )
    title = {"title": {"text": shown, "anchor": "start", "fontWeight": "normal", "fontSize": 12}}
    return {
        **specification, "width": PICTURE_WIDTH, "config": config,
        **(title if shown else {}),
    }  # fmt: skip


def _page(findings: list[Finding], note: str) -> str:
    """The page; whatever it needs stands in it."""
    library = vlc.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    specifications = {found.study.name: found.specification for found in findings}
    replacements = {
        "{{style}}": _resource("page.css"),
        "{{note}}": html.escape(note),
        "{{verdicts}}": "\n".join(_row(found) for found in findings),
        "{{studies}}": "\n".join(_section(found) for found in findings),
        "{{library}}": library.replace("</script", "<\\/script"),
        "{{themes}}": _resource("themes.json"),
        "{{specifications}}": _embedded(specifications),
        "{{script}}": _resource("page.js"),
    }
    page = _resource("page.html")
    for place, text in replacements.items():
        page = page.replace(place, text, 1)
    return page


def _row(found: Finding) -> str:
    study, verdict = found.study, found.verdict
    return (
        f'<tr><td><a href="#{study.name}">{html.escape(study.title)}</a></td>'
        f"<td>{_badge(verdict)}</td><td>{html.escape(verdict.sentence)}</td></tr>"
    )


def _badge(verdict: Verdict) -> str:
    mark, kind = MARKS.get(verdict.status, ("✗", "missed"))
    return f'<span class="badge {kind}">{mark} {verdict.status}</span>'


def _section(found: Finding) -> str:
    study, verdict = found.study, found.verdict
    text = {name: html.escape(getattr(study, name)) for name in (
        "name", "title", "claim", "source", "settings", "description"
    )}  # fmt: skip
    numbers = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{value:.4g}</td></tr>"
        for name, value in verdict.numbers.items()
    )
    return f"""<section id="{text["name"]}">
<h2>{text["title"]}</h2>
<p class="claim"><b>Claim.</b> {text["claim"]} <span class="source">({text["source"]})</span></p>
<p>{_badge(verdict)} {html.escape(verdict.sentence)}</p>
<figure><div class="chart" data-study="{text["name"]}" role="img"
aria-label="{text["description"]}"></div>
<figcaption>{text["description"]}</figcaption></figure>
<details><summary>Numbers and settings</summary>
<table class="numbers">{numbers}</table>
<p>{text["settings"]} {len(found.frame)} rows in <code>tables/{text["name"]}.csv</code>;
{found.seconds:.0f} s of computation; <code>dargmin study run {text["name"]}</code>.</p></details>
</section>"""


def _embedded(value: Any) -> str:
    """JSON that can stand in a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


def _resource(name: str) -> str:
    return resources.files("dargmin.studies").joinpath("web", name).read_text(encoding="utf-8")
