"""Implicit and Neumann: derivatives of the solution, by formulas at a frozen point."""

from abc import abstractmethod
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from dargmin import tree
from dargmin.linear import (
    AbstractLinearSolver,
    LinearOptions,
    LinearSolution,
    prepare,
    smoothness,
    solve_linear,
    solve_linear_differentiably,
)
from dargmin.loop import Run, freeze
from dargmin.modes.base import FAILED, AbstractMode, conclude, is_whole, no_derivative, withhold
from dargmin.problems import AbstractProblem, Composite, FixedPoint
from dargmin.problems.base import constant
from dargmin.solution import Solution
from dargmin.status import Status, describe, is_ok, poison
from dargmin.types import LinearMap, Parameters, Point


class AbstractFrozenMode(AbstractMode):
    """The derivative is a formula at x_T: x0 and the way there are constants."""

    @abstractmethod
    def attach(
        self,
        problem: AbstractProblem,
        x: Point,
        theta: Parameters,
        throw: bool,
        *,
        doubted: bool = False,
    ) -> Point:
        """x with this mode's derivative in θ; where x is `doubted`, only if it solves something."""

    def solve(
        self, run: Run, x0: Point, steps: int, tol: Float[Array, ""] | None, throw: bool
    ) -> Solution:
        carry, _ = freeze(run, run.begin(tree.stop_gradient(x0)), steps, tol)
        x = self.attach(run.problem, carry.x, run.theta, throw)
        return conclude(run, carry, tol, x)


class Implicit(AbstractFrozenMode):
    """dx = -(∂ₓF)⁻¹ ∂_θF dθ at x_T: the implicit function theorem.

    Parameters
    ----------
    linear_solver : AbstractLinearSolver, optional
        `dargmin.linear.CG()`, `Dense()`, `GMRES()`, `BiCGStab()`; chosen by structure and size
        if None.
    preconditioner : callable v -> M⁻¹v, optional
        Serves the transposed solve too. If None, the diagonal of an `Objective`'s Hessian: as
        declared, or, with the default solver and more than 64 coordinates, as its program shows it
        where its entries differ by more than a factor 10.
    polish : bool
        Take the derivative at the Newton-corrected x̂ = x_T - (∂ₓF)⁻¹F, where its error is the
        square of that at x_T. The value stays x_T.
    rtol : float, optional
        Relative residual of the linear solve; 1e-10 in float64, 1e-5 in float32 if None."""

    linear_solver: AbstractLinearSolver | None
    preconditioner: LinearMap | None
    polish: bool = eqx.field(static=True)
    rtol: Float[Array, "*batch"] | None

    def __init__(
        self,
        linear_solver: AbstractLinearSolver | None = None,
        preconditioner: LinearMap | None = None,
        polish: bool = False,
        rtol: ArrayLike | None = None,
    ):
        if linear_solver is not None and not isinstance(linear_solver, AbstractLinearSolver):
            raise ValueError(
                "Implicit(linear_solver=...) needs a solver of dargmin.linear, such as CG() or "
                f"GMRES(), but got {type(linear_solver).__name__}."
            )
        self.linear_solver, self.preconditioner = linear_solver, preconditioner
        self.polish, self.rtol = polish, constant(rtol)

    @property
    def options(self) -> LinearOptions:
        return LinearOptions(self.linear_solver, self.preconditioner, self.rtol)

    def attach(
        self,
        problem: AbstractProblem,
        x: Point,
        theta: Parameters,
        throw: bool,
        *,
        doubted: bool = False,
    ) -> Point:
        x = jax.lax.stop_gradient(x)
        options = self.options.convert_closures(x)
        if not self.polish:
            return _implicit(problem, x, theta, (options, throw, doubted))
        frozen, constants = tree.stop_gradient((problem, theta))
        step = _newton_step(frozen, x, constants, options)
        corrected = tree.sub(x, poison(step.value, ~is_ok(step.info.status)))
        moving = _implicit(problem, corrected, theta, (options, throw, False))
        if doubted:
            moving = withhold(moving, solves_nothing(x, step.value), NO_SOLUTION, throw)
        # The value of x_T with the derivatives, of every order, of x*(θ) at the corrected point.
        return tree.add(x, tree.sub(moving, jax.lax.stop_gradient(moving)))

    def reason(
        self,
        problem: AbstractProblem,
        x: Point,
        theta: Parameters,
        tangent: tuple[Any, Any] | None,
        cotangent: Point | None,
    ) -> str:
        problem, rhs = _right_hand_side(problem, x, theta, tangent, cotangent)
        options, transpose = self.options.convert_closures(x), cotangent is not None
        step = _newton_step(problem, x, theta, options)
        if bool(is_ok(step.info.status) & solves_nothing(x, step.value)):
            return NO_SOLUTION
        options = options.beside(problem, x, theta)
        info = solve_linear(problem, x, theta, rhs, transpose=transpose, options=options).info
        return FAILED if bool(is_ok(info.status)) else describe(info.status)


