"""Vectors that are pytrees: inner products, norms, sums.

Scalars are cast to the dtype of each leaf, so that a float64 step size moves a float32 iterate
without promoting it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

__all__ = [
    "add",
    "all_finite",
    "as_arrays",
    "as_point",
    "axpy",
    "dot",
    "dtype",
    "norm",
    "random_like",
    "scale",
    "size",
    "stop_gradient",
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
    return jtu.tree_map(jnp.zeros_like, x)


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


def size(x: PyTree) -> int:
    """The number d of coordinates of x."""
    return sum(leaf.size for leaf in jtu.tree_leaves(x))


def dot(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """⟨x, y⟩."""
    kind = dtype(x)
    products = jtu.tree_map(lambda u, v: jnp.vdot(u, v).astype(kind), x, y)
    return sum(jtu.tree_leaves(products), start=jnp.zeros((), kind))


def norm(x: PyTree) -> Float[Array, ""]:
    """‖x‖₂, scaled so that its squares neither overflow nor underflow."""
    kind = dtype(x)
    leaves = [leaf for leaf in jtu.tree_leaves(x) if leaf.size]
    if not leaves:
        return jnp.zeros((), kind)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)).astype(kind) for leaf in leaves]))
    usable = (largest > 0) & jnp.isfinite(largest)
    unit = jnp.where(usable, largest, jnp.ones((), kind))
    squares = [jnp.sum(jnp.square(leaf.astype(kind) / unit)) for leaf in leaves]
    return unit * jnp.sqrt(jnp.sum(jnp.stack(squares)))


def all_finite(x: PyTree) -> Bool[Array, ""]:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jtu.tree_leaves(eqx.filter(x, eqx.is_array))]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.asarray(True)


def stop_gradient(tree: Any) -> Any:
    """`tree` with every array held constant under differentiation."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


def random_like(x: PyTree, seed: int = 0) -> PyTree:
    """A fixed standard normal pytree like x: the same for the same shapes."""
    leaves, treedef = jtu.tree_flatten(x)
    keys = jax.random.split(jax.random.key(seed), max(len(leaves), 1))
    draws = [jax.random.normal(k, u.shape, u.dtype) for k, u in zip(keys, leaves, strict=False)]
    return jtu.tree_unflatten(treedef, draws)


