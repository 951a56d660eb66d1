"""What is public, and that every public name is in the API reference: the build fails if not."""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import dargmin

# Packages name what is public in `__all__`. Of the program, `dargmin.studies`, only these are.
MODULES = (
    "dargmin.interop.optimistix",
    "dargmin.studies.curse",
    "dargmin.studies.data",
    "dargmin.studies.results",
)
PRIVATE = "dargmin.studies"


def public_modules() -> Iterator[ModuleType]:
    """The package, its subpackages that have an `__all__`, and MODULES."""
    yield dargmin
    for info in pkgutil.walk_packages(dargmin.__path__, "dargmin."):
        if info.name in MODULES or (info.ispkg and not info.name.startswith(PRIVATE)):
            yield importlib.import_module(info.name)


def public_names() -> Iterator[tuple[str, Any]]:
    """(dotted name, object) for all of them, and for the modules themselves."""
    for module in public_modules():
        yield module.__name__, module
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


def resolve(name: str) -> Any:
    """The object of a dotted name."""
    parent, _, last = name.rpartition(".")
    thing = getattr(resolve(parent), last, None) if parent else None
    return importlib.import_module(name) if thing is None else thing


def undocumented(documented: Iterable[str]) -> list[str]:
    """The public names whose object has none of the documented names.

    An object is documented once, under the name that users write: `dargmin.Implicit` stands for
    `dargmin.modes.Implicit` as well."""
    known = {id(resolve(name)) for name in documented}
    return [name for name, thing in public_names() if id(thing) not in known]


def _check(app, env):
    from sphinx.util import logging

    objects = env.get_domain("py").objects
    kinds = ("module", "class", "exception", "function", "data")
    written = [(name, entry) for name, entry in objects.items() if not entry.aliased]
    documented = [name for name, entry in written if entry.objtype in kinds]
    for name in undocumented(documented):
        logging.getLogger(__name__).warning("%s is public, and not in the API reference", name)


SPANS = re.compile(r"``.*?``|`[^`]*`|(?<!\S)\*[a-z]+(?: [a-z]+)*\*(?![\w*])")  # code, emphasis


def _escaped(text: str) -> str:
    """Text with *, | and a trailing _ as what they are: docstrings are mathematics, not markup."""
    text = re.sub(r"([*|])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)


def _plain(app, what, name, obj, options, lines):
    """Escape what reStructuredText would take for markup, outside code and emphasised words."""
    text, code = "\n".join(lines), False
    for i, line in enumerate(text.split("\n")):
        indented = line.startswith(" ") or not line.strip()
        code = code and indented
        if not code and not line.lstrip().startswith(">>>"):
            parts, spans = SPANS.split(line), SPANS.findall(line)
            spans.append("")
            lines[i] = "".join(_escaped(p) + s for p, s in zip(parts, spans, strict=True))
        code = code or line.endswith("::")


def setup(app):
    app.connect("env-check-consistency", _check)
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before numpydoc
    return {"parallel_read_safe": True, "parallel_write_safe": True}
