"""Methods that come from elsewhere: optax transformations and Optimistix solvers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jaxtyping import Array, Bool

from dargmin import tree
from dargmin.methods.base import AbstractMethod
from dargmin.problems import AbstractProblem, FixedPoint, Objective, Root
from dargmin.types import Parameters, Point


class FromOptax(AbstractMethod):
    """x_{t+1} = x_t + u_t, where u_t is what an optax transformation makes of ∇f(x_t, θ).

    Parameters
    ----------
    transformation : optax.GradientTransformation
        Any. Those with an inner loop (`optax.lbfgs`) cannot be unrolled in reverse mode: use
        `Implicit`. Unrolled Adam has an infinite derivative where a coordinate starts with zero
        gradient. Learning rates that it closes over are step sizes like any other: constants of
        the derivative, unless `Unrolled(hyperparameters=True)`."""

    transformation: Any = eqx.field(static=True)
    converted: tuple[Callable, Callable] | None = None  # init and step, closures among the leaves

    def __check_init__(self):
        if not isinstance(self.transformation, optax.GradientTransformation):
            raise ValueError(
                "FromOptax needs an optax.GradientTransformation such as optax.adam(1e-2), but "
                f"got {type(self.transformation).__name__}."
            )

    def prepare(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        # Some states begin with Python numbers, which a loop turns into arrays.
        init = lambda x: tree.strong(self.transformation.init(x))
        step = FromOptax(self.transformation).step
        converted = (
            eqx.filter_closure_convert(init, x),
            eqx.filter_closure_convert(step, problem, x, init(x), theta),
        )
        return FromOptax(self.transformation, converted)

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        if self.converted is not None:
            return self.converted[0](x)
        return tree.strong(self.transformation.init(x))

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        if self.converted is not None:
            return self.converted[1](problem, x, state, theta)
        extended = isinstance(self.transformation, optax.GradientTransformationExtraArgs)
        if extended and isinstance(problem, Objective):
            value, gradient = problem.value_and_residual(x, theta)
            extra: dict[str, Any] = dict(
                value=value, grad=gradient, value_fn=lambda x: problem.value(x, theta)
            )
        else:
            gradient, extra = problem.residual(x, theta), {}
        updates, state = self.transformation.update(gradient, state, x, **extra)
        return optax.apply_updates(x, updates), state, gradient


class FromOptimistix(AbstractMethod):
    """One step of an Optimistix solver: a minimiser for an `Objective`, a root finder for a `Root`,
    a fixed-point solver for a `FixedPoint`.

    Steps of BFGS and the like may be rejected trials, which leave x where it was. Where all that is
    differentiated was rejected, and with solvers that only compare values, the derivative is NaN.
    The residual is evaluated on top of each step. What the solver itself holds (a learning rate)
    is a constant of the derivative, unless `Unrolled(hyperparameters=True)`.

    Parameters
    ----------
    solver : optimistix solver
        Its own tolerances are not used: `tol` of `dargmin.solve` decides."""

    solver: Any

    _KINDS = (
        (Objective, optx.AbstractMinimiser, "minimiser such as optimistix.BFGS"),
        (Root, optx.AbstractRootFinder, "root finder such as optimistix.Newton"),
        (FixedPoint, optx.AbstractFixedPointSolver, "fixed-point solver"),
    )

    def prepare(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        for problem_kind, solver_kind, name in self._KINDS:
            if isinstance(problem, problem_kind):
                if isinstance(self.solver, solver_kind):
                    return self
                raise ValueError(
                    f"FromOptimistix on {problem_kind.__name__} needs a {name}, but got "
                    f"{type(self.solver).__name__}."
                )
        raise ValueError(
            f"FromOptimistix has no solver for {type(problem).__name__}: use ProximalGradient()."
        )

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        function = _as_optimistix(problem)
        struct, _ = jax.eval_shape(lambda: function(x, theta))
        return self.solver.init(function, x, theta, {}, struct, None, frozenset())

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        function = _as_optimistix(problem)
        x, state, _ = self.solver.step(function, x, theta, {}, state, frozenset())
        return x, state, problem.residual(x, theta)

    @property
    def lag(self) -> int:
        return 1 if found(self.solver, SEARCHING) else 0

    def stays(self, x: Point, state: Any, following: tuple[Point, Any]) -> Bool[Array, ""]:
        if found(self.solver, COMPARING):
            return jnp.asarray(True)
        if not may_reject(self.solver):
            return jnp.asarray(False)
        same = jax.tree.map(lambda u, v: jnp.all(u == v), x, following[0])
        return jnp.all(jnp.stack(jax.tree.leaves(same)))


# Solvers with a search: a step moves to the point that the step before it proposed, or rejects it.
SEARCHING = (optx.AbstractGradientDescent, optx.AbstractQuasiNewton, optx.AbstractGaussNewton)
COMPARING = (optx.NelderMead, optx.Bisection, optx.GoldenSearch)


def found(solver: Any, kinds: tuple[type, ...]) -> list[Any]:
    """The solvers of these kinds in an Optimistix solver, which may wrap another."""
    leaves = jax.tree.leaves(solver, is_leaf=lambda node: isinstance(node, kinds))
    return [node for node in leaves if isinstance(node, kinds)]


def may_reject(solver: Any) -> bool:
    """Whether a step may leave y where it is; a constant learning rate rejects nothing."""
    return any(not isinstance(s.search, optx.LearningRate) for s in found(solver, SEARCHING))


def _as_optimistix(problem: AbstractProblem) -> Any:
    """(y, args) -> (out, aux), as Optimistix has it."""
    if isinstance(problem, Objective):
        return lambda y, args: (jnp.asarray(problem.value(y, args)), None)
    if isinstance(problem, FixedPoint):
        return lambda y, args: (problem.image(y, args), None)
    return lambda y, args: (problem.residual(y, args), None)
