"""Vectors that are pytrees: inner products, norms, sums.

Scalars are cast to the dtype of each leaf, so that a float64 step size moves a float32 iterate
without promoting it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

__all__ = [
    "add",
    "all_finite",
    "as_arrays",
    "as_point",
    "axpy",
    "dot",
    "dtype",
    "fill",
    "in_dtypes_of",
    "in_precision_of",
    "max_norm",
    "norm",
    "random_like",
    "ravel",
    "scale",
    "size",
    "stop_gradient",
    "strong",
    "sub",
    "where",
    "zeros_like",
]


def as_arrays(tree: Any) -> Any:
    """Turn the Python floats and NumPy arrays among the leaves into JAX arrays."""

    def convert(leaf: Any) -> Any:
        return jnp.asarray(leaf) if isinstance(leaf, float | np.ndarray | np.generic) else leaf

    return jtu.tree_map(convert, tree)


def as_point(x: Any, name: str = "x0") -> Any:
    """Turn x into a pytree of floating-point arrays.

    Raises
    ------
    ValueError
        If a leaf is not a floating-point number or array."""
    x = as_arrays(x)
    for path, leaf in jtu.tree_leaves_with_path(x):
        if not eqx.is_inexact_array(leaf) or jnp.iscomplexobj(leaf):
            kind = leaf.dtype if eqx.is_array(leaf) else type(leaf).__name__
            raise ValueError(
                f"{name}{jtu.keystr(path)} is {kind}, but every leaf of {name} must be a real "
                "floating-point array, because it is differentiated. Convert it with "
                "jnp.asarray(..., float), or move it into theta or into the problem's data."
            )
    return x


def zeros_like(x: PyTree) -> PyTree:
    """0, with the shapes and dtypes of x."""
    return jtu.tree_map(jnp.zeros_like, x)


def fill(tangent: PyTree, x: PyTree) -> PyTree:
    """The tangent of x, with zeros in place of None where nothing moves."""
    return jtu.tree_map(lambda u, du: jnp.zeros_like(u) if du is None else du, x, tangent)


def add(x: PyTree, y: PyTree) -> PyTree:
    """x + y."""
    return jtu.tree_map(jnp.add, x, y)


def sub(x: PyTree, y: PyTree) -> PyTree:
    """x - y."""
    return jtu.tree_map(jnp.subtract, x, y)


def scale(a: ArrayLike, x: PyTree) -> PyTree:
    """a x."""
    return jtu.tree_map(lambda leaf: jnp.asarray(a, leaf.dtype) * leaf, x)


def axpy(a: ArrayLike, x: PyTree, y: PyTree) -> PyTree:
    """a x + y."""
    return jtu.tree_map(lambda u, v: jnp.asarray(a, u.dtype) * u + v, x, y)


def where(condition: Bool[Array, ""], x: PyTree, y: PyTree) -> PyTree:
    """x where `condition` holds, else y, leaf by leaf (leaves that are no arrays come from x)."""
    dynamic, static = eqx.partition(x, eqx.is_array)
    other = eqx.filter(y, eqx.is_array)
    chosen = jtu.tree_map(lambda u, v: jnp.where(condition, u, v), dynamic, other)
    return eqx.combine(chosen, static)


def dtype(x: PyTree) -> np.dtype:
    """The dtype in which inner products of x are taken."""
    leaves = jtu.tree_leaves(x)
    if not leaves:
        return jnp.result_type(float)
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*leaves)


def in_precision_of(x: PyTree, other: Any) -> Any:
    """`other` with its float32 and float64 arrays in the precision of x, which decides; as it is
    if x has no one precision of these."""
    kinds = {leaf.dtype for leaf in jtu.tree_leaves(x)}
    precisions = {jnp.dtype(jnp.float32), jnp.dtype(jnp.float64)}
    if len(kinds) != 1 or not kinds <= precisions:
        return other
    (kind,) = kinds
    convert = lambda leaf: eqx.is_array(leaf) and leaf.dtype in precisions
    return jtu.tree_map(lambda leaf: leaf.astype(kind) if convert(leaf) else leaf, other)


def in_dtypes_of(like: PyTree, x: PyTree) -> PyTree:
    """x in the dtypes of the floating leaves of `like`."""
    like = eqx.filter(like, eqx.is_inexact_array)
    return jtu.tree_map(lambda target, leaf: leaf.astype(target.dtype), like, x)


def size(x: PyTree) -> int:
    """The number d of coordinates of x."""
    return sum(leaf.size for leaf in jtu.tree_leaves(x))


def ravel(x: PyTree) -> tuple[Float[Array, " d"], Callable[[Float[Array, " d"]], PyTree]]:
    """The leaves of x as one vector, and the way back."""
    with jax.numpy_dtype_promotion("standard"):
        return ravel_pytree(x)


def dot(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """⟨x, y⟩."""
    kind = dtype(x)
    products = jtu.tree_map(lambda u, v: jnp.vdot(u, v).astype(kind), x, y)
    return sum(jtu.tree_leaves(products), start=jnp.zeros((), kind))


def norm(x: PyTree) -> Float[Array, ""]:
    """‖x‖₂."""
    return jnp.sqrt(dot(x, x))


def max_norm(x: PyTree) -> Float[Array, ""]:
    """‖x‖∞."""
    kind = dtype(x)
    largest = [jnp.max(jnp.abs(u)).astype(kind) for u in jtu.tree_leaves(x) if u.size]
    return jnp.max(jnp.stack(largest)) if largest else jnp.zeros((), kind)


def all_finite(x: PyTree) -> Bool[Array, ""]:
    """Whether no array of x holds NaN or infinity."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jtu.tree_leaves(eqx.filter(x, eqx.is_array))]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.asarray(True)


def stop_gradient(tree: Any) -> Any:
    """`tree` with every array held constant under differentiation."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


def strong(tree: Any) -> Any:
    """Numbers and arrays as arrays with their weak types dropped, so that a carry keeps its type
    through a loop; random keys as they are."""

    def convert(leaf: Any) -> Any:
        kind = jnp.result_type(leaf)
        if jnp.issubdtype(kind, jax.dtypes.prng_key):
            return leaf
        return jax.lax.convert_element_type(leaf, kind)

    return jtu.tree_map(convert, tree)


def _uint32(number: Any) -> Any:
    return jnp.uint32(number) if isinstance(number, int) else number.astype(jnp.uint32)


def random_like(x: PyTree, seed: Any = 0) -> PyTree:
    """A fixed pseudo-random pytree like x, uniform in [-1, 1]: the same for the same shapes.

    Indices through an integer hash (the finaliser of MurmurHash3): a generator of random numbers
    would take longer to compile than what it is used for."""
    leaves, treedef = jtu.tree_flatten(x)
    draws, offset = [], 0
    for leaf in leaves:
        first = _uint32(offset) + _uint32(0x9E3779B9) * (_uint32(seed) + _uint32(1))
        h = jax.lax.iota(jnp.uint32, leaf.size) + first
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        draws.append((h.astype(leaf.dtype) / 2.0**31 - 1).reshape(leaf.shape))
        offset += leaf.size
    return jtu.tree_unflatten(treedef, draws)
