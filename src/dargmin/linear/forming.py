"""The matrix of a linear map, with no more arithmetic than its program needs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.linear.programs import evaluate
from dargmin.types import LinearMap, Point

CHUNK = 16
"""Columns of a block diagonal that are formed at once: more do not stay in the cache."""


def materialise(operator: LinearMap, like: Point) -> Float[Array, "d d"]:
    """The matrix of a linear map on pytrees like `like`, by d batched products.

    Where the map begins with a matrix, as v -> Xᵀ(s ∘ Xv) does, X times the identity is X: half of
    the work is left."""
    leaves = jax.tree.leaves(like)
    if len(leaves) == 1 and jnp.ndim(leaves[0]) == 1:
        return _columns(operator, like, _Units(leaves[0], blocked=False)).T
    flat, unravel = tree.ravel(like)
    columns = jax.vmap(lambda e: tree.ravel(operator(unravel(e)))[0])(
        jnp.eye(flat.size, dtype=flat.dtype)
    )
    return columns.T


def materialise_blocks(operator: LinearMap, like: Point, blocks: int) -> Float[Array, "B d d"]:
    """The blocks of a block diagonal map on pytrees like `like`, whose leaves stack its parts along
    the first axis: by d products, d the size of a block; or by none, where the map is a sum of
    stacked matrices and diagonals."""
    leaves = jax.tree.leaves(like)
    if wrong := [jnp.shape(u) for u in leaves if jnp.shape(u)[:1] != (blocks,)]:
        raise ValueError(
            f"blocks={blocks} needs that length of the first axis of every leaf of x, but x has a "
            f"leaf of shape {wrong[0]}."
        )
    split, join = in_blocks(like)
    flat = split(like)
    columns = _without_products(operator, like)
    if columns is None:
        unit = lambda e: split(operator(join(jnp.broadcast_to(e, flat.shape))))
        columns = jax.lax.map(unit, jnp.eye(flat.shape[1], dtype=flat.dtype), batch_size=CHUNK)
    return jnp.moveaxis(columns.reshape(flat.shape[1], *flat.shape), 0, -1)


def takes_no_products(operator: LinearMap, like: Point) -> bool:
    """Whether `materialise_blocks` finds the blocks in the program of the map."""
    return jax.eval_shape(lambda: _without_products(operator, like)) is not None


def _without_products(operator: LinearMap, like: Point) -> Float[Array, "count ..."] | None:
    """The columns of all blocks, or None if they take products."""
    leaves = jax.tree.leaves(like)
    if len(leaves) != 1:
        return None
    try:
        return _columns(operator, like, _Units(leaves[0], blocked=True))
    except _NeedsProducts:
        return None


def in_blocks(like: Point) -> tuple[Callable[[Point], Array], Callable[[Array], Point]]:
    """Pytrees whose leaves stack B parts along their first axis, as arrays (B, d), and back."""
    part = jax.tree.map(lambda u: u[0], like)
    return jax.vmap(lambda u: tree.ravel(u)[0]), jax.vmap(tree.ravel(part)[1])


class _NeedsProducts(Exception):
    """A matrix times columns that are not unit vectors."""


class _Columns:
    """The images of all unit vectors, stacked; or those themselves, times the entries of `scale`,
    an array in the shape of one."""

    def __init__(self, stacked: Any = None, scale: Any = None):
        self.stacked, self.scale = stacked, scale


class _Units:
    """The unit vectors in the shape of `like`, or, if `blocked`, the j-th of every block at
    once."""

    def __init__(self, like: Array, blocked: bool):
        self.shape, self.dtype, self.blocked = like.shape, like.dtype, blocked
        self.count = like.size // (like.shape[0] if blocked else 1)

    def stack(self, columns: _Columns) -> Array:
        if columns.scale is None:
            return columns.stacked
        shape = (1, *self.shape[1:]) if self.blocked else self.shape
        return jnp.eye(self.count, dtype=self.dtype).reshape(self.count, *shape) * columns.scale


def _columns(operator: LinearMap, like: Point, units: _Units) -> Float[Array, "count ..."]:
    """The images of the unit vectors; those of blocks only where they take no products."""
    program = jax.make_jaxpr(operator)(like)
    is_columns = lambda value: isinstance(value, _Columns)
    of = functools.partial(_image, units=units)
    begin = _Columns(scale=jnp.ones(units.shape, units.dtype))
    (image,) = evaluate(program, [begin], is_columns, of)
    if isinstance(image, _Columns):
        return units.stack(image)
    return jnp.zeros((units.count, *units.shape), units.dtype)


def _image(equation: Any, inputs: list[Any], run: Any, units: _Units) -> list[Any]:
    """The outputs of one equation that has columns among its inputs: they are columns too."""
    name, columns = equation.primitive.name, [isinstance(v, _Columns) for v in inputs]
    first = columns.index(True)
    if sum(columns) == 1 and inputs[first].scale is not None:
        if name in _SCALING and (name != "div" or first == 0):
            scaled = [v.scale if isinstance(v, _Columns) else v for v in inputs]
            return [_Columns(scale=run(*scaled)[0])]
        if name == "dot_general":
            rows = _times_units(equation, inputs, first, units)
            if rows is not None:
                return [_Columns(rows)]
    if units.blocked and name not in _CHEAP:
        raise _NeedsProducts
    axes = [0 if moves else None for moves in columns]
    values = [units.stack(v) if isinstance(v, _Columns) else v for v in inputs]
    return [_Columns(u) for u in jax.vmap(run, in_axes=axes)(*values)]


_SCALING = frozenset(["mul", "div", "neg"])
"""What makes multiples of unit vectors of unit vectors."""

_CHEAP = _SCALING | frozenset(
    ["add", "add_any", "sub", "convert_element_type", "copy", "transpose", "reshape", "squeeze"]
)
"""What may be done to columns without a product."""


def _times_units(equation: Any, inputs: list[Any], mine: int, units: _Units) -> Array | None:
    """A matrix times the unit vectors, which is the matrix, or one for each block; or None if this
    is no such product."""
    contracted, batch = equation.params["dimension_numbers"]
    if len(contracted[mine]) != 1:
        return None
    (axis,), blocks, other = contracted[mine], tuple(batch[mine]), 1 - mine
    rest = [i for i in range(len(units.shape)) if i != axis and i not in blocks]
    one_each = units.shape[axis] == units.count and all(units.shape[i] == 1 for i in rest)
    if not one_each or (units.blocked and axis == 0):
        return None
    matrix, scale = inputs[other], jnp.transpose(inputs[mine].scale, (axis, *blocks, *rest))
    first = (contracted[other][0], *batch[other])
    order = (*first, *(i for i in range(matrix.ndim) if i not in first))
    image = equation.outvars[0].aval
    matrix = jnp.transpose(matrix, order).astype(image.dtype)
    scale = scale.reshape(*scale.shape[: len(first)], *[1] * (matrix.ndim - len(first)))
    return (scale.astype(image.dtype) * matrix).reshape(units.count, *image.shape)
