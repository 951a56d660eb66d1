"""The matrix of a linear map, with no more arithmetic than its program needs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.types import LinearMap, Point

_CALLS = ("jit", "pjit", "closed_call")


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
        (image,) = _evaluate(program, [_Columns()], leaves[0])
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


def _evaluate(program: ClosedJaxpr, arguments: list[Any], like: Array) -> list[Any]:
    """Run a linear program on all unit vectors at once, an equation at a time."""
    known: dict[Any, Any] = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    known |= dict(zip(program.jaxpr.invars, arguments, strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else known[v]
    for equation in program.jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        known |= zip(equation.outvars, _apply(program.jaxpr, equation, inputs, like), strict=True)
    return [read(v) for v in program.jaxpr.outvars]


def _apply(program: Any, equation: Any, inputs: list[Any], like: Array) -> list[Any]:
    """The outputs of one equation; those that depend on a column are columns."""
    columns = [isinstance(value, _Columns) for value in inputs]
    if any(columns):
        if equation.primitive.name in _CALLS:
            return _evaluate(equation.params["jaxpr"], inputs, like)
        if equation.primitive.name == "dot_general":
            rows = _times_identity(inputs, equation.params["dimension_numbers"])
            if rows is not None:
                return [_Columns(rows)]
    variables = [v for v in equation.invars if not isinstance(v, Literal)]
    alone = program.replace(
        constvars=(), invars=variables, outvars=equation.outvars, eqns=[equation],
        effects=equation.effects,
    )  # fmt: skip
    function = jaxpr_as_fun(ClosedJaxpr(alone, ()))
    pairs = zip(equation.invars, inputs, strict=True)
    values = [value for v, value in pairs if not isinstance(v, Literal)]
    if not any(columns):
        return list(function(*values))
    axes = [0 if isinstance(value, _Columns) else None for value in values]
    values = [_stacked(v, like) if isinstance(v, _Columns) else v for v in values]
    return [_Columns(u) for u in jax.vmap(function, in_axes=axes)(*values)]


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
