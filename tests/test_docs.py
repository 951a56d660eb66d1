"""The pages in docs: their Python runs, and their figures are there and can be drawn again."""

import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_the_snippets_run_and_the_figures_are_there(page, capsys):
    text, names = page.read_text(encoding="utf-8"), {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        exec(compile(block, f"{page.name} block {number}", "exec"), names)
    shown = capsys.readouterr().out.splitlines()
    assert set(shown[:1]) <= set(text.splitlines())  # the finding, as the page quotes it
    figures = set(re.findall(r"\]\(figures/([\w-]+)\.png\)", text))
    drawn = runpy.run_path(str(DOCS / "figures" / "make.py"))["FIGURES"]
    assert figures <= set(drawn)
    sizes = [(DOCS / "figures" / f"{name}.png").stat().st_size for name in figures]
    assert max(sizes, default=0) < 200_000
