"""Numbers and names in tables stay on one line; so does a signature that stands there once."""

import re

from docutils import nodes
from sphinx import addnodes

NUMBER = re.compile(r"(\d[\d.]*(?:e[+-]\d+| ± [\d.]+ ?%?)+)")
NAME = re.compile(r"\w{1,24}")


def _tables(app, doctree):
    """`1.2e-03`, `0.99 ± 0.01` and `not_converged` are not broken at hyphens, spaces or letters."""
    for entry in doctree.findall(nodes.entry):
        for code in entry.findall(nodes.literal):
            if NAME.fullmatch(code.astext()):
                code["classes"].append("unbroken")
        for text in list(entry.findall(nodes.Text)):
            if not isinstance(text.parent, nodes.literal | nodes.inline | nodes.math):
                text.parent.replace(text, _with_numbers(text.astext()))


def _with_numbers(text):
    """Text nodes, and an inline node for each number with an exponent or an error."""
    parts = [part for part in NUMBER.split(text) if part]
    return [
        nodes.inline(part, part, classes=["unbroken"])
        if NUMBER.fullmatch(part)
        else nodes.Text(part)
        for part in parts
    ]


def _signatures(app, doctree):
    """A function with implementations for several types has one signature, not one for each."""
    for description in doctree.findall(addnodes.desc):
        seen = set()
        for child in list(description.children):
            if isinstance(child, addnodes.desc_signature):
                if child.astext() in seen:
                    description.remove(child)
                seen.add(child.astext())


def setup(app):
    app.connect("doctree-read", _tables)
    app.connect("doctree-read", _signatures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
