"""solve joins a problem, a method and a mode; attach brings a solution from elsewhere."""

import functools
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import ArrayLike

from dargmin import tree
from dargmin.checks import blames_arguments
from dargmin.linear import prepare
from dargmin.loop import Run
from dargmin.methods import AbstractMethod
from dargmin.modes import AbstractFrozenMode, AbstractMode, Implicit
from dargmin.modes.base import FAILED
from dargmin.modes.watch import Watch, is_staged
from dargmin.problems import AbstractProblem
from dargmin.solution import Solution
from dargmin.types import Parameters, Point


@blames_arguments
def solve(
    problem: AbstractProblem,
    method: AbstractMethod,
    x0: Point,
    theta: Parameters,
    *,
    steps: int,
    tol: ArrayLike | None = None,
    mode: AbstractMode | None = None,
    throw: bool = True,
) -> Solution:
    """Walk from x0 to x*(θ); the result's x is differentiable in θ, in the mode asked for.

    Parameters
    ----------
    problem : AbstractProblem
        What x*(θ) is.
    method : AbstractMethod
        How to walk there.
    x0 : pytree of floating arrays
        Where to start. A constant in `Implicit`, `Neumann` and `LateStart`, a variable in
        `Unrolled`.
    theta : pytree
        The parameters; floating leaves are differentiated, integers and None ride along.
    steps : int >= 1
        All of them if `tol` is None, at most that many otherwise.
    tol : float, optional
        Stop where ‖F(x, θ)‖₂ <= tol, at the point where the method last evaluated it.
    mode : AbstractMode
        `Implicit()` if None.
    throw : bool
        Raise if anything fails (under `vmap`: in any lane), the linear solves of derivatives
        included. If False, read `.status`; derivatives that fail are NaN.

    Returns
    -------
    Solution

    Raises
    ------
    ValueError
        If an argument is off; before anything is computed.
    DargminError
        If `throw` and the status is not ok; it carries the solution as `.result`."""
    check_arguments(problem, method, steps)
    if method is None:
        raise ValueError("solve needs a method, such as dargmin.GradientDescent().")
    mode = Implicit() if mode is None else mode
    if not isinstance(mode, AbstractMode):
        raise ValueError(f"mode must be a dargmin mode such as Implicit(), not {mode!r}.")
    x0, theta = tree.as_point(x0), tree.as_arrays(theta)
    tol = None if tol is None else jnp.asarray(tol)
    if not throw:
        return _solve(problem, method, x0, theta, steps, tol, mode, False)
    watch, problem, (method, theta, x0) = _watched(mode, problem, theta, x0, (method, theta, x0))
    solution = _solve(problem, method, x0, theta, steps, tol, mode, is_staged())
    solution = eqx.tree_at(lambda s: s.x, solution, watch.outputs(solution.x))
    return solution.raise_if_failed()


def _watched(
    mode: AbstractMode, problem: AbstractProblem, theta: Parameters, x: Point, rest: Any
) -> tuple[Watch, AbstractProblem, Any]:
    """A watch over one solve, and its arguments as they go through it."""
    if _closes_over_tracers(problem):
        problem = problem.convert_closures(x, theta)
    arguments = (problem, rest)
    explain = None if is_staged() else partial(_explain, mode, arguments, x)
    watch = Watch(FAILED, explain)
    return watch, *watch.inputs(arguments)


def _closes_over_tracers(function: Any, depth: int = 4) -> bool:
    """Whether functions among the leaves hold values that are being differentiated."""
    if isinstance(function, Tracer):
        return True
    if depth == 0:
        return False
    held = [
        getattr(cell, "cell_contents", None)
        for cell in getattr(function, "__closure__", None) or ()
    ]
    if isinstance(function, functools.partial):
        held += [function.func, function.args, function.keywords]
    held += [getattr(function, "__self__", None), getattr(function, "__wrapped__", None)]
    leaves = jax.tree.leaves(held)
    if not callable(function) or isinstance(function, eqx.Module):
        leaves += [leaf for leaf in jax.tree.leaves(function) if leaf is not function]
    return any(_closes_over_tracers(leaf, depth - 1) for leaf in leaves)


