"""minimize: the outer loop, by certified hypergradients."""

import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dargmin import tree
from dargmin.bilevel.box import Box
from dargmin.bilevel.checkpoint import Checkpoint
from dargmin.bilevel.inner import AbstractInner, FixedSteps, Refined, probe
from dargmin.bilevel.loop import BilevelSolution, Finished, Loop
from dargmin.bilevel.optimizers import as_optimizer
from dargmin.linear import prepare
from dargmin.methods import AbstractMethod
from dargmin.modes import AbstractMode, Implicit
from dargmin.modes.base import is_whole
from dargmin.problems import AbstractProblem
from dargmin.solve import check_arguments
from dargmin.status import Status, raise_if_failed
from dargmin.types import Parameters, Point


def minimize(
    outer: Callable,
    problem: AbstractProblem,
    x0: Point,
    theta0: Parameters,
    *,
    optimizer: Any,
    steps: int,
    rtol: float | str = "adaptive",
    gtol: float | None = None,
    method: AbstractMethod | None = None,
    mode: AbstractMode | None = None,
    inner_steps: int | None = None,
    warm_start: bool = True,
    bounds: Any = None,
    callback: Callable[[BilevelSolution], Any] | None = None,
    checkpoint: str | os.PathLike | None = None,
    throw: bool = True,
) -> BilevelSolution:
    """min_θ φ(x*(θ), θ), x*(θ) as `problem` says, by hypergradients that are certified.

    A direction is used only if its certified error is below a fraction of its length, so that it
    descends. The loop ends after `steps`, or where θ is stationary, as `gtol` says. Ctrl-C, or
    what a callback raises, is raised again, with the result so far as its attribute `result`.

    Parameters
    ----------
    outer : callable (x, theta) -> scalar
        φ.
    problem : AbstractProblem
    x0, theta0 : pytrees
        Where the first inner solve and the loop start.
    optimizer : optax.GradientTransformation, "lbfgs" or LBFGSB
        With optax, θ is projected on the bounds after each update. "lbfgs" is `LBFGSB()`, SciPy's
        L-BFGS-B, whose line search counts as one step.
    steps : int
        Outer steps, at most. With 0, theta0 is evaluated, and that is all.
    rtol : "adaptive" or float
        Relative accuracy of the hypergradients. "adaptive" asks for a fraction of the (projected)
        gradient: 0.1 with optax, 0.01 with L-BFGS-B. In absolute terms it tightens as the gradient
        falls.
    gtol : float > 0, optional
        θ is stationary where √(gᵀB⁻¹g / L) ≤ gtol ‖θ‖: g is the gradient, projected if there are
        bounds, B the curvature that the last steps have shown, and L its largest value near θ. So
        the decrease that a Newton step still promises is gtol² of what a step as long as θ may
        change φ by; where φ is well conditioned, gtol is the relative error of θ. It depends
        neither on the unit of φ or θ, nor on constants in φ, nor on where the loop starts (but
        that gtol ‖θ₀‖ takes the place of ‖θ‖ where θ goes to zero). By default 1e-6, and 3e-4 in
        float32. Loosen it to stop earlier.
    method, mode
        As in `dargmin.hypergradient`. Modes other than `Implicit` need `inner_steps`.
    inner_steps : int, optional
        Take that many steps of `method` at each θ, in any mode, instead of working until the
        hypergradient is accurate. Each is certified all the same, but used whatever the
        certificate says; the last θ is returned, and its status says whether its direction was
        one of descent (or met `rtol`).
    warm_start : bool
        Start inner and adjoint solves from those before, and recycle what conjugate gradients
        learnt. With `inner_steps` the iterations start where the last ones ended: an unrolled
        derivative is then truncated, by as many steps as the column `effective_start` says. A
        line search needs `warm_start=False` there, since φ would depend on the way to θ.
    bounds : (lower, upper), optional
        Each a scalar, a pytree like theta0 or None.
    callback : callable (BilevelSolution) -> None, optional
        Called after each step with where the loop stands; it may raise StopIteration.
    checkpoint : path, optional
        A file that is replaced after each step. If it is there, the loop goes on from it as if it
        had not been interrupted. θ₀, bounds, `rtol` and the optimizer's settings have to be the
        same; `steps` and `gtol` may differ.
    throw : bool
        Raise if the inner side fails, if no direction of descent can be certified, or if `gtol`
        was given and not reached. Without a `gtol`, spending all steps is no error, but no success
        either: the status is `steps_spent`, and `.ok` False. If `throw` is False, read `.status`.
        Either way the best θ so far is kept.

    Returns
    -------
    BilevelSolution
        With the best θ that was evaluated.

    Raises
    ------
    ValueError
        If an argument is off, or the checkpoint is that of a different problem.
    DargminError
        If `throw` and the status is not ok; `.result` is the BilevelSolution.

    References
    ----------
    Pedregosa (2016), arXiv:1602.02355, for accuracies that follow the outer step."""
    accuracy = _accuracy(rtol)
    if not is_whole(steps, 0):
        raise ValueError(f"steps must be an integer >= 0, but got {steps!r}.")
    check_arguments(problem, method, 1, 0.0 if accuracy is None else accuracy)
    x0, theta = tree.strong(tree.as_point(x0)), tree.as_arrays(theta0)
    theta, fixed = eqx.partition(theta, eqx.is_inexact_array)
    theta = tree.strong(theta)
    if not jax.tree.leaves(theta):
        raise ValueError("theta0 has no floating-point leaf to minimise over.")
    box, chosen = Box(theta, bounds), as_optimizer(optimizer)
    inner = _inner(outer, problem, x0, fixed, method, mode, inner_steps, warm_start)
    loop = Loop(
        inner, theta, fixed, box,
        steps=steps, rtol=accuracy, gtol=_tolerance(gtol, x0), fraction=chosen.fraction,
        callback=callback,
    )  # fmt: skip
    loop.optimizer_state = chosen.init(theta)
    try:
        loop.save_to(_checkpoint(checkpoint, loop, chosen, outer, problem, x0, theta0), x0)
        loop.stop_if_finished()
        chosen.run(loop)
        loop.stuck = True
    except Finished:
        pass
    except BaseException as interrupt:
        _explain(interrupt, loop, outer, problem, x0, eqx.combine(theta, fixed))
        raise
    finally:
        loop.display.close()
    result = loop.result()
    assert result is not None
    detail = f"{len(result.history)} outer evaluations, best value {result.value}."
    allowed = gtol is None and bool(result.status == Status.steps_spent)
    return raise_if_failed(result, detail=detail) if throw and not allowed else result


