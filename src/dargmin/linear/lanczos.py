"""Extreme eigenvalues of a symmetric operator, from a few products with it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.types import LinearMap, Point

LANCZOS_STEPS = 24
STEP_SIZE_STEPS = 10
"""Enough for the step size of a method that watches the curvature on its way."""

MARGIN = 1.02
"""Factor on every estimated L."""


def lanczos(
    operator: LinearMap, start: Point, steps: int
) -> tuple[Float[Array, " steps"], Float[Array, " steps"]]:
    """Ritz values of a symmetric operator, ascending, each with its residual bound β|s|.

    No vectors are kept: without reorthogonalisation Ritz values may come twice, but the extreme
    ones stay right (Paige, 1980). Written here because matfree 0.6 returns NaN where the Krylov
    space ends early, as for H = I, and allocates all vectors; SciPy's eigsh cannot be jitted.

    Parameters
    ----------
    operator : callable, pytree -> pytree
    start : pytree
    steps : int
        Products with the operator."""
    kind = tree.dtype(start)
    v = tree.scale(1 / tree.norm(start), start)
    tiny = jnp.asarray(10 * jnp.finfo(kind).eps, kind)

    def step(carry, _):
        previous, v, beta, first, scale, ended = carry
        w = tree.axpy(-beta, previous, operator(v))
        alpha = tree.dot(w, v)
        w = tree.axpy(-alpha, v, w)
        following = tree.norm(w)
        scale = jnp.maximum(scale, jnp.abs(alpha) + following)
        first = jnp.where(jnp.isnan(first), alpha, first)
        # Where the space has ended, a value from inside the spectrum fills the rest.
        alpha = jnp.where(ended, first, alpha)
        ended = ended | (following <= tiny * scale)
        following = jnp.where(ended, 0, following)
        w = tree.scale(jnp.where(ended, 0, 1 / jnp.where(ended, 1, following)), w)
        return (v, w, following, first, scale, ended), (alpha, following)

    zero, unknown = jnp.zeros((), kind), jnp.full((), jnp.nan, kind)
    begin = (tree.zeros_like(start), v, zero, unknown, zero, jnp.asarray(False))
    _, (alphas, betas) = jax.lax.scan(step, begin, None, length=steps)
    ritz = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    values, vectors = jnp.linalg.eigh(ritz)
    return values, betas[-1] * jnp.abs(vectors[-1])


def largest_eigenvalue(
    operator: LinearMap, like: Point, steps: int = LANCZOS_STEPS
) -> Float[Array, ""]:
    """λ_max of a symmetric positive semidefinite operator, over- rather than underestimated.

    The largest Ritz value of `steps` Lanczos steps from a fixed random start, plus its residual
    bound, plus 2 %.

    Parameters
    ----------
    operator : callable, pytree like `like` -> pytree like `like`
    like : pytree
        Gives the shapes.
    steps : int
        Products with the operator; capped at the dimension."""
    steps = min(steps, tree.size(like))
    if steps == 0:
        return jnp.zeros((), tree.dtype(like))
    values, bounds = lanczos(operator, tree.random_like(like), steps)
    return (values[-1] + bounds[-1]) * MARGIN