@eqx.filter_custom_jvp
def _implicit(problem: AbstractProblem, x: Point, theta: Parameters, how: Any) -> Point:
    return x


@_implicit.def_jvp
def _implicit_jvp(primals: Any, tangents: Any) -> tuple[Point, Point]:
    """ẋ = -(∂ₓF)⁻¹ ∂_θF θ̇ at x*(θ), which is itself differentiated: hence all higher orders."""
    problem, x, theta, (options, throw, doubted) = primals
    x = _implicit(problem, x, theta, (options, throw, doubted))
    change = parameter_change(problem, x, theta, (tangents[0], tangents[2]))
    rhs = tree.scale(-1.0, change)
    moving = jax.tree.map(jnp.zeros_like, (tangents[0], tangents[2]))
    sources = partial(_sources, tree.stop_gradient((problem, x, theta)), moving)
    dx = solve_linear_differentiably(
        problem, x, theta, rhs, options=options.beside(problem, x, theta), throw=throw,
        sources=sources,
    )  # fmt: skip
    if doubted:
        at, frozen, constants = tree.stop_gradient((x, problem, theta))
        step = _newton_step(frozen, at, constants, options)
        wrong = is_ok(step.info.status) & solves_nothing(at, step.value)
        dx = tree.scale(no_derivative(wrong, x, NO_SOLUTION, throw), dx)
    return x, dx


def _newton_step(
    problem: AbstractProblem, x: Point, theta: Parameters, options: LinearOptions
) -> LinearSolution:
    """(∂ₓF)⁻¹F, not differentiable."""
    options = options.beside(problem, x, theta)
    return solve_linear(problem, x, theta, problem.residual(x, theta), options=options)


def _sources(at: Any, moving: Any) -> Point:
    """∂_θF θ̇ for pseudo-random directions θ̇ of what moves, stacked along a new first axis: one for
    each leaf, which has its own units; or for up to 8 groups of leaves."""
    leaves, structure = jax.tree.flatten(moving)
    count = max(min(len(leaves), 8), 1)

    def alone(i: int, draw: Array) -> Array:
        mine = jnp.arange(count) == i % count
        return jnp.where(mine.reshape(-1, *[1] * draw.ndim), draw, jnp.zeros_like(draw))

    directions = [alone(i, draw) for i, draw in enumerate(tree.random_like(leaves, seed=6))]
    problem, x, theta = at
    along = lambda direction: parameter_change(problem, x, theta, direction)
    return jax.vmap(along, axis_size=count)(jax.tree.unflatten(structure, directions))


NO_SOLUTION = (
    "The point that was given solves nothing: the Newton correction of it is more than a tenth of "
    "its own length. Check that the solver has converged, that no bound or bracket stopped it, and "
    "that it solved this problem at this theta."
)


def solves_nothing(x: Point, correction: Point) -> Bool[Array, ""]:
    """Whether ‖(∂ₓF)⁻¹F‖ > ‖x‖ / 10: so far from x*, x is not even a loose solution.

    For x* near 0, where ‖x‖ sets no scale, ε^{1/4} is allowed."""
    least = jnp.asarray(jnp.finfo(tree.dtype(x)).eps, tree.dtype(x)) ** 0.25
    return tree.norm(correction) > jnp.maximum(0.1 * tree.norm(x), least)


def _right_hand_side(
    problem: AbstractProblem, x: Point, theta: Parameters, tangent: Any, cotangent: Point | None
) -> tuple[AbstractProblem, Point]:
    """The prepared problem, and ∂_θF θ̇ or the cotangent: what a linear solve is asked for."""
    prepared = prepare(problem, x, theta)
    if cotangent is not None:
        return prepared, cotangent
    residual = lambda problem, theta: prepare(problem, x, theta).residual(x, theta)
    return prepared, tree.fill(eqx.filter_jvp(residual, (problem, theta), tangent)[1], x)


