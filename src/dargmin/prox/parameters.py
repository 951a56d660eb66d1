"""Parameters of a prox: constants or functions of θ, checked and spread over the leaves of x."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array

from dargmin.types import Parameters, Point


class Constant(eqx.Module):
    """θ -> a constant."""

    value: Any

    def __call__(self, theta: Parameters) -> Any:
        return self.value


class Function(eqx.Module):
    """θ -> f(θ), for a function that holds no arrays."""

    function: Callable = eqx.field(static=True)

    def __call__(self, theta: Parameters) -> Any:
        return self.function(theta)


def as_parameter(name: str, value: Any) -> Callable:
    """Turn a constant or a function of θ into a pytree that is called with θ.

    Raises
    ------
    ValueError
        If a leaf of a constant is not a real number or array.
    """
    if callable(value):  # one that is a pytree itself (an equinox.Module) keeps its leaves
        is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(value))
        return Function(value) if is_leaf else value

    def convert(leaf: Any) -> Array:
        if not eqx.is_array_like(leaf) or jnp.iscomplexobj(leaf):
            raise ValueError(
                f"{name} must be a real number, an array, a pytree of them, or a function of "
                f"theta, but it holds a {type(leaf).__name__}: {leaf!r}."
            )
        array = jnp.asarray(leaf)
        return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)

    return Constant(jax.tree.map(convert, value))


def as_weight(name: str, value: Any) -> Callable:
    """Turn a weight into a pytree that is called with θ.

    Raises
    ------
    ValueError
        If a constant weight is negative or not finite.
    """
    parameter = as_parameter(name, value)
    finite = lambda w: (w >= 0) & jnp.isfinite(w)
    if isinstance(parameter, Constant) and not holds(finite, parameter.value):
        raise ValueError(
            f"{name} needs finite weights >= 0, but got {value}. For a weight that is learnt, "
            "pass a function of theta that is never negative, such as jnp.exp."
        )
    return parameter


def traced(leaf: Any) -> bool:
    """Whether the value of a leaf is not known yet."""
    return isinstance(leaf, Tracer)


def holds(condition: Callable, *values: Any) -> bool:
    """Whether a condition holds on all leaves whose values are known before tracing."""
    known = [u for u in zip(*map(jax.tree.leaves, values), strict=True) if not any(map(traced, u))]
    return all(bool(jnp.all(condition(*u))) for u in known)


def spread(name: str, value: Any, v: Point, kind: Any = None) -> Any:
    """Give every leaf of v its part of a parameter, as an array of its dtype (or of `kind`).

    Raises
    ------
    ValueError
        If the parameter is no prefix of v, or a part does not broadcast to its leaf's shape.
    """
    try:
        parts = jax.tree.broadcast(value, v)
    except ValueError as error:
        raise ValueError(
            f"prox: {name} has the structure {jax.tree.structure(value)}, which is no prefix of "
            f"that of x, {jax.tree.structure(v)}. Use one number or array, or a pytree like x "
            "(a list is a pytree: write jnp.array([...]))."
        ) from error

    def cast(leaf: Array, part: Any) -> Array:
        part = jnp.asarray(part, leaf.dtype if kind is None else kind)
        trailing = zip(reversed(part.shape), reversed(leaf.shape), strict=False)
        if part.ndim > leaf.ndim or any(m not in (1, n) for m, n in trailing):
            raise ValueError(
                f"prox: {name} has shape {part.shape}, which does not broadcast to the shape "
                f"{leaf.shape} of x. Use a scalar, or one entry for each coordinate."
            )
        return part

    return jax.tree.map(cast, v, parts)


def require_group_weight(weight: Any, count: int) -> None:
    """Raise ValueError unless `weight` is a scalar or has one entry for each group."""
    shape = jnp.shape(weight) if eqx.is_array_like(weight) else type(weight).__name__
    if shape not in ((), (count,)):
        raise ValueError(
            f"group_lasso(weight, groups): weight has shape {shape}, but must be a scalar or have "
            f"one entry for each of the {count} groups."
        )
