"""The report: whole without a network, and looked at in a browser where there is one."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_studies import double, study

from dargmin.studies.catalogue import STUDIES
from dargmin.studies.charts import curves, heat_map, points
from dargmin.studies.page import write_report
from dargmin.studies.runner import Store, run_tasks

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
rng = np.random.default_rng(0)
FRAME = pd.DataFrame({
    "t": np.tile(np.arange(1, 9), 6), "error": 10.0 ** rng.uniform(-6, 2, 48),
    "method": np.repeat(["one", "two"], 24), "log10_condition": np.tile(np.repeat([1, 2, 3], 8), 2),
    "kind": np.tile(["measured", "predicted"], 24), "best": 3,
})  # fmt: skip


def figures():
    named = dict(x="t", y="error", series="method", titles=("t", "error"))
    controls = {"log10_condition": 2}
    yield curves(FRAME, **named, dash="kind", controls=controls, limits=(1e-4, 10.0))
    yield points(FRAME, **named, shape="kind", controls={"kind": "measured"}, join=True, rule=1.0)
    yield points(FRAME, **named | {"x": "error"}, diagonal=True)
    yield heat_map(
        FRAME, x="t", y="log10_condition", value="error", titles=("t", "condition", "error"),
        controls={"method": "one"}, lines={"best": "circle"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of toy studies, one for each kind of figure, with a claim that is hostile to HTML."""
    from dataclasses import replace

    store, studies = Store(tmp_path_factory.mktemp("report")), []
    for i, chart in enumerate(figures()):
        toy = study(f"toy-{i}", double, [{"x": i}])
        toy = replace(toy, claim="a < b & </script> 'c'", figure=lambda frame, chart=chart: chart)
        run_tasks(store.missing(toy, False), store, jobs=0)
        studies.append(toy)
    return store.directory, write_report(store, studies, ["another"], False)


def test_the_report_is_a_page_pictures_tables_and_verdicts(report):
    directory, files = report
    assert all(path.stat().st_size > 0 for path in files)
    names = {path.relative_to(directory).as_posix() for path in files}
    assert {"report.html", "results.md", "verdicts.csv", "tables/toy-0.csv"} <= names
    assert (directory / "figures/toy-1.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (directory / "figures/toy-1.svg").read_text()
    assert pd.read_csv(directory / "tables/toy-2.csv")["double"].tolist() == [4.0, 4.0]
    markdown = (directory / "results.md").read_text()
    assert "**Holds.** 2 rows." in markdown and "Not run yet: another." in markdown


def test_the_page_needs_nothing_from_elsewhere_and_is_small(report):
    page = (report[0] / "report.html").read_text()
    assert len(page) < 10e6
    outside = page[: page.index("<script>")]
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", outside)
    assert "a &lt; b &amp; &lt;/script&gt;" in outside
    assert page.count("</script>") == 2


def test_every_study_says_what_it_is():
    assert len(STUDIES) == 14
    for name, one in STUDIES.items():
        assert name == one.name and re.fullmatch(r"[a-z][a-z-]*", name)
        texts = (one.title, one.claim, one.source, one.settings, one.description)
        assert all(len(text) > 3 for text in texts)
        for quick in (True, False):
            tasks = one.tasks(quick)
            assert len({json.dumps(task, sort_keys=True) for task in tasks}) == len(tasks) > 0


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (apt: chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.slow
def test_a_browser_shows_every_figure_in_both_themes_and_on_a_phone(browser, report, tmp_path):
    look(browser, report[0] / "report.html", tmp_path, 4)


def look(browser, path: Path, shots: Path, figures: int):
    """Open the page, move a slider, switch the theme, narrow it; nothing may be fetched or fail."""
    complaints, requests = [], []
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="light")
    page.on("console", lambda m: m.type in ("error", "warning") and complaints.append(m.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    drawn = f"document.querySelectorAll('.chart[data-drawn={{}}] svg').length === {figures}"
    page.wait_for_function(drawn.format("light"), timeout=60_000)
    page.screenshot(path=shots / "light.png", full_page=True)
    marks = page.locator(
        ".chart svg .mark-line path, .chart svg .mark-symbol path, .mark-rect path"
    )
    assert marks.count() >= figures
    slider = page.locator("input[type=range]").first
    before = page.locator(".chart", has=slider).first.locator("svg").inner_html()
    slider.focus()
    slider.press("ArrowRight")
    page.wait_for_timeout(300)
    assert page.locator(".chart", has=slider).first.locator("svg").inner_html() != before
    chosen = slider.input_value()
    page.click("#theme")
    page.wait_for_function(drawn.format("dark"), timeout=60_000)
    assert page.locator("input[type=range]").first.input_value() == chosen
    page.screenshot(path=shots / "dark.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    page.close()
