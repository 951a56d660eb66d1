"""minimize: the outer loop, by certified hypergradients."""

import os
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from dargmin import tree
from dargmin.bilevel.box import Box
from dargmin.bilevel.checkpoint import Checkpoint
from dargmin.bilevel.inner import AbstractInner, FixedSteps, Refined, probe
from dargmin.bilevel.loop import BilevelSolution, Finished, Loop
from dargmin.bilevel.optimizers import as_optimizer
from dargmin.methods import AbstractMethod
from dargmin.modes import AbstractMode, Implicit
from dargmin.modes.base import is_whole
from dargmin.problems import AbstractProblem
from dargmin.solve import check_arguments
from dargmin.status import raise_if_failed
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
    descends. The loop ends after `steps`, or where θ is stationary: where the gradient, projected
    if there are bounds, has fallen to √ε of what it was. Ctrl-C is raised again, with the result
    so far as its attribute `result`.

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
        A file that is replaced after each step. If it is there, the loop goes on from it: exactly
        as if it had not been interrupted with optax, with an empty memory with L-BFGS-B.
    throw : bool
        Raise if the inner side fails or no direction of descent can be certified. If False, read
        `.status`. Either way the best θ so far is kept.

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
    inner = _inner(
        outer, problem, x0, fixed, method, mode, inner_steps, accuracy is None, warm_start
    )
    loop = Loop(
        inner, theta, fixed, box,
        steps=steps, rtol=accuracy, fraction=chosen.fraction, callback=callback,
    )  # fmt: skip
    loop.optimizer_state = chosen.init(theta)
    loop.save_to(_checkpoint(checkpoint, loop, chosen, outer, problem, x0, theta0), x0)
    try:
        loop.stop_if_finished()
        chosen.run(loop)
    except Finished:
        pass
    except KeyboardInterrupt as interrupt:
        interrupt.result = loop.result()  # pyright: ignore[reportAttributeAccessIssue]
        interrupt.add_note("dargmin.bilevel: the result so far is on this exception's `.result`.")
        raise
    finally:
        loop.display.close()
    result = loop.result()
    assert result is not None
    detail = f"{len(result.history)} outer evaluations, best value {result.value}."
    return raise_if_failed(result, detail=detail) if throw else result


def _inner(
    outer: Callable,
    problem: AbstractProblem,
    x0: Point,
    fixed: Any,
    method: AbstractMethod | None,
    mode: AbstractMode | None,
    inner_steps: int | None,
    adaptive: bool,
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
        return Refined(outer, problem, x0, fixed, method, mode, adaptive, warm_start)
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


def _checkpoint(
    path: Any, loop: Loop, optimizer: Any, outer: Callable, problem: Any, x0: Any, theta0: Any
) -> Checkpoint | None:
    if path is None:
        return None
    shapes = lambda t: str(jax.tree.map(lambda u: (u.shape, str(u.dtype)), t))
    label = {
        "theta": shapes(loop.like),
        "x": shapes(x0),
        "optimizer": type(optimizer).__name__,
        "inner solve": type(loop.inner).__name__,
    }
    return Checkpoint(path, label, probe(outer, problem, x0, tree.as_arrays(theta0)))
