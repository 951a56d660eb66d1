"""Implicit and Neumann: derivatives of the solution, by formulas at a frozen point."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dargmin import tree
from dargmin.linear import (
    AbstractLinearSolver,
    LinearOptions,
    smoothness,
    solve_linear,
    solve_linear_differentiably,
)
from dargmin.loop import Run, freeze
from dargmin.modes.base import AbstractMode, conclude, is_whole
from dargmin.problems import AbstractProblem, Composite, FixedPoint
from dargmin.problems.base import constant
from dargmin.solution import Solution
from dargmin.status import is_ok, poison
from dargmin.types import LinearMap, Parameters, Point


class AbstractFrozenMode(AbstractMode):
    """The derivative is a formula at x_T: x0 and the way there are constants."""

    @abstractmethod
    def attach(self, problem: AbstractProblem, x: Point, theta: Parameters, throw: bool) -> Point:
        """x with this mode's derivative in θ."""

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

    def attach(self, problem: AbstractProblem, x: Point, theta: Parameters, throw: bool) -> Point:
        x = jax.lax.stop_gradient(x)
        options = self.options.convert_closures(x)
        if not self.polish:
            return _implicit(problem, x, theta, (options, throw))
        frozen, constants = tree.stop_gradient((problem, theta))
        step = solve_linear(frozen, x, constants, frozen.residual(x, constants), options=options)
        corrected = tree.sub(x, poison(step.value, ~is_ok(step.info.status)))
        moving = _implicit(problem, corrected, theta, (options, throw))
        # The value of x_T with the derivatives, of every order, of x*(θ) at the corrected point.
        return tree.add(x, tree.sub(moving, jax.lax.stop_gradient(moving)))


@eqx.filter_custom_jvp
def _implicit(problem: AbstractProblem, x: Point, theta: Parameters, how: Any) -> Point:
    return x


@_implicit.def_jvp
def _implicit_jvp(primals: Any, tangents: Any) -> tuple[Point, Point]:
    """ẋ = -(∂ₓF)⁻¹ ∂_θF θ̇ at x*(θ), which is itself differentiated: hence all higher orders."""
    problem, x, theta, (options, throw) = primals
    x = _implicit(problem, x, theta, (options, throw))
    change = parameter_change(problem, x, theta, (tangents[0], tangents[2]))
    rhs = tree.scale(-1.0, change)
    dx = solve_linear_differentiably(problem, x, theta, rhs, options=options, throw=throw)
    return x, dx


class Neumann(AbstractFrozenMode):
    """dx = -Σ_{k<n} (I - h ∂ₓF)ᵏ h ∂_θF dθ at x_T: n terms of the Neumann series.

    The same derivative as n frozen steps of x - hF(x, θ), in O(d) memory; needs no symmetry, only
    that the step contracts.

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

    def attach(self, problem: AbstractProblem, x: Point, theta: Parameters, throw: bool) -> Point:
        x = jax.lax.stop_gradient(x)
        return _neumann(problem, x, theta, (self.terms, self._step(problem, x, theta)))

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
    problem, x, theta, (terms, step) = primals
    x = _neumann(problem, x, theta, (terms, step))
    change = parameter_change(problem, x, theta, (tangents[0], tangents[2]))
    _, jacobian = jax.linearize(lambda x: problem.residual(x, theta), x)

    def term(u: Point, _: None) -> tuple[Point, None]:
        return tree.axpy(-step, tree.add(jacobian(u), change), u), None

    return x, jax.lax.scan(term, tree.zeros_like(x), None, length=terms)[0]


def parameter_change(
    problem: AbstractProblem, x: Point, theta: Parameters, tangent: tuple[Any, Any]
) -> Point:
    """∂_θF(x, θ) θ̇, where all that the problem's functions close over counts as θ."""

    def residual(problem: AbstractProblem, theta: Parameters) -> Point:
        return problem.residual(x, theta)

    return tree.fill(eqx.filter_jvp(residual, (problem, theta), tangent)[1], x)
