"""Code in the text that names something public becomes a link to its reference."""

import re

from docutils import nodes
from sphinx import addnodes

NAME = re.compile(r"(?:dargmin\.)?([A-Za-z_]\w*(?:\.\w+)*)(?:\(.*\))?", re.DOTALL)


def _link(app, doctree):
    """`certify`, `theory.predict(...)`, `dargmin.Implicit()`: the name before any bracket."""
    for literal in list(doctree.findall(nodes.literal)):
        match = NAME.fullmatch(literal.astext())
        linked = isinstance(literal.parent, nodes.reference | addnodes.pending_xref | nodes.title)
        if match is None or linked:
            continue
        target = f"dargmin.{match.group(1)}"
        reference = addnodes.pending_xref(
            "", literal.deepcopy(), refdomain="py", reftype="obj", reftarget=target,
            refexplicit=True, refwarn=False, refdoc=app.env.docname,
        )  # fmt: skip
        literal.replace_self(reference)


def _keep(app, env, node, contnode):
    """A name in backticks that is nothing public stays what it is."""
    return contnode if node.get("reftype") == "obj" else None


def setup(app):
    app.connect("doctree-read", _link)
    app.connect("missing-reference", _keep)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
