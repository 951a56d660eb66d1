"""One brain: which method and which tolerance for which problem, with the reason."""

from typing import Any

import equinox as eqx

from dargmin import tree
from dargmin.linear import LinearOptions, forming_pays
from dargmin.linear.work import MEDIUM, SMALL
from dargmin.methods import (
    LBFGS,
    AbstractMethod,
    FixedPointIteration,
    ProximalGradient,
)
from dargmin.problems import AbstractProblem, Composite, FixedPoint, Objective
from dargmin.types import Parameters, Point


class Strategy(eqx.Module):
    """How to reach the solution: an inner method, or None where Newton corrections alone get
    there; whether one Cholesky factor, or one for each block, serves all linear solves; and why."""

    method: AbstractMethod | None
    reason: str = eqx.field(static=True)
    factor: bool = eqx.field(static=True, default=False)


def choose_strategy(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    method: AbstractMethod | None,
    options: LinearOptions | None = None,
) -> Strategy:
    """The caller's method, or one that fits the structure of the problem.

    A quadratic needs no iterations beside the linear solve, which a Newton correction is."""
    options = LinearOptions() if options is None else options
    factor = _factor_pays(problem, x, theta, options)
    if method is not None:
        return Strategy(method, f"{type(method).__name__} was asked for", factor)
    if isinstance(problem, Objective):
        if problem.is_quadratic(x, theta):
            reason = "the objective is quadratic: one linear solve finds the minimum"
            return Strategy(None, reason, factor)
        if factor and tree.size(x) <= SMALL * (options.blocks or 1):
            reason = "the objective is smooth and small: damped Newton steps"
            return Strategy(None, reason, factor)
        reason = "the objective is smooth and not quadratic: L-BFGS"
        return Strategy(LBFGS(), reason, factor)
    if isinstance(problem, Composite):
        return Strategy(
            ProximalGradient(),
            "the objective has a prox: accelerated proximal gradient with restart, until "
            "semismooth Newton takes over",
        )
    if isinstance(problem, FixedPoint):
        return Strategy(FixedPointIteration(), "a fixed point: iterate, until Newton takes over")
    return Strategy(None, "a root: damped Newton steps")


def _factor_pays(
    problem: AbstractProblem, x: Point, theta: Parameters, options: LinearOptions
) -> bool:
    """Whether one Cholesky factor of the Hessian, shared by all solves, is the cheapest way."""
    if not isinstance(problem, Objective) or tree.size(x) == 0:
        return False
    chosen = options.solver is not None and options.blocks is None
    if chosen or options.preconditioner is not None:
        return False
    return forming_pays(problem.linear_system(x, theta).operator, x, options.blocks)


def linear_solver_in_words(d: int, symmetric: bool, factor: bool, options: Any) -> str:
    """What the default linear solver does at this size."""
    if factor and (blocks := options.blocks):
        return f"{blocks} blocks of d = {d // blocks}: one Cholesky factor for each"
    if options.solver is not None:
        return f"{type(options.solver).__name__} was asked for"
    if factor:
        return f"d = {d}: one Cholesky factor for all, cheaper than conjugate gradients"
    from_size = {True: "CG", False: "GMRES"}[symmetric]
    direct = {True: "Cholesky", False: "LU"}[symmetric]
    if d <= SMALL:
        return f"d = {d} is small: one {direct} factor"
    if d <= MEDIUM:
        return f"d = {d}: {from_size}, then one {direct} factor if the condition asks for more"
    return f"d = {d} is large: {from_size}, nothing d x d is formed"


def describe(problem: AbstractProblem, x: Point, strategy: Strategy, options: Any) -> str:
    """The reasons of a strategy, as a sentence."""
    symmetric = isinstance(problem, Objective | Composite)
    linear = linear_solver_in_words(tree.size(x), symmetric, strategy.factor, options)
    return f"Implicit: {strategy.reason}; linear solves: {linear}."
