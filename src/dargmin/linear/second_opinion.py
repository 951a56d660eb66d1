"""What a right-hand side can hide: a few steps from a random vector look for slow directions, and
for negative curvature."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.linear.auto import Auto
from dargmin.linear.cg import CG
from dargmin.linear.dense import BlockDense, Dense
from dargmin.linear.krylov import smallest_stretch
from dargmin.linear.system import LinearOptions, preconditioner_of
from dargmin.problems import AbstractProblem
from dargmin.types import LinearMap, Parameters, Point

STEPS = 12


class SecondOpinion(eqx.Module):
    """The smallest stretch of K that was met, of M⁻¹K with a preconditioner; whether its curvature
    is negative there, and the direction (zeros where it is not); and the products it took."""

    lowest: Float[Array, ""]
    negative: Bool[Array, ""]
    direction: Point
    products: Int[Array, ""]


def second_opinion(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    options: LinearOptions,
    steps: int = STEPS,
) -> SecondOpinion:
    """Look at the operator K of ∂ₓF from a random vector: isolated small and negative eigenvalues
    show in a few steps, whatever the right-hand sides of the solves are. A preconditioner is the
    one that the linear solver has."""
    system = problem.linear_system(x, theta)
    start = system.after(tree.random_like(x, seed=7))
    if not system.symmetric:
        lowest, products = smallest_stretch(system.operator, start, steps)
        return SecondOpinion(lowest, jnp.asarray(False), tree.zeros_like(start), products)
    preconditioner = preconditioner_of(problem, x, theta, options, system)
    if isinstance(options.solver, CG | Auto) and options.solver.pairs is not None:
        preconditioner = options.solver.pairs.preconditioner(start, preconditioner)
    return _symmetric(system.operator, start, preconditioner, min(steps, tree.size(start)))


def hides(problem: AbstractProblem, x: Point, options: LinearOptions) -> bool:
    """Whether there may be directions that the right-hand sides hide from the linear solver: it
    may be a Krylov method."""
    solver = Auto() if options.solver is None else options.solver
    if isinstance(solver, Auto):
        return tree.size(x) > solver.small * (solver.blocks or 1)
    return not isinstance(solver, Dense | BlockDense) and tree.size(x) > 0


def _symmetric(
    K: LinearMap, start: Point, preconditioner: LinearMap | None, steps: int
) -> SecondOpinion:
    """Lanczos on M⁻¹K, twice where the smallest Ritz value is negative: then for its vector."""
    kind = tree.dtype(start)
    eps, zero = jnp.asarray(jnp.finfo(kind).eps, kind), jnp.zeros((), kind)
    M = (lambda r: r) if preconditioner is None else preconditioner

    def step(carry: Any, weight: Float[Array, ""]) -> Any:
        v, q, before, beta, total, top, ended = carry
        total = tree.axpy(weight, q, total)
        w = tree.axpy(-beta, before, K(q))
        alpha = tree.dot(w, q)
        w = tree.axpy(-alpha, v, w)
        z = M(w)
        size = jnp.sqrt(jnp.maximum(tree.dot(w, z), 0))
        top = jnp.maximum(top, jnp.abs(alpha) + size)
        ended_now = ended | (size <= 100 * eps * top)
        unit = jnp.where(ended_now, 0, 1 / jnp.where(ended_now, 1, size))
        following = jnp.where(ended_now, 0, size)
        # Where the space has ended, a large value fills the rest.
        alpha = jnp.where(ended, top, alpha)
        carry = (tree.scale(unit, w), tree.scale(unit, z), v, following, total, top, ended_now)
        return carry, (alpha, following)

    z = M(start)
    size = 1 / jnp.sqrt(jnp.maximum(tree.dot(start, z), jnp.finfo(kind).tiny))
    none = tree.zeros_like(start)

    def attempt(state: Any) -> Any:
        _, weights, _, _, passes = state
        first, no = (tree.scale(size, start), tree.scale(size, z)), jnp.asarray(False)
        begin = (*first, none, zero, none, zero, no)
        end, (alphas, betas) = jax.lax.scan(step, begin, weights)
        off = betas[:-1]
        values, vectors = jnp.linalg.eigh(jnp.diag(alphas) + jnp.diag(off, 1) + jnp.diag(off, -1))
        return values[0], vectors[:, 0], end[4], end[5], passes + 1

    def unfinished(state: Any) -> Bool[Array, ""]:
        value, _, _, top, passes = state
        return (passes == 0) | ((passes == 1) & _is_negative(value, top))

    def _is_negative(value: Any, top: Any) -> Bool[Array, ""]:
        return value < -100 * eps * top

    first = (zero, jnp.zeros(steps, kind), none, zero, jnp.asarray(0))
    value, _, direction, top, passes = jax.lax.while_loop(unfinished, attempt, first)
    negative = _is_negative(value, top)
    lowest = jnp.maximum(value, eps * top)
    keep = tree.scale(jnp.where(negative, 1, 0), direction)
    return SecondOpinion(lowest, negative, keep, passes * steps)
