"""What is differentiated, and the parts of a derivative's error that its computation shows."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.certificate import rounding_error
from dargmin.cost import Cost
from dargmin.linear import Correction, Factored, LinearOptions
from dargmin.linear.solution import AbstractLinearSolver, LinearInfo, samples
from dargmin.problems import AbstractProblem
from dargmin.status import Status
from dargmin.types import LinearMap, Parameters, Point

ROUNDING = 5.0
"""How much of εκ‖x̂‖ is assumed for the rounding of x̂ where no factor tells: its direction is not
known, and in the flat ones a derivative feels more of it than in a random one."""

TRIES = 3
"""How often everything is moved by its rounding: one derivative in ten hardly feels one try."""

LUCK = (10.0, 4.0, 2.0)
"""By how much the worst of one, two and three of them is enlarged."""

LARGE = 2**12
"""Arrays of data that are larger are not moved: what rounds in the sums over them shows anyway."""


class Derivative(eqx.Module):
    """An implicit derivative at one point, with what its linear solve says of its error.

    All norms are per derivative: a leading axis of k for k derivatives at once."""

    value: Any  # leaves (k, ...)
    implicit: Float[Array, " k"]  # the norm of the part that goes through x*(θ)
    spread: Float[Array, " k"]  # what an error of the linear solution as large as it makes of that
    residual: Float[Array, " k"]  # relative residual of the linear solve
    amplification: Float[Array, " k"]  # times this: the relative error of its solution
    unknown: Point  # leaves (k, ...): where the next solve may start
    condition: Float[Array, ""]
    lowest: Float[Array, ""]  # the smallest stretch that a Krylov solver met
    null: Point  # what the Jacobian maps to zero, or zeros
    status: Any
    cost: Cost


class AbstractQuantity(eqx.Module):
    """What is differentiated: knows how to take its implicit derivative at a point."""

    @abstractmethod
    def __call__(
        self,
        problem: AbstractProblem,
        x: Point,
        theta: Parameters,
        start: Point,
        options: LinearOptions,
    ) -> Derivative:
        """The derivative at x, its linear solve started from `start`."""


def allowed_error(found: Derivative) -> Float[Array, " k"]:
    """The absolute error that the residual of the linear solve allows. Where a derivative cancels,
    that is a share of what it might be, not of what it is."""
    return found.amplification * found.residual * found.spread


class _OneStep(AbstractLinearSolver):
    """Takes the start for the solution, moved by M(b - Kx) if a factor is at hand, and reports how
    far the start is from one."""

    factor: Factored | None = None

    def solve(
        self,
        operator: LinearMap,
        b: Point,
        *,
        symmetric: bool,
        start: Point | None,
        preconditioner: LinearMap | None,
        rtol: float | Float[Array, ""],
    ) -> tuple[Point, LinearInfo]:
        x = tree.zeros_like(b) if start is None else start
        r = tree.sub(b, operator(x))
        residual = tree.norm(r)
        if self.factor is not None:
            x = tree.add(x, self.factor.inverse(r))
        one, count = jnp.ones_like(residual), jnp.asarray(0)
        return x, LinearInfo(
            Status.ok, residual, one, one, count + 1, count,
            samples(x, x, x), tree.zeros_like(x), jnp.inf * one,
        )  # fmt: skip


def rounding(
    quantity: AbstractQuantity,
    problem: AbstractProblem,
    at: Correction,
    theta: Parameters,
    found: Derivative,
) -> tuple[Float[Array, " k"], Cost]:
    """The absolute error that rounding makes in a derivative, and what it cost to find out.

    Rounding of the linear solve, and of x̂: the derivative is formed again, from the same linear
    solution, at a point as far away as x̂ may be from x*, or as rounding may take it. Where ∇φ or
    ∂_θF cancel, as near an outer optimum, that makes all the difference."""
    condition = jnp.maximum(at.condition, found.condition)
    relative = rounding_error(at.x, condition)
    remaining = jnp.where(jnp.isfinite(at.remaining), at.remaining, 0)
    distance = jnp.maximum(ROUNDING * relative * tree.norm(at.x), remaining)
    direction = tree.random_like(at.x, seed=2)
    moved = tree.axpy(distance / jnp.maximum(tree.norm(direction), 1), direction, at.x)
    there = quantity(problem, moved, theta, found.unknown, LinearOptions(solver=_OneStep()))
    change = norms(tree.sub(there.value, found.value))
    # Of a singular system, the right-hand side may lie outside the range, and nothing be wrong.
    regular = tree.norm(found.null) == 0
    change = change + jnp.where(regular, there.residual * found.spread, 0)
    return relative * found.implicit + change, there.cost


def rounding_by_factor(
    quantity: AbstractQuantity,
    problem: AbstractProblem,
    at: Correction,
    theta: Parameters,
    found: Derivative,
    factor: Factored,
    allowed: Float[Array, " k"],
) -> tuple[Float[Array, " k"], Cost]:
    """The same, measured: all that goes in, x̂ and θ and the data, is moved by about ε, the point
    and the linear solution are corrected once more with the factor, and the derivative is formed
    again. What changes is what rounding makes of it, that of the user's own f included, and what
    is left of the way to x*. It is tried again where that is not clearly `allowed`."""
    plain, rest = eqx.partition((quantity, problem, at.x, theta), eqx.is_inexact_array)

    luck = jnp.asarray((jnp.inf, *LUCK), allowed.dtype)

    def unclear(state: Any) -> Bool[Array, ""]:
        worst, tries = state
        return (tries < TRIES) & ((tries == 0) | jnp.any(luck[tries] * worst > 0.3 * allowed))

    def again(state: Any) -> Any:
        worst, seed = state
        moved = eqx.combine(_moved(plain, seed), rest)
        quantity, problem, x, theta = moved
        x = tree.sub(x, factor.inverse(problem.residual(x, theta)))
        there = quantity(problem, x, theta, found.unknown, LinearOptions(_OneStep(factor)))
        return jnp.maximum(worst, norms(tree.sub(there.value, found.value))), seed + 1

    begin = jnp.zeros_like(found.implicit), jnp.asarray(0)
    worst, tries = jax.lax.while_loop(unclear, again, begin)
    return luck[tries] * worst, Cost(gradients=tries, products=2 * tries)


def _moved(arrays: Any, seed: Int[Array, ""]) -> Any:
    """Every number u as u (1 + 2ε r) with a random r in [-1, 1]."""

    def move(index: int, u: Array) -> Array:
        if u.size > LARGE:
            return u
        r = tree.random_like(u, seed=1000 * (seed + 1) + index)
        return u * (1 + 2 * jnp.finfo(u.dtype).eps * r)

    leaves, structure = jax.tree.flatten(arrays)
    return jax.tree.unflatten(structure, [move(i, u) for i, u in enumerate(leaves)])


def norms(values: Any) -> Float[Array, " k"]:
    """The 2-norm of each of k derivatives."""
    return jax.vmap(tree.norm)(values)
