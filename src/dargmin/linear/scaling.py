"""The diagonal of a Hessian as a preconditioner, where that pays."""

import jax
import jax.numpy as jnp

from dargmin import tree
from dargmin.linear.diagonal import diagonal
from dargmin.problems import AbstractProblem, LinearSystem, Objective
from dargmin.types import LinearMap, Parameters, Point

SPREAD = 10
"""From this ratio of the largest to the smallest entry on, the diagonal is used. It makes up for
coordinates of different units; where the spread is smaller, there is little to gain."""


def scaling(
    problem: AbstractProblem, x: Point, theta: Parameters, system: LinearSystem | None = None
) -> Point | None:
    """The diagonal of the Hessian at (x, θ), as declared, or as its program shows it; ones where
    it would not pay, None where it is not known. A constant of every derivative.

    Terms AᵀSA with fewer rows of A than columns are left out: a Hessian D + AᵀSA, divided by D, has
    all but few eigenvalues at one; divided by its whole diagonal, it has them everywhere."""
    if not isinstance(problem, Objective) or tree.size(x) == 0:
        return None
    frozen, x, theta = tree.stop_gradient((problem, x, theta))
    if problem.diagonal is not None:
        return frozen.diagonal(x, theta)
    if system is None or problem.hvp is not None:
        operator = frozen.hessian(x, theta)  # whose program can be read
    else:
        operator = system.operator
    found = jax.lax.stop_gradient(diagonal(operator, x, full_rank=True))
    if found is None:
        return None
    entries, _ = tree.ravel(found)
    smallest, largest = jnp.min(entries), jnp.max(entries)
    pays = (smallest > 0) & (largest > SPREAD * smallest) & jnp.isfinite(largest)
    return tree.where(pays, found, jax.tree.map(jnp.ones_like, found))


def jacobi(scale: Point | None) -> LinearMap | None:
    """v -> v / diagonal."""
    if scale is None:
        return None
    return lambda v: jax.tree.map(lambda u, h: u / h, v, scale)
