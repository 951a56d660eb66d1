"""Bounds on θ: projection, and the part of a gradient that they leave."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dargmin import tree

Vector = Float[np.ndarray, " p"]


class Box:
    """lower <= θ <= upper, with θ as one vector.

    Attributes
    ----------
    lower, upper : arrays, shape (p,)
        Infinite where there is no bound."""

    def __init__(self, theta: Any, bounds: Any):
        if bounds is None:
            bounds = (None, None)
        if not isinstance(bounds, tuple | list) or len(bounds) != 2:
            raise ValueError(
                "bounds must be a pair (lower, upper) of scalars, pytrees like theta or None, but "
                f"got {type(bounds).__name__}."
            )
        kind = tree.dtype(theta)  # a projected θ is stored in it: so are the bounds
        rounded = lambda v: v.astype(kind).astype(np.float64)
        self.lower = rounded(_as_vector(theta, bounds[0], -np.inf, "lower"))
        self.upper = rounded(_as_vector(theta, bounds[1], np.inf, "upper"))
        flat = as_vector(theta)
        crossed = int(np.sum(~(self.lower <= self.upper)))
        if crossed:
            raise ValueError(f"bounds: lower > upper (or NaN) in {crossed} of {flat.size} places.")
        outside = int(np.sum((flat < self.lower) | (flat > self.upper)))
        if outside:
            raise ValueError(
                f"theta0 must lie within the bounds, but {outside} of {flat.size} numbers do not. "
                "Move theta0, or widen the bounds."
            )

    def project(self, theta: Vector) -> Vector:
        """The nearest point of the box."""
        return np.clip(theta, self.lower, self.upper)

    def held(self, theta: Vector, gradient: Vector) -> Bool[np.ndarray, " p"]:
        """Which coordinates a step of descent would move out of the box."""
        return ((theta <= self.lower) & (gradient > 0)) | ((theta >= self.upper) & (gradient < 0))

    def projected(self, theta: Vector, gradient: Vector) -> Vector:
        """The gradient without what points out of the box: zero at a constrained minimum."""
        return np.where(self.held(theta, gradient), 0.0, gradient)


def as_vector(theta: Any) -> Vector:
    """The floating leaves of theta as one float64 vector on the host."""
    return np.asarray(tree.ravel(theta)[0], np.float64)


def from_vector(vector: Vector, like: Any) -> Any:
    """The pytree of floating leaves `like` that has these numbers."""
    flat, unravel = tree.ravel(like)
    return unravel(jnp.asarray(vector, flat.dtype))


def _as_vector(theta: Any, bound: Any, missing: float, name: str) -> Vector:
    if bound is None:
        bound = missing
    if isinstance(bound, int | float):
        return np.full(tree.size(theta), float(bound))
    bound = eqx.filter(tree.as_arrays(bound), eqx.is_inexact_array)
    if isinstance(bound, Array) and bound.ndim == 0:
        return np.full(tree.size(theta), float(bound))
    if jax.tree.structure(bound) == jax.tree.structure(theta):
        pairs = zip(jax.tree.leaves(bound), jax.tree.leaves(theta), strict=True)
        if all(b.shape in ((), t.shape) for b, t in pairs):
            spread = lambda b, t: np.broadcast_to(np.asarray(b), t.shape)
            return as_vector(jax.tree.map(spread, bound, theta))
    raise ValueError(
        f"bounds: the {name} one must be a number, None or a pytree of floats like theta, with "
        f"structure {jax.tree.structure(theta)} and the same shapes (or scalars)."
    )
