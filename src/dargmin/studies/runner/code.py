"""The version of the code that a function uses: a hash that moves when a result could."""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dargmin

__all__ = ["fingerprint", "task_key"]

LIBRARIES = ("jax", "jaxlib", "numpy", "scipy")
ROOT = Path(dargmin.__file__).parent
RUNNER = Path(__file__).parent  # moves no number


def task_key(study: str, parameters: dict[str, Any], run: Callable) -> str:
    """A hash of the study's name, the task's parameters and the code that it runs."""
    text = json.dumps([study, parameters, fingerprint(run)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@functools.cache
def fingerprint(function: Callable) -> str:
    """Hash the definitions of its module that `function` reaches, and all of dargmin they import.

    Docstrings, comments, layout, and what the function does not reach (the figure of a study, its
    verdict) do not count; the versions of JAX, NumPy and SciPy do."""
    module = inspect.getmodule(function)
    assert module is not None and module.__file__ is not None
    definitions, imports = _reached(Path(module.__file__), function.__name__)
    parts = [ast.dump(node) for node in definitions]
    parts += [_file_hash(path) for path in sorted(_closure(imports))]
    parts += [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _reached(path: Path, name: str) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """The top-level definitions that `name` reaches, and the imports among them, in file order."""
    statements = _parse(path).body
    bound = {name: node for node in statements for name in _names_bound(node)}
    reached: list[ast.stmt] = []
    waiting = [name]
    while waiting:
        node = bound.pop(waiting.pop(), None)
        if node is None or node in reached:
            continue
        reached.append(node)
        waiting += [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)]
    reached.sort(key=lambda node: node.lineno)
    imports: list[ast.stmt] = [
        node for node in reached if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return [node for node in reached if node not in imports], imports


def _names_bound(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            yield node.name
        case ast.Import() | ast.ImportFrom():
            yield from ((a.asname or a.name).partition(".")[0] for a in node.names)
        case _:
            stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
            yield from (n.id for n in stored if isinstance(n.ctx, ast.Store))


def _closure(imports: list[ast.stmt]) -> set[Path]:
    """The files of dargmin that these statements import, and those that these import, and so on."""
    found: set[Path] = set()
    waiting = [path for node in imports for path in _files(node)]
    while waiting:
        path = waiting.pop()
        if path not in found and RUNNER not in path.parents:
            found.add(path)
            waiting += _imported(path)
    return found


@functools.cache
def _imported(path: Path) -> tuple[Path, ...]:
    return tuple(other for node in ast.walk(_parse(path)) for other in _files(node))


def _files(node: ast.AST) -> Iterator[Path]:
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    for name in names:
        if name.partition(".")[0] == "dargmin":
            base = ROOT.joinpath(*name.split(".")[1:])
            yield from (p for p in (base / "__init__.py", base.with_suffix(".py")) if p.is_file())


@functools.cache
def _file_hash(path: Path) -> str:
    return hashlib.sha256(ast.dump(_parse(path)).encode()).hexdigest()


@functools.cache
def _parse(path: Path) -> ast.Module:
    """The syntax tree without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return tree
