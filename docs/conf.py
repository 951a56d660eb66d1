"""The site: `make docs` builds it into docs/_build, without the network and without a warning."""

import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

import gallery  # noqa: E402
from docutils import nodes  # noqa: E402

import dargmin  # noqa: E402

project = "dargmin"
author = "the dargmin authors"
copyright = "the dargmin authors. Apache-2.0"
version = release = dargmin.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "public",
    "crosslinks",
    "unbroken",
]
exclude_patterns = ["_build", "figures"]
suppress_warnings = ["config.cache"]  # the gallery's functions cannot be pickled, and need not be

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = "mathml"

# Types are in the docstrings, with shapes; names in single backticks are links where they can be.
default_role = "literal"
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": "set_fit_request, set_score_request",  # scikit-learn makes them
}
numpydoc_show_class_members = False
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "reset_argv": gallery.arguments,
    "reset_modules": (gallery.fresh_start,),
    "image_scrapers": (gallery.figures,),
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
}

html_theme = "furo"
pygments_style, pygments_dark_style = "tango", "github-dark"
html_title = "dargmin"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0a5f8a", "color-brand-content": "#0a5f8a"},
    "dark_css_variables": {"color-brand-primary": "#6cc4f0", "color-brand-content": "#6cc4f0"},
}

# The measurements are pages of the site, too; on GitHub the same links lead to the files.
MEASURED = DOCS / "measurements"
shutil.rmtree(MEASURED, ignore_errors=True)
MEASURED.mkdir()
for file in (DOCS.parent / "benchmarks" / "results").iterdir():
    if file.suffix in (".md", ".png"):
        shutil.copy(file, MEASURED)


def _links_of_the_site(app, docname, source):
    """Links to files of the repository lead to the pages that show them."""
    here = "" if docname.startswith("measurements/") else "measurements/"
    text = re.sub(r"\]\(\.\./benchmarks/results/(\w+\.md)", rf"]({here}\1", source[0])
    source[0] = re.sub(r"\]\(\.\./examples/(\w+)\.py", r"](gallery/\1.rst", text)


def _plain_blocks(app, doctree):
    """Literal blocks that name no language are formulas and tables, in the examples as well."""
    for block in doctree.findall(nodes.literal_block):
        block.setdefault("language", "none")


def setup(app):
    app.connect("doctree-read", _plain_blocks)
    app.connect("source-read", _links_of_the_site)