def _inner(
    outer: Callable,
    problem: AbstractProblem,
    x0: Point,
    fixed: Any,
    method: AbstractMethod | None,
    mode: AbstractMode | None,
    inner_steps: int | None,
    warm_start: bool,
) -> AbstractInner:
    mode = Implicit() if mode is None else mode
    if not isinstance(mode, AbstractMode):
        raise ValueError(f"mode must be a dargmin mode such as Implicit(), not {mode!r}.")
    if inner_steps is None:
        if not isinstance(mode, Implicit):
            raise ValueError(
                f"mode={mode!r} needs a fixed number of inner steps, which nothing refines: give "
                "inner_steps= and method= too."
            )
        return Refined(outer, problem, x0, fixed, method, mode, warm_start)
    if not is_whole(inner_steps, 1):
        raise ValueError(f"inner_steps must be an integer >= 1, but got {inner_steps!r}.")
    if method is None:
        raise ValueError(f"inner_steps={inner_steps} are steps of a method: give method= too.")
    return FixedSteps(outer, problem, x0, fixed, method, mode, inner_steps, warm_start)


def _accuracy(rtol: float | str) -> float | None:
    """None if it adapts."""
    if isinstance(rtol, str):
        if rtol != "adaptive":
            raise ValueError(f'rtol must be "adaptive" or a number > 0, but got {rtol!r}.')
        return None
    if not rtol > 0:
        raise ValueError(f'rtol must be "adaptive" or a number > 0, but got {rtol}.')
    return float(rtol)


