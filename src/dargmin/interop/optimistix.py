"""The modes as Optimistix adjoints.

`optimistix.minimise(fn, solver, y0, args, adjoint=dargmin.interop.optimistix.LateStart(last=20))`,
and in the same way `fixed_point`, `root_find` and `least_squares`: Optimistix's value with the
derivative of the mode, forward and reverse, first and second. θ is `args` and whatever `fn` closes
over. The step N at which the solver stopped is a constant of every derivative."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import equinox as eqx
import optimistix as optx
from jaxtyping import Array, ArrayLike, PyTree

from dargmin import modes, tree
from dargmin.interop.loop import Loop, run, run_late, run_unrolled
from dargmin.linear import AbstractLinearSolver
from dargmin.methods.adapters import COMPARING, SEARCHING, found, may_reject
from dargmin.problems import AbstractProblem, FixedPoint, Objective, Root
from dargmin.solve import attach
from dargmin.types import LinearMap

__all__ = ["Implicit", "LateStart", "Neumann", "Unrolled"]

_KEEPING_THE_BEST = (
    optx.BestSoFarMinimiser,
    optx.BestSoFarLeastSquares,
    optx.BestSoFarRootFinder,
    optx.BestSoFarFixedPoint,
)


class Unrolled(optx.AbstractAdjoint):
    """d y_N / dθ, through every step of the solver, y0 included; see `dargmin.Unrolled`.

    The loop has to be bounded: give `max_steps`, which also fixes the memory. What the solver
    itself holds (a learning rate) is a constant unless `hyperparameters`."""

    mode: modes.Unrolled

    def __init__(self, checkpoint: int | str | None = None, hyperparameters: bool = False):
        self.mode = modes.Unrolled(checkpoint, hyperparameters)

    def apply(
        self, primal_fn: Callable, rewrite_fn: Callable, inputs: PyTree, tags: frozenset[object]
    ) -> PyTree:
        fn, solver, *rest = _checked(inputs)
        _refuse_comparing(self.mode, solver)
        if not self.mode.hyperparameters:
            solver = tree.stop_gradient(solver)

        def while_loop(cond: Callable, body: Callable, init: PyTree, *, max_steps: Any) -> PyTree:
            if max_steps is None:
                raise ValueError(
                    "Unrolled differentiates a loop of bounded length, but max_steps=None. Give "
                    "max_steps, or use LateStart(last=n), Implicit() or Neumann(terms=n)."
                )
            checkpoint = self.mode.checkpoint
            return run_unrolled(Loop(cond, body, max_steps), init, max_steps, checkpoint)

        return primal_fn((fn, solver, *rest, while_loop))


class LateStart(optx.AbstractAdjoint):
    """d y_N / dθ through the last steps only; see `dargmin.LateStart`.

    A first pass, which is not differentiated, finds N; a second one repeats the steps from K on.
    y0 and the solver's state at K are constants, and so is what the solver itself holds.

    - `last=n` works without `max_steps`, in O(n) memory. It means n updates: in solvers with a
      search (gradient descent, nonlinear CG, quasi-Newton, Gauss-Newton) a step moves to what the
      step before it proposed, so that n + 1 steps are repeated.
    - `start=K` needs `max_steps`. If the solver stops before, one update is differentiated.

    A search may reject what was proposed (BFGS does so before it stops). Where all that is
    differentiated was rejected, the derivative would be zero: asking for it raises instead."""

    mode: modes.LateStart

    def __init__(
        self,
        *,
        start: int | str | None = None,
        last: int | None = None,
        checkpoint: int | str | None = None,
    ):
        if start == "auto":
            raise ValueError(
                'LateStart(start="auto") looks at the iterates of a dargmin method, which an '
                "adjoint does not see. Give start=K or last=n; dargmin.diagnose finds a good K."
            )
        self.mode = modes.LateStart(start=start, last=last, checkpoint=checkpoint)

    def apply(
        self, primal_fn: Callable, rewrite_fn: Callable, inputs: PyTree, tags: frozenset[object]
    ) -> PyTree:
        fn, solver, *rest = _checked(inputs)
        _refuse_comparing(self.mode, solver)
        if best := found(solver, _KEEPING_THE_BEST):
            raise ValueError(
                f"LateStart makes no sense with {type(best[0]).__name__}, whose best point may lie "
                "before the start. Use the solver that it wraps, or Unrolled() or Implicit()."
            )

        def while_loop(cond: Callable, body: Callable, init: PyTree, *, max_steps: Any) -> PyTree:
            # What the body closes over, and may be differentiated, becomes a leaf of it.
            loop = Loop(cond, eqx.filter_closure_convert(body, init), max_steps)
            lag, rejects = (1 if found(solver, SEARCHING) else 0), may_reject(solver)
            return run_late(loop, tree.stop_gradient(init), self.mode, lag=lag, rejects=rejects)

        return primal_fn((fn, tree.stop_gradient(solver), *rest, while_loop))


class Neumann(optx.AbstractAdjoint):
    """dy = -Σ_{k<n} (I - h ∂_yF)ᵏ h ∂_θF dθ at y_N; see `dargmin.Neumann`.

    F is the gradient for `minimise` and `least_squares`, y - fn(y) for `fixed_point`, fn for
    `root_find` (where `step_size` has to be given, such that I - h ∂_yF contracts). y0, `aux`,
    `state` and `stats` are constants, as with `optimistix.ImplicitAdjoint`."""

    mode: modes.Neumann

    def __init__(self, terms: int, step_size: ArrayLike | None = None):
        self.mode = modes.Neumann(terms, step_size)

    def apply(
        self, primal_fn: Callable, rewrite_fn: Callable, inputs: PyTree, tags: frozenset[object]
    ) -> PyTree:
        return _attach(self.mode, primal_fn, inputs)


class Implicit(optx.AbstractAdjoint):
    """dy = -(∂_yF)⁻¹ ∂_θF dθ at y_N, or at the corrected ŷ; see `dargmin.Implicit`.

    F, and what is constant, as in `Neumann`. Unlike `optimistix.ImplicitAdjoint` it forms no large
    Jacobian, and checks the true residual of each linear solve. One that fails raises, also under
    `throw=False`, of which an adjoint hears nothing."""

    mode: modes.Implicit

    def __init__(
        self,
        linear_solver: AbstractLinearSolver | None = None,
        preconditioner: LinearMap | None = None,
        polish: bool = False,
        rtol: ArrayLike | None = None,
    ):
        self.mode = modes.Implicit(linear_solver, preconditioner, polish, rtol)

    def apply(
        self, primal_fn: Callable, rewrite_fn: Callable, inputs: PyTree, tags: frozenset[object]
    ) -> PyTree:
        return _attach(self.mode, primal_fn, inputs)


def _attach(mode: modes.AbstractFrozenMode, primal_fn: Callable, inputs: PyTree) -> PyTree:
    """What Optimistix computes, with the solution's derivative in this mode."""
    fn, solver, _, args, *_ = _checked(inputs)

    def while_loop(cond: Callable, body: Callable, init: PyTree, *, max_steps: Any) -> PyTree:
        return run(Loop(cond, body, max_steps), init)

    y, rest = primal_fn((*tree.stop_gradient(inputs), while_loop))
    # Optimistix has traced fn with the leaves of args that are no arrays as constants.
    theta, constants = eqx.partition(args, eqx.is_array)
    return attach(_problem(eqx.Partial(_call, fn, constants), solver), y, theta, mode), rest


