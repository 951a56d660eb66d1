"""What is differentiated, and the parts of a derivative's error that its computation shows."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.certificate import rounding_error
from dargmin.cost import Cost
from dargmin.linear import Correction, LinearOptions
from dargmin.linear.solution import AbstractLinearSolver, LinearInfo
from dargmin.problems import AbstractProblem
from dargmin.status import Status
from dargmin.types import LinearMap, Parameters, Point

ROUNDING = 5.0
"""How much of εκ‖x̂‖ is assumed for the rounding of x̂: its direction is not known, and in the
flat ones a derivative feels more of it than in a random one (see `benchmarks/calibration.py`)."""


class Derivative(eqx.Module):
    """An implicit derivative at one point, with what its linear solve says of its error.

    All norms are per derivative: a leading axis of k for k derivatives at once."""

    value: Any  # leaves (k, ...)
    implicit: Float[Array, " k"]  # the norm of the part that goes through x*(θ)
    residual: Float[Array, " k"]  # relative residual of the linear solve
    amplification: Float[Array, " k"]  # times this: the relative error that it allows that part
    unknown: Point  # leaves (k, ...): where the next solve may start
    condition: Float[Array, ""]
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
    """The absolute error that the residual of the linear solve allows."""
    return found.amplification * found.residual * found.implicit


class _Unsolved(AbstractLinearSolver):
    """Takes the start for the solution, and reports how far it is from one."""

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
        residual = tree.norm(tree.sub(b, operator(x)))
        one, count = jnp.ones_like(residual), jnp.asarray(0)
        return x, LinearInfo(Status.ok, residual, one, one, count + 1, count)


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
    there = quantity(problem, moved, theta, found.unknown, LinearOptions(solver=_Unsolved()))
    change = norms(tree.sub(there.value, found.value)) + there.residual * found.implicit
    return relative * found.implicit + change, there.cost


def norms(values: Any) -> Float[Array, " k"]:
    """The 2-norm of each of k derivatives."""
    return jax.vmap(tree.norm)(values)
