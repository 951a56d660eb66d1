"""The matrix of a linear map, with no more arithmetic than its program needs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.linear.programs import evaluate
from dargmin.types import LinearMap, Point


class _Columns:
    """The images of all unit vectors, stacked; of the identity itself, None."""

    def __init__(self, stacked: Any = None):
        self.stacked = stacked


def materialise(operator: LinearMap, like: Point) -> Float[Array, "d d"]:
    """The matrix of a linear map on pytrees like `like`, by d batched products.

    Where the map begins with a matrix, as v -> Xᵀ(s ∘ Xv) does, X times the identity is X: half of
    the work is left."""
    leaves = jax.tree.leaves(like)
    if len(leaves) == 1 and jnp.ndim(leaves[0]) == 1:
        program = jax.make_jaxpr(operator)(like)
        is_columns = lambda value: isinstance(value, _Columns)
        of = functools.partial(_image, like=leaves[0])
        (image,) = evaluate(program, [_Columns()], is_columns, of)
        return (
            _stacked(image, leaves[0]).T if isinstance(image, _Columns) else jnp.diag(0 * leaves[0])
        )
    flat, unravel = tree.ravel(like)
    columns = jax.vmap(lambda e: tree.ravel(operator(unravel(e)))[0])(
        jnp.eye(flat.size, dtype=flat.dtype)
    )
    return columns.T


def _stacked(columns: _Columns, like: Array) -> Array:
    return jnp.eye(like.size, dtype=like.dtype) if columns.stacked is None else columns.stacked


def _image(equation: Any, inputs: list[Any], run: Any, like: Array) -> list[Any]:
    """The outputs of one equation that has columns among its inputs: they are columns too."""
    if equation.primitive.name == "dot_general":
        rows = _times_identity(inputs, equation.params["dimension_numbers"])
        if rows is not None:
            return [_Columns(rows)]
    axes = [0 if isinstance(value, _Columns) else None for value in inputs]
    values = [_stacked(v, like) if isinstance(v, _Columns) else v for v in inputs]
    return [_Columns(u) for u in jax.vmap(run, in_axes=axes)(*values)]


def _times_identity(inputs: list[Any], dimensions: Any) -> Array | None:
    """A matrix times the identity, or None if this is no such product."""
    (contracted, batch), identity = dimensions, [
        isinstance(value, _Columns) and value.stacked is None for value in inputs
    ]  # fmt: skip
    if sum(identity) != 1 or any(batch) or isinstance(inputs[identity.index(False)], _Columns):
        return None
    other = identity.index(False)
    if len(contracted[other]) != 1:
        return None
    return jnp.moveaxis(inputs[other], contracted[other][0], 0)