def _explain(mode: AbstractMode, arguments: Any, x: Point, watch: Watch) -> str:
    """Why a derivative outside of jit failed, by computing it once more in the open."""
    leaves, structure = jax.tree.flatten(arguments)
    points = [watch.points.get(("in", i), leaf) for i, leaf in enumerate(leaves)]
    shape = jax.tree.structure(x)
    solution = [watch.points.get(("out", i)) for i in range(shape.num_leaves)]
    if any(isinstance(leaf, Tracer) for leaf in points) or any(s is None for s in solution):
        return FAILED
    problem, (*_, theta, _) = tree.as_arrays(jax.tree.unflatten(structure, points))
    x = tree.as_arrays(jax.tree.unflatten(shape, solution))
    if any(place == "out" for place, _ in watch.passed):
        cotangents = [_one(watch.passed.get(("out", i)), s) for i, s in enumerate(solution)]
        cotangent = tree.fill(jax.tree.unflatten(shape, cotangents), x)
        return mode.reason(problem, x, theta, None, cotangent)
    tangents = [_one(watch.passed.get(("in", i)), leaf) for i, leaf in enumerate(points)]
    d_problem, (*_, d_theta, _) = jax.tree.unflatten(structure, tangents)
    return mode.reason(problem, x, theta, (d_problem, d_theta), None)


def _one(change: Any, like: Any) -> Any:
    """A combination of a batch of tangents, which fails where one of them does."""
    if change is None or jnp.ndim(change) == jnp.ndim(like):
        return change
    batch = jnp.asarray(change).reshape(-1, *jnp.shape(like))
    weights = jnp.cos(jnp.arange(1, len(batch) + 1)).astype(batch.dtype)
    return jnp.tensordot(weights, batch, 1)


@eqx.filter_jit
def _solve(
    problem: AbstractProblem,
    method: AbstractMethod,
    x0: Point,
    theta: Parameters,
    steps: int,
    tol: Any,
    mode: AbstractMode,
    throw: bool,
) -> Solution:
    theta = tree.in_precision_of(x0, theta)
    problem = prepare(problem, x0, theta)
    method = method.prepare(problem, x0, theta)
    tol = None if tol is None else tol.astype(tree.dtype(x0))
    return mode.solve(Run(problem, method, theta), x0, steps, tol, throw)


@blames_arguments
def attach(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    mode: AbstractFrozenMode | None = None,
    throw: bool = True,
) -> Point:
    """x as it is, differentiable in θ: the solution from anywhere, the derivative from here.

    Parameters
    ----------
    problem : AbstractProblem
        The problem that x solves.
    x : pytree of floating arrays
        A solution found by SciPy, scikit-learn, torch, a commercial code.
    theta : pytree
    mode : Implicit or Neumann, optional
        `Implicit()` if None. There are no iterations to unroll.
    throw : bool
        As in `solve`.

    Returns
    -------
    pytree like x, with the same values"""
    mode = Implicit() if mode is None else mode
    if not isinstance(mode, AbstractFrozenMode):
        raise ValueError(
            f"attach has no iterations to differentiate through, so that mode={mode!r} makes no "
            "sense here. Use Implicit() or Neumann(terms=...), or run the method by dargmin.solve."
        )
    x, theta = tree.as_point(x, "x"), tree.as_arrays(theta)
    if not throw:
        return _attach(problem, x, theta, mode, False)
    watch, problem, (theta, _) = _watched(mode, problem, theta, x, (theta, None))
    return watch.outputs(_attach(problem, x, theta, mode, is_staged()))


@eqx.filter_jit
def _attach(
    problem: AbstractProblem, x: Point, theta: Parameters, mode: AbstractFrozenMode, throw: bool
) -> Point:
    theta = tree.in_precision_of(x, theta)
    return mode.attach(prepare(problem, x, theta), x, theta, throw, doubted=True)


def check_arguments(
    problem: Any, method: Any, steps: Any, rtol: Any = 0.0, atol: Any = 0.0
) -> None:
    """Raise a ValueError for what is known to be wrong before anything is traced."""
    if not isinstance(problem, AbstractProblem):
        raise ValueError(
            "The problem must be an Objective, FixedPoint, Composite or Root, but got "
            f"{type(problem).__name__}. Wrap a function f(x, theta) as dargmin.Objective(f)."
        )
    if method is not None and not isinstance(method, AbstractMethod):
        raise ValueError(
            "The method must be a dargmin method such as GradientDescent(), but got "
            f"{type(method).__name__}. Wrap an optax transformation as dargmin.FromOptax(tx), an "
            "optimistix solver as dargmin.FromOptimistix(solver)."
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, but got {steps!r}.")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"{name} must be >= 0, but got {value}.")