def _tolerance(gtol: float | None, x0: Point) -> float:
    if gtol is None:
        return 1e-6 if jnp.finfo(tree.dtype(x0)).eps < 1e-10 else 3e-4
    if not gtol > 0:
        raise ValueError(f"gtol must be a number > 0 or None, but got {gtol!r}.")
    return float(gtol)


def _checkpoint(
    path: Any, loop: Loop, optimizer: Any, outer: Callable, problem: Any, x0: Any, theta0: Any
) -> Checkpoint | None:
    if path is None:
        return None
    shapes = lambda t: str(jax.tree.map(lambda u: (u.shape, str(u.dtype)), t))
    label = {
        "theta": shapes(loop.like),
        "x": shapes(x0),
        "optimizer": optimizer.label,
        "inner solve": loop.inner.label,
        "rtol": "adaptive" if loop.rtol is None else repr(loop.rtol),
    }
    probes = {
        "theta0": loop.start,
        "bounds": np.stack([loop.box.lower, loop.box.upper]),
        "x0": jnp.stack([tree.norm(x0), tree.dot(x0, tree.random_like(x0, seed=5))]),
        "objective, outer function or data": probe(outer, problem, x0, tree.as_arrays(theta0)),
    }
    return Checkpoint(path, label, probes)


def _explain(
    error: BaseException, loop: Loop, outer: Callable, problem: Any, x0: Point, theta: Any
) -> None:
    """Say what does not fit, if nothing could be evaluated; else add the result so far."""
    result = loop.result()
    if result is not None:
        error.result = result  # pyright: ignore[reportAttributeAccessIssue]
        error.add_note("dargmin.bilevel: the result so far is on this error's `.result`.")
    elif isinstance(error, TypeError | ValueError | IndexError | KeyError | AttributeError):
        _check_functions(outer, problem, x0, theta)


def _check_functions(outer: Callable, problem: AbstractProblem, x0: Point, theta: Any) -> None:
    """Raise a ValueError that names x0, `outer` or the problem, whichever does not fit."""
    structure = lambda t: jax.tree.map(lambda u: u.shape, t)
    try:
        value = eqx.filter_eval_shape(outer, x0, theta)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(
            f"outer(x0, theta0) fails ({_first_line(error)}). outer takes (x, theta), with x like "
            f"x0, which has shape {structure(x0)}."
        ) from error
    shape, kind = getattr(value, "shape", None), getattr(value, "dtype", None)
    number = isinstance(value, int | float)
    if not number and (shape != () or kind is None or not jnp.issubdtype(kind, jnp.floating)):
        what = structure(value) if kind is None else f"{kind}{list(shape or ())}"
        raise ValueError(
            f"outer(x, theta) must return one real number, but returns {what}. Take a sum or a "
            "mean of what it returns."
        )
    try:
        residual = eqx.filter_eval_shape(_residual, problem, x0, theta)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(
            f"The problem cannot be evaluated at (x0, theta0) ({_first_line(error)}). Check the "
            f"shape of x0, {structure(x0)}, and of theta0, "
            f"{structure(eqx.filter(theta, eqx.is_array))}."
        ) from error
    if structure(residual) != structure(x0):
        raise ValueError(
            f"x0 has shape {structure(x0)}, but the problem's residual there has "
            f"{structure(residual)}. Give an x0 like the solution."
        )


def _residual(problem: AbstractProblem, x: Point, theta: Parameters) -> Point:
    return prepare(problem, x, theta).residual(x, theta)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