def _problem(fn: Callable, solver: optx.AbstractIterativeSolver) -> AbstractProblem:
    """What a solver of this kind solves, given fn(y, theta) -> (out, aux)."""
    if isinstance(solver, optx.AbstractMinimiser):
        return Objective(fn, has_aux=True)
    if isinstance(solver, optx.AbstractLeastSquaresSolver):
        return Objective(eqx.Partial(_half_sum_of_squares, fn))
    out = eqx.Partial(_without_aux, fn)
    return FixedPoint(out) if isinstance(solver, optx.AbstractFixedPointSolver) else Root(out)


def _call(fn: Callable, constants: PyTree, y: PyTree, theta: PyTree) -> tuple[PyTree, PyTree]:
    return fn(y, eqx.combine(theta, constants))


def _without_aux(fn: Callable, y: PyTree, theta: PyTree) -> PyTree:
    return fn(y, theta)[0]


def _half_sum_of_squares(fn: Callable, y: PyTree, theta: PyTree) -> Array:
    residuals = _without_aux(fn, y, theta)
    return 0.5 * tree.dot(residuals, residuals)


def _refuse_comparing(mode: modes.AbstractMode, solver: Any) -> None:
    for comparing in found(solver, COMPARING):
        raise ValueError(
            f"{type(mode).__name__} makes no sense with {type(comparing).__name__}, which only "
            "compares values: every derivative of its steps is zero. Use Implicit()."
        )


def _checked(inputs: Any) -> tuple[Any, ...]:
    """(fn, solver, y0, args, ...): what Optimistix hands an adjoint, which no document says."""
    if len(inputs) < 4 or not isinstance(inputs[1], optx.AbstractIterativeSolver):
        raise RuntimeError(
            f"optimistix {version('optimistix')} hands its adjoints other inputs than "
            "(fn, solver, y0, args, ...), which optimistix 0.1 does. Install optimistix>=0.1,<0.2."
        )
    return inputs
