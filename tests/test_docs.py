"""The pages in docs: their Python runs, their links lead somewhere, the reference is complete."""

import re
import runpy
from inspect import getdoc
from pathlib import Path
from urllib.parse import unquote

import pytest

import dargmin

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
QUICK = {"index", "certificates", "theory"}  # the others compile for longer than ten seconds


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[] if p.stem in QUICK else pytest.mark.slow, id=p.stem) for p in PAGES],
)
def test_the_snippets_run_and_the_figures_are_there(page, capsys):
    text, names = page.read_text(encoding="utf-8"), {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        exec(compile(block, f"{page.name} block {number}", "exec"), names)
    shown = capsys.readouterr().out.splitlines()
    assert set(shown[:1]) <= set(text.splitlines())  # the finding, as the page quotes it
    figures = set(re.findall(r"\]\(figures/([\w-]+)\.png\)", text))
    drawn = runpy.run_path(str(DOCS / "figures" / "make.py"))["FIGURES"] if figures else ()
    assert figures <= set(drawn)
    sizes = [(DOCS / "figures" / f"{name}.png").stat().st_size for name in figures]
    assert max(sizes, default=0) < 200_000


def test_every_relative_link_leads_to_a_file():
    built = {DOCS / "gallery" / "index.rst"}  # by `make docs`, as are the headings' anchors
    for page in [*PAGES, *(DOCS / "api").glob("*.md")]:
        links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
        targets = {(page.parent / unquote(link)).resolve() for link in links}
        assert {t for t in targets - built if not t.exists()} == set(), page.name


def test_every_public_name_has_a_docstring_and_a_place_in_the_reference():
    public = runpy.run_path(str(DOCS / "_ext" / "public.py"))
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    documented = re.findall(r"^\.\. auto\w+:: ([\w.]+)$", pages, re.MULTILINE)
    assert len(documented) == len(set(documented)) > 100
    assert public["undocumented"](documented) == []
    described = {name for name, thing in public["public_names"]() if (getdoc(thing) or "").strip()}
    assert {name for name, _ in public["public_names"]()} == described


def test_a_public_name_without_a_place_in_the_reference_is_found():
    public = runpy.run_path(str(DOCS / "_ext" / "public.py"))
    everything = {name for name, _ in public["public_names"]()}
    one_of_two = everything - {"dargmin.Implicit"}  # dargmin.modes.Implicit is the same
    neither = one_of_two - {"dargmin.modes.Implicit"}
    assert public["undocumented"](one_of_two) == []
    assert public["undocumented"](neither) == ["dargmin.Implicit", "dargmin.modes.Implicit"]


def test_every_status_is_explained():
    statuses = list(dargmin.Status._name_to_item)
    text = (DOCS / "faq.md").read_text(encoding="utf-8")
    assert len(statuses) >= 8
    assert [name for name in statuses if f"| `{name}` |" not in text] == []
