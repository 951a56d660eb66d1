"""Constants of smoothness, from a few Hessian-vector products."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.problems import AbstractProblem, Composite, Objective
from dargmin.types import LinearMap, Parameters, Point

_Problem = TypeVar("_Problem", bound=AbstractProblem)

LANCZOS_STEPS = 24


def largest_eigenvalue(
    operator: LinearMap, like: Point, steps: int = LANCZOS_STEPS
) -> Float[Array, ""]:
    """λ_max of a symmetric positive semidefinite operator, over- rather than underestimated.

    The largest Ritz value of `steps` Lanczos steps from a fixed random start, plus its residual
    bound β|s|, plus 2 %. No vectors are kept: without reorthogonalisation Ritz values may come
    twice, but the largest stays right (Paige, 1980).

    Parameters
    ----------
    operator : callable, pytree like `like` -> pytree like `like`
    like : pytree
        Gives the shapes.
    steps : int
        Products with the operator; capped at the dimension."""
    kind, d = tree.dtype(like), tree.size(like)
    steps = min(steps, d)
    if steps == 0:
        return jnp.zeros((), kind)
    v = tree.random_like(like)
    v = tree.scale(1 / tree.norm(v), v)

    def step(carry, _):
        previous, v, beta = carry
        w = tree.axpy(-beta, previous, operator(v))
        alpha = tree.dot(w, v)
        w = tree.axpy(-alpha, v, w)
        following = tree.norm(w)
        w = tree.scale(jnp.where(following > 0, 1 / jnp.where(following > 0, following, 1), 0), w)
        return (v, w, following), (alpha, following)

    start = (tree.zeros_like(like), v, jnp.zeros((), kind))
    _, (alphas, betas) = jax.lax.scan(step, start, None, length=steps)
    ritz = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    values, vectors = jnp.linalg.eigh(ritz)
    bound = betas[-1] * jnp.abs(vectors[-1, -1])
    return (values[-1] + bound) * 1.02


def smoothness(problem: AbstractProblem, x: Point, theta: Parameters) -> Float[Array, ""]:
    """L: as declared on the problem, or estimated at x; a constant of every derivative.

    Raises
    ------
    ValueError
        If the Jacobian of the residual is not symmetric: then there is no such constant."""
    if isinstance(problem, Composite):
        if problem.step_size is not None:
            return jax.lax.stop_gradient(1 / problem.step_size)
        problem = problem.smooth
    if not isinstance(problem, Objective):
        raise ValueError(
            f"A step size can be estimated for an Objective or a Composite, but this is a "
            f"{type(problem).__name__}. Give the method a step_size."
        )
    if problem.L is not None:
        return jax.lax.stop_gradient(problem.L)
    problem, x, theta = tree.stop_gradient((problem, x, theta))
    estimate = largest_eigenvalue(problem.linear_system(x, theta).operator, x)
    return jnp.where(estimate > 0, estimate, jnp.ones((), estimate.dtype))


def prepare(problem: _Problem, x: Point, theta: Parameters) -> _Problem:
    """The problem with its closures converted and its step size, if it has one, settled.

    Done once where a computation begins, so that residual, tolerance, derivative and certificate
    all mean the same F."""
    problem = problem.convert_closures(x, theta)
    if isinstance(problem, Composite) and problem.step_size is None:
        step = 1 / smoothness(problem, x, theta)
        problem = eqx.tree_at(
            lambda p: p.step_size, problem, step, is_leaf=lambda leaf: leaf is None
        )
    return problem