class Neumann(AbstractFrozenMode):
    """dx = -Σ_{k<n} (I - h ∂ₓF)ᵏ h ∂_θF dθ at x_T: n terms of the Neumann series.

    The same derivative as n frozen steps of x - hF(x, θ), in O(d) memory; needs no symmetry, only
    that the step contracts. Where it does not, there is no derivative.

    Parameters
    ----------
    terms : int >= 1
        n.
    step_size : float, optional
        h. If None: 1 on a `FixedPoint`, the problem's own on a `Composite`, 1/L̂ on an `Objective`.

    References
    ----------
    Lorraine, Vicol, Duvenaud (2020), arXiv:1911.02590."""

    terms: int = eqx.field(static=True)
    step_size: Float[Array, "*batch"] | None

    def __init__(self, terms: int, step_size: ArrayLike | None = None):
        if not is_whole(terms, 1):
            raise ValueError(f"Neumann(terms={terms}) needs an integer terms >= 1.")
        self.terms, self.step_size = terms, constant(step_size)

    def attach(
        self,
        problem: AbstractProblem,
        x: Point,
        theta: Parameters,
        throw: bool,
        *,
        doubted: bool = False,
    ) -> Point:
        x = jax.lax.stop_gradient(x)
        how = (self.terms, self._step(problem, x, theta), throw, doubted)
        return _neumann(problem, x, theta, how)

    def reason(
        self,
        problem: AbstractProblem,
        x: Point,
        theta: Parameters,
        tangent: tuple[Any, Any] | None,
        cotangent: Point | None,
    ) -> str:
        problem = prepare(problem, x, theta)
        _, jacobian = jax.linearize(lambda x: problem.residual(x, theta), x)
        step = self._step(problem, x, theta)
        if bool(_grows(lambda u: tree.axpy(-step, jacobian(u), u), x, self.terms)):
            return str(Status[Status.diverged])
        size = tree.norm(problem.residual(x, theta))
        return FAILED if not bool(jnp.isfinite(size)) else NO_SOLUTION

    def _step(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Float[Array, ""]:
        step = self.step_size
        if step is None and isinstance(problem, Composite):
            step = problem.step
        elif step is None and isinstance(problem, FixedPoint):
            step = jnp.ones(())
        elif step is None:
            step = 1 / smoothness(problem, x, theta)
        return jax.lax.stop_gradient(jnp.asarray(step, tree.dtype(x)))


@eqx.filter_custom_jvp
def _neumann(problem: AbstractProblem, x: Point, theta: Parameters, how: Any) -> Point:
    return x


@_neumann.def_jvp
def _neumann_jvp(primals: Any, tangents: Any) -> tuple[Point, Point]:
    """u_{k+1} = u_k - h (∂ₓF u_k + ∂_θF θ̇), u_0 = 0, after n steps."""
    problem, x, theta, (terms, step, throw, doubted) = primals
    x = _neumann(problem, x, theta, (terms, step, throw, doubted))
    change = parameter_change(problem, x, theta, (tangents[0], tangents[2]))
    _, jacobian = jax.linearize(lambda x: problem.residual(x, theta), x)

    def series(change: Point) -> Point:
        def term(u: Point, _: None) -> tuple[Point, None]:
            return tree.axpy(-step, tree.add(jacobian(u), change), u), None

        return jax.lax.scan(term, tree.zeros_like(x), None, length=terms)[0]

    dx = series(change)
    growing = _grows(lambda u: tree.axpy(-step, jacobian(u), u), x, terms)
    dx = tree.scale(no_derivative(growing, x, str(Status[Status.diverged]), throw), dx)
    if doubted:
        at, F = tree.stop_gradient((x, problem.residual(x, theta)))
        wrong = solves_nothing(at, jax.lax.stop_gradient(series(F))) & ~growing
        dx = tree.scale(no_derivative(wrong, x, NO_SOLUTION, throw), dx)
    return x, dx


def _grows(linear: LinearMap, x: Point, terms: int) -> Bool[Array, ""]:
    """Whether ‖Mᵏv‖ still grows from k = n/2 to n, for a fixed pseudo-random v: the series of Mᵏ
    does not converge. n is the number of terms, but between 20 and 100."""
    half = min(max(terms, 20), 100) // 2

    def power(v: Point, _: None) -> tuple[Point, None]:
        return jax.lax.stop_gradient(linear(v)), None

    # What is not symmetric may grow at first: the first half is not counted.
    middle, _ = jax.lax.scan(power, tree.random_like(x, seed=5), None, length=half)
    end, _ = jax.lax.scan(power, middle, None, length=half)
    grown = tree.norm(end) > 1.001 * tree.norm(middle)
    return jax.lax.stop_gradient(grown | ~jnp.isfinite(tree.norm(end)))


def parameter_change(
    problem: AbstractProblem, x: Point, theta: Parameters, tangent: tuple[Any, Any]
) -> Point:
    """∂_θF(x, θ) θ̇, where all that the problem's functions close over counts as θ."""

    def residual(problem: AbstractProblem, theta: Parameters) -> Point:
        return problem.residual(x, theta)

    return tree.fill(eqx.filter_jvp(residual, (problem, theta), tangent)[1], x)
