"""∂ₓF u = r: the one linear solve behind every implicit derivative."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dargmin import tree
from dargmin.linear.auto import Auto, trivial
from dargmin.linear.lanes import in_every_lane
from dargmin.linear.matrix import Beside
from dargmin.linear.scaling import jacobi, scaling
from dargmin.linear.solution import (
    AbstractLinearSolver,
    LinearInfo,
    default_rtol,
    inconsistency,
)
from dargmin.problems import AbstractProblem, LinearSystem, Objective
from dargmin.problems.base import identity
from dargmin.status import Status, is_ok, poison
from dargmin.types import LinearMap, Parameters, Point


class LinearOptions(eqx.Module):
    """Which solver, which preconditioner v -> M⁻¹v (the diagonal of a Hessian if None, where it is
    known and pays), and to which relative residual."""

    solver: AbstractLinearSolver | None = None
    preconditioner: LinearMap | None = None
    rtol: float | Float[Array, ""] | None = None

    def convert_closures(self, x: Point) -> "LinearOptions":
        """The same, with all that the preconditioner closes over among the leaves, as constants
        of every derivative."""
        preconditioner = self.preconditioner
        if preconditioner is not None:
            preconditioner = eqx.filter_closure_convert(preconditioner, x)
        return tree.stop_gradient(LinearOptions(self.solver, preconditioner, self.rtol))

    @property
    def blocks(self) -> int | None:
        """Of how many independent systems the caller says that a symmetric one is made."""
        return self.solver.blocks if isinstance(self.solver, Auto) else None

    def scales(self, problem: AbstractProblem, x: Point) -> bool:
        """Whether the diagonal of the Hessian is to precondition: where it is declared, or no
        solver is asked for and there are so many coordinates that a Krylov solver may run."""
        if self.preconditioner is not None or not isinstance(problem, Objective):
            return False
        if problem.diagonal is not None:
            return True
        solver = Auto() if self.solver is None else self.solver
        return isinstance(solver, Auto) and not self.blocks and tree.size(x) > solver.small

    def beside(self, problem: AbstractProblem, x: Point, theta: Parameters) -> "LinearOptions":
        """The same, for a Hessian that is taken at x, which solves not quite: if the solver is one
        that asks for it, and no other choice was made."""
        solver = Auto() if self.solver is None else self.solver
        if not isinstance(problem, Objective) or not isinstance(solver, Auto):
            return self
        if not isinstance(solver.undetermined, float) or solver.undetermined != 0:
            return self
        problem, x, theta = tree.stop_gradient((problem, x, theta))
        beside = Beside.at(problem.residual(x, theta), x)
        return dataclasses.replace(self, solver=dataclasses.replace(solver, undetermined=beside))


class LinearSolution(eqx.Module):
    """u, the Krylov unknown w that a later, similar solve may start from, and how it went: with
    `doubt` and `null` for u."""

    value: Point
    unknown: Point
    info: LinearInfo


def solve_linear(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    rhs: Point,
    *,
    transpose: bool = False,
    start: Point | None = None,
    options: LinearOptions | None = None,
) -> LinearSolution:
    """u = (∂ₓF)⁻¹ r, or (∂ₓF)⁻ᵀ r, at (x, θ), with a report. Not differentiable.

    Parameters
    ----------
    problem : AbstractProblem
        Prepared (see `prepare`).
    x, theta : pytrees
        Where the Jacobian is taken.
    rhs : pytree like x
        r.
    transpose : bool
        Solve with the transposed Jacobian.
    start : pytree like x, optional
        The `unknown` of an earlier solve with the same `transpose`.
    options : LinearOptions, optional"""
    options = LinearOptions() if options is None else options
    problem, x, theta, rhs = tree.stop_gradient((problem, x, theta, rhs))
    system = problem.linear_system(x, theta)
    preconditioner = preconditioner_of(problem, x, theta, options, system)
    if transpose:
        system = system.transpose(x)
        preconditioner = _transposed(preconditioner, system, x)
    b = system.before(rhs)
    w, info = _normalised(
        system.operator, b, symmetric=system.symmetric, start=start,
        preconditioner=preconditioner, options=options,
    )  # fmt: skip
    if system.after is not identity:
        doubt, null = jax.vmap(system.after)(info.doubt), system.after(info.null)
        info = dataclasses.replace(info, doubt=doubt, null=null)
    return LinearSolution(tree.add(system.beside(rhs), system.after(w)), w, info)


def solve_linear_differentiably(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    rhs: Point,
    *,
    options: LinearOptions | None = None,
    throw: bool = True,
    sources: Callable[[], Point] | None = None,
) -> Point:
    """u = (∂ₓF)⁻¹ r, differentiable in everything, forward and reverse, any number of times.

    A solve that fails, this one or one of its derivatives, raises if `throw`, and gives NaN
    otherwise: never a finite wrong number.

    `sources` gives typical right-hand sides r, stacked along a new first axis. Where a singular
    system has solutions for all of them, their derivative exists, along the shortest way, and its
    transpose too: a cotangent w then counts by its part in the range of ∂ₓFᵀ, as wᵀ(∂ₓF)⁺r has no
    other."""
    options = LinearOptions() if options is None else options
    system = problem.linear_system(x, theta)
    preconditioner = preconditioner_of(problem, x, theta, options, system)
    # As one vector: `custom_linear_solve` cannot be transposed where some leaves move and some
    # do not.
    b, unravel = tree.ravel(system.before(rhs))

    def on_vectors(linear: LinearMap | None) -> LinearMap | None:
        return None if linear is None else lambda v: tree.ravel(linear(unravel(v)))[0]

    def in_range(info: LinearInfo) -> Bool[Array, ""]:
        """Whether all sources are orthogonal to a null vector of the transposed system."""
        assert sources is not None
        flat = lambda r: tree.ravel(system.before(r))[0]
        return orthogonal(jax.vmap(flat)(sources()), info)

    def solver(preconditioner: LinearMap | None, in_range: Any = None):
        def once(operator: LinearMap, b: Point) -> tuple[Point, LinearInfo]:
            return _normalised(
                operator, b, symmetric=system.symmetric, start=None,
                preconditioner=preconditioner, options=options,
            )  # fmt: skip

        def solve(operator: LinearMap, b: Point) -> Point:
            if in_range is None or tree.size(b) == 0:
                w, info = once(operator, b)
                status = info.status
            else:
                w, status = _forgiving(once, operator, b, in_range)
            if throw:
                return status.error_if(w, ~is_ok(status))
            return poison(w, ~is_ok(status))

        return solve

    vector = jax.lax.custom_linear_solve(
        lambda v: tree.ravel(system.operator(unravel(v)))[0],
        b,
        solve=solver(on_vectors(preconditioner)),
        transpose_solve=solver(
            on_vectors(_transposed(preconditioner, system, x)),
            None if sources is None else in_range,
        ),
        symmetric=system.symmetric,
    )
    w = unravel(vector)
    return tree.add(system.beside(rhs), system.after(w))


def orthogonal(sources: Float[Array, "count d"], info: LinearInfo) -> Bool[Array, ""]:
    """Whether ⟨r, n⟩ = 0 for every source r, for the null vector n of a solve, if it is not zero.

    Up to rounding: of the terms of ⟨r, n⟩, and of n itself, which every coordinate has in its own
    unit; `doubt` says how large these are."""
    null, doubt = info.null, info.doubt
    slack = inconsistency(null.dtype) if info.slack is None else info.slack
    length = jnp.linalg.norm(doubt, axis=1, keepdims=True)
    unit = jnp.max(jnp.abs(doubt) / jnp.where(length > 0, length, 1), axis=0)
    terms = jnp.abs(sources) @ (jnp.abs(null) + jnp.linalg.norm(null) * unit)
    small = jnp.abs(sources @ null) <= slack * terms
    return jnp.all(small) & jnp.any(null != 0)


def _forgiving(
    once: Callable, operator: LinearMap, b: Float[Array, " d"], in_range: Callable
) -> tuple[Float[Array, " d"], Any]:
    """K w = b by `once`; where that is inconsistent and `in_range` allows it, K w = b - r without
    the part r of b outside the range."""

    def attempt(carry: Any) -> Any:
        b, _, _, _, passes = carry
        w, info = once(operator, b)
        null = info.null
        along = jnp.dot(null, b) / jnp.maximum(jnp.dot(null, null), jnp.finfo(b.dtype).tiny)
        # A direct solver is through with the rest; an iterative one has stopped where it met n.
        outside = jnp.where(info.factorisations > 0, b - operator(w), along * null)
        candidate = (info.status == Status.inconsistent) & (passes == 0)
        again = jax.lax.cond(
            in_every_lane(~candidate),
            lambda: jnp.asarray(False),
            lambda: in_range(info),
        )
        return b - outside, w, info.status, candidate & again, passes + 1

    begin = b, jnp.zeros_like(b), Status.ok, jnp.asarray(True), jnp.asarray(0)
    _, w, status, _, _ = jax.lax.while_loop(lambda carry: carry[3], attempt, begin)
    return w, status


def _normalised(
    operator: LinearMap,
    b: Point,
    *,
    symmetric: bool,
    start: Point | None,
    preconditioner: LinearMap | None,
    options: LinearOptions,
) -> tuple[Point, LinearInfo]:
    """Solve with b scaled to norm one, so that tiny and huge right-hand sides are solved alike."""
    if tree.size(b) == 0:
        return trivial(b)
    # In two steps, so that squares neither overflow nor underflow.
    largest = tree.max_norm(b)
    usable = (largest > 0) & jnp.isfinite(largest)
    unit = jnp.where(usable, largest, 1)
    unit = unit * jnp.where(usable, tree.norm(tree.scale(1 / unit, b)), 1)
    solver = Auto() if options.solver is None else options.solver
    rtol = default_rtol(tree.dtype(b)) if options.rtol is None else options.rtol
    w, info = solver.solve(
        operator,
        tree.scale(1 / unit, b),
        symmetric=symmetric,
        start=None if start is None else tree.scale(jnp.where(usable, 1 / unit, 0), start),
        preconditioner=preconditioner,
        rtol=rtol,
    )
    return tree.scale(unit, w), dataclasses.replace(info, doubt=tree.scale(unit, info.doubt))


def preconditioner_of(
    problem: AbstractProblem,
    x: Point,
    theta: Parameters,
    options: LinearOptions,
    system: LinearSystem,
) -> LinearMap | None:
    """As given, or by the diagonal of the Hessian; a constant of every derivative."""
    if not options.scales(problem, x):
        return options.preconditioner
    return jacobi(scaling(problem, x, theta, system))


def _transposed(
    preconditioner: LinearMap | None, system: LinearSystem, like: Point
) -> LinearMap | None:
    if preconditioner is None or system.symmetric:
        return preconditioner
    transposed = jax.linear_transpose(preconditioner, like)
    return lambda v: transposed(v)[0]
