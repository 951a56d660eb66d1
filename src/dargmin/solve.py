"""solve joins a problem, a method and a mode; attach brings a solution from elsewhere."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import ArrayLike

from dargmin import tree
from dargmin.checks import blames_arguments
from dargmin.linear import prepare
from dargmin.loop import Run
from dargmin.methods import AbstractMethod
from dargmin.modes import AbstractFrozenMode, AbstractMode, Implicit
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
    solution = _solve(problem, method, x0, theta, steps, tol, mode, throw)
    return solution.raise_if_failed() if throw else solution


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
    return _attach(problem, tree.as_point(x, "x"), tree.as_arrays(theta), mode, throw)


@eqx.filter_jit
def _attach(
    problem: AbstractProblem, x: Point, theta: Parameters, mode: AbstractFrozenMode, throw: bool
) -> Point:
    return mode.attach(prepare(problem, x, theta), x, theta, throw)


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
