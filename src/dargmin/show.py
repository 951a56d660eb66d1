"""How results print: their numbers, in a few lines; under `jit` the shapes that stand for them."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from dargmin.status import Status

SMALL = 8
"""Arrays of up to that many numbers are printed in full, larger ones as shape and norm."""


def lines(title: str, parts: dict[str, Any]) -> str:
    """A title, and a line for each part: numbers, arrays and pytrees of them, or text as it is."""
    width = max(map(len, parts))
    shown = {name: p if isinstance(p, str) else numbers(p) for name, p in parts.items()}
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in shown.items())])


def numbers(tree: Any) -> str:
    """Every leaf of a pytree: its numbers if they are few, else its shape and norm."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        return str(tree)
    named = [(jax.tree_util.keystr(path), _leaf(leaf)) for path, leaf in leaves[:SMALL]]
    more = f"; and {len(leaves) - SMALL} more leaves" if len(leaves) > SMALL else ""
    return "; ".join(f"{path} {text}".strip() for path, text in named) + more


def in_words(status: Any) -> str:
    """The word ok, or the first sentence on each failure, and in how many lanes of a batch."""
    index = getattr(status, "_value", status)
    if not _known(index):
        return "not known before run time"
    values = np.asarray(index)
    if values.dtype == object or values.size == 0:
        return str(status)
    failed = [int(value) for value in np.unique(values) if value != 0]
    if not failed:
        return "ok"
    texts = [Status._index_to_message[value].split(". ")[0].rstrip(".") for value in failed]
    counts = [int(np.sum(values == value)) for value in failed]
    if values.ndim == 0:
        return texts[0]
    of = f" of {values.size}: "
    return "; ".join(f"{n}{of}{text}" for n, text in zip(counts, texts, strict=True))


def spent(cost: Any) -> str:
    """The counts of a `Cost`, in words."""
    if cost is None:
        return "not counted"
    names = ("gradients", "products", "factorisations")
    return ", ".join(f"{numbers(getattr(cost, name))} {name}" for name in names)


def _leaf(leaf: Any) -> str:
    if not _known(leaf):
        shape = ",".join(map(str, getattr(leaf, "shape", ())))
        return f"{getattr(leaf, 'dtype', type(leaf).__name__)}[{shape}]"
    values = np.asarray(leaf)
    if not np.issubdtype(values.dtype, np.number):
        return str(leaf)
    if values.ndim == 0:
        return f"{values[()]:.6g}" if np.issubdtype(values.dtype, np.floating) else f"{values}"
    if values.size <= SMALL:
        return np.array2string(values, precision=4, separator=", ").replace("\n", "")
    norm = np.linalg.norm(values.astype(np.result_type(values.dtype, np.float32)).ravel())
    return f"shape {values.shape}, norm {norm:.4g}"


def _known(leaf: Any) -> bool:
    """Whether the numbers are there to be read."""
    if isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
        return False
    there = not isinstance(leaf, jax.Array) or (leaf.is_fully_addressable and not leaf.is_deleted())
    return there
