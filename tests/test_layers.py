"""Imports point down only, none hides inside a function, and the core needs no extra."""

import ast
import graphlib
import importlib.util
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dargmin"
LAYERS = """
    types tree status cost show
    polynomials
    problems prox
    linear
    methods
    loop solution checks
    modes
    solve
    stationary descent kinks certificate
    theory
    strategy quantity rounds accuracy
    hypergradient sensitivity diagnosis diagnose trials candidates plan interop
    __init__
    bilevel
    estimators
    studies
    cli __main__
"""  # from low to high; `__init__` is the package itself, as users see it
RANK = {name: rank for rank, line in enumerate(LAYERS.split("\n")) for name in line.split()}
CORE = {"jax", "equinox", "lineax", "optimistix", "optax", "jaxtyping", "numpy"}


def imports(path, text):
    """Yield (module, hidden): what a file imports, and whether inside a function."""
    package = ".".join(["dargmin", *Path(path).parent.parts])
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    tree = ast.parse(text, path)
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((f"{base}.{alias.name}", id(node) in inner) for alias in node.names)


def complaints(sources):
    """List what is wrong with the imports of `sources`, a dict from path in the package to text."""
    names = {".".join(["dargmin", *Path(p).with_suffix("").parts]): p for p in sources}
    names |= {name.removesuffix(".__init__"): path for name, path in names.items()}
    layer = {path: Path(path).parts[0].removesuffix(".py") for path in sources}
    found = [
        f"{path} is in no layer: add it to LAYERS" for path in sources if layer[path] not in RANK
    ]
    if found:
        return found
    graph = {path: set() for path in sources}
    for path, text in sources.items():
        for name, hidden in imports(path, text):
            root, here = name.partition(".")[0], layer[path]
            # `from dargmin.tree import norm` names norm, which is no file: its file is tree
            target = names.get(name) or names.get(name.rpartition(".")[0])
            extra = root not in {"dargmin", *CORE, *sys.stdlib_module_names}
            if target:
                graph[path].add(target)
                if RANK[layer[target]] > RANK[here]:
                    found.append(f"{path} imports {name}, which points up")
            # the commands import what they run, so that --help is instant
            if hidden and not extra and here != "cli":
                found.append(f"{path} hides the import of {name} inside a function")
            if extra and not hidden and RANK[here] <= RANK["__init__"]:
                found.append(f"{path} imports {name}, which the core does not depend on")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("cycle: " + " -> ".join(error.args[1]))
    return found


def test_imports_point_down():
    files = {p.relative_to(PACKAGE).as_posix(): p for p in PACKAGE.rglob("*.py")}
    assert not complaints({name: path.read_text(encoding="utf-8") for name, path in files.items()})


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("tree.py", "from dargmin.modes import Implicit", "points up"),
        ("tree.py", "from dargmin import modes", "points up"),
        ("tree.py", "from . import modes", "points up"),
        ("linear/cg.py", "from ..modes.implicit import Implicit", "points up"),
        ("linear/cg.py", "import dargmin", "points up"),
        ("modes/implicit.py", "def f():\n    from .. import tree", "hides"),
        ("modes/implicit.py", "f = lambda: 0\ndef g():\n    import jax", "hides"),
        ("modes/implicit.py", "import matplotlib.pyplot as plt", "does not depend on"),
        ("tree.py", "from dargmin.types import Tree", "cycle"),
        ("tools.py", "import jax", "no layer"),
    ],
)
def test_a_wrong_import_is_found(path, text, complaint):
    sources = {
        "__init__.py": "from dargmin.modes import Implicit",
        "types.py": "from . import tree",
        "tree.py": "",
        "modes/__init__.py": "from .implicit import Implicit",
        "modes/implicit.py": "import jax\nfrom ..tree import norm",
        "cli.py": "def main():\n    from dargmin import modes",
    }
    assert complaints(sources) == []
    found = complaints(sources | {path: text})
    assert found and complaint in found[0], found


def test_an_extra_may_be_imported_where_it_is_used():
    text = "def plot():\n    import matplotlib.pyplot as plt"
    assert complaints({"diagnose.py": text, "studies/figure.py": "import matplotlib"}) == []
