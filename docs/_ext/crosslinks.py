"""Code in the text that names something public becomes a link to its reference."""

import re

from docutils import nodes
from sphinx import addnodes
from sphinx.util.nodes import make_refnode

NAME = re.compile(r"(?:dargmin\.)?([A-Za-z_]\w*(?:\.\w+)*)(?:\(.*\))?", re.DOTALL)


def _link(app, doctree):
    """`certify`, `theory.predict(...)`, `dargmin.Implicit()`: the name before any bracket."""
    foreign = {id(node) for node in _of_other_libraries(doctree)}
    for literal in list(doctree.findall(nodes.literal)):
        match = NAME.fullmatch(literal.astext())
        linked = isinstance(literal.parent, nodes.reference | addnodes.pending_xref | nodes.title)
        if match is None or linked or id(literal) in foreign:
            continue
        target = f"dargmin.{match.group(1)}"
        reference = addnodes.pending_xref(
            "", literal.deepcopy(), refdomain="py", reftype="obj", reftarget=target,
            refexplicit=True, refwarn=False, refdoc=app.env.docname,
        )  # fmt: skip
        literal.replace_self(reference)


def _of_other_libraries(doctree):
    """The code in the first column of tables that is headed by the name of another library."""
    for table in doctree.findall(nodes.table):
        rows = list(table.findall(nodes.row))
        if rows and rows[0][0].astext() == "jaxopt":
            for row in rows:
                yield from row[0].findall(nodes.literal)


def _find(app, env, node, contnode):
    """`budget_step_size` without its module, where there is only one; other names stay plain."""
    if node.get("reftype") != "obj":
        return None
    objects, name = env.get_domain("py").objects, node["reftarget"].removeprefix("dargmin.")
    telling = "." not in name and ("_" in name.strip("_") or name[:1].isupper())
    found = [full for full in objects if full.endswith(f".{name}") and not objects[full].aliased]
    kinds = ("function", "class", "exception")
    if not telling or len(found) != 1 or objects[found[0]].objtype not in kinds:
        return contnode
    entry = objects[found[0]]
    return make_refnode(
        app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found[0]
    )


def setup(app):
    app.connect("doctree-read", _link)
    app.connect("missing-reference", _find)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
