"""The inner side of the outer loop: the value and the certified hypergradient at one θ."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.accuracy import make_goal
from dargmin.hypergradient import (
    Hypergradient,
    WarmStart,
    hypergradient,
    hypergradient_in_mode,
)
from dargmin.linear import CG, Auto, BlockDense, Dense, prepare
from dargmin.methods import AbstractMethod
from dargmin.modes import AbstractMode, Implicit
from dargmin.problems import AbstractProblem, Composite, Objective
from dargmin.types import Parameters, Point

MOST_PAIRS = 30
MOST_NUMBERS = 2**22
"""In the directions of all pairs; as many again are in their products."""


class Evaluation(eqx.Module):
    """What is known at one θ: `theta` and `gradient` are floating leaves only, `error` is the
    certified absolute error of the gradient, `value_error` how far φ(x) may be from φ(x*), `terms`
    the size of what cancels in it (0 where it is not known), and costs that nobody counted are NaN.
    """

    theta: Any
    x: Point
    value: Float[Array, ""]
    gradient: Any
    error: Float[Array, ""]
    scale: Float[Array, ""]
    value_error: Float[Array, ""]
    terms: Float[Array, ""]
    status: Any
    inner_cost: Float[Array, ""]
    adjoint_cost: Float[Array, ""]
    effective_start: Float[Array, ""]


class AbstractInner(eqx.Module):
    """Evaluates at θ, and remembers what the next evaluation may start from."""

    @property
    @abstractmethod
    def refines(self) -> bool:
        """Whether it works until the accuracy asked for is reached."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What a resumed loop has to have in common with the one that was interrupted."""

    @abstractmethod
    def begin(self, theta: Any) -> Any:
        """The memory before the first evaluation."""

    @abstractmethod
    def at(self, theta: Any, memory: Any, rtol: float, atol: float) -> tuple[Evaluation, Any]:
        """The evaluation at θ, and the memory after it."""


class Memory(eqx.Module):
    """The warm start, and the two θ that its adjoints belong to."""

    warm: WarmStart
    theta: Any
    before: Any

    def aimed(self, theta: Any) -> WarmStart:
        """The warm start, extrapolated as far as the last step points to θ, at most once.

        The share a = ⟨θ - θ₁, θ₁ - θ₂⟩ / ‖θ₁ - θ₂‖² of 2 v₁ - v₂ is right for steps of any length;
        line searches make such steps."""
        last, coming = tree.sub(self.theta, self.before), tree.sub(theta, self.theta)
        squared = tree.dot(last, last)
        share = tree.dot(coming, last) / jnp.where(squared > 0, squared, 1)
        share = jnp.clip(jnp.where(jnp.isfinite(share), share, 0), 0, 1)
        change = tree.sub(self.warm.adjoint, self.warm.previous)
        previous = tree.axpy(-share, change, self.warm.adjoint)
        return eqx.tree_at(lambda w: w.previous, self.warm, previous)

    def following(self, warm: WarmStart, theta: Any) -> "Memory":
        """The memory after θ. A second look at the same θ replaces the first."""
        moved = tree.norm(tree.sub(theta, self.theta)) > 0
        kept = eqx.tree_at(lambda w: w.previous, warm, self.warm.previous)
        return tree.where(moved, Memory(warm, theta, self.theta), Memory(kept, theta, self.before))


class Refined(AbstractInner):
    """To the accuracy asked for, by `hypergradient`."""

    outer: Callable
    problem: AbstractProblem
    x0: Point
    fixed: Any  # the leaves of θ that are no floating arrays
    method: AbstractMethod | None
    mode: Implicit
    warm_start: bool = eqx.field(static=True)

    @property
    def refines(self) -> bool:
        return True

    @property
    def label(self) -> str:
        return f"to an accuracy, warm_start={self.warm_start}"

    def begin(self, theta: Any) -> Memory | None:
        if not self.warm_start:
            return None
        return Memory(WarmStart.zeros(self.x0, self._room()), theta, theta)

    def at(
        self, theta: Any, memory: Memory | None, rtol: float, atol: float
    ) -> tuple[Evaluation, Memory | None]:
        warm = None if memory is None else _aimed(memory, theta)
        h = hypergradient(
            self.outer, self.problem, self.x0, eqx.combine(theta, self.fixed),
            rtol=rtol, atol=atol, method=self.method, mode=self.mode, warm_start=warm, throw=False,
        )  # fmt: skip
        inner = h.cost.gradients + h.cost.products - h.cost.adjoint
        terms = jnp.zeros(())
        if h.warm_start is not None and self._iterates():
            whole = eqx.combine(theta, self.fixed)
            terms = _terms(self.problem, h.x, whole, h.warm_start.adjoint)
        found = _evaluation(h, theta, inner, h.cost.adjoint, jnp.nan, terms)
        if memory is None or h.warm_start is None:
            return found, None
        return found, _following(memory, h.warm_start, theta)

    def _iterates(self) -> bool:
        """Whether the adjoint is only as exact as it has to be, and what cancels is known."""
        d, solver = tree.size(self.x0), self.mode.linear_solver
        auto = Auto() if solver is None else solver
        direct = isinstance(auto, Dense | BlockDense)
        if isinstance(auto, Auto):
            direct = d <= auto.small * (auto.blocks or 1)
        return not direct and not isinstance(self.problem, Composite)

    def _room(self) -> int:
        """How many pairs of conjugate gradients are worth keeping."""
        d, solver = tree.size(self.x0), self.mode.linear_solver
        recycles = isinstance(solver, CG) or (solver is None and d > Auto().small)
        if not (recycles and isinstance(self.problem, Objective | Composite)):
            return 0
        return min(MOST_PAIRS, d, MOST_NUMBERS // d)


class FixedSteps(AbstractInner):
    """After a fixed number of inner steps, in any mode, by `solve` and `certify`."""

    outer: Callable
    problem: AbstractProblem
    x0: Point
    fixed: Any
    method: AbstractMethod
    mode: AbstractMode
    steps: int = eqx.field(static=True)
    warm_start: bool = eqx.field(static=True)

    @property
    def refines(self) -> bool:
        return False

    @property
    def label(self) -> str:
        return f"inner_steps={self.steps}, warm_start={self.warm_start}"

    def begin(self, theta: Any) -> Point:
        return self.x0

    def at(self, theta: Any, memory: Point, rtol: float, atol: float) -> tuple[Evaluation, Point]:
        whole = eqx.combine(theta, self.fixed)
        h = hypergradient_in_mode(
            self.outer, self.problem, memory, whole,
            make_goal(rtol, atol, self.steps, self.x0), self.method, self.mode,
        )  # fmt: skip
        start = jnp.asarray(jnp.nan)
        if self.warm_start:
            start = _effective_start(
                self.problem, self.x0, memory, whole, h.certificate.residual, self.steps
            )
        found = _evaluation(h, theta, h.cost.gradients, jnp.nan, start, jnp.zeros(()))
        return found, h.x if self.warm_start else self.x0


_aimed = eqx.filter_jit(Memory.aimed)
_following = eqx.filter_jit(Memory.following)


@eqx.filter_jit
def _effective_start(
    problem: AbstractProblem,
    cold: Point,
    warm: Point,
    theta: Parameters,
    end: Float[Array, ""],
    steps: int,
) -> Float[Array, ""]:
    """K = ln(e_cold / e_warm) / ln(1/ρ), with residuals for errors and ρ as observed on this run.

    An unrolled derivative from a warm start is the derivative of a run that began K steps earlier,
    with those K steps held constant."""
    problem = prepare(problem, warm, theta)
    e_cold, e_warm = (tree.norm(problem.residual(x, theta)) for x in (cold, warm))
    rate = jnp.log(e_warm / end) / steps
    return jnp.where(rate > 0, jnp.log(e_cold / e_warm) / rate, jnp.nan)


@eqx.filter_jit
def _terms(
    problem: AbstractProblem, x: Point, theta: Parameters, adjoint: Point
) -> Float[Array, ""]:
    """‖∂_θFᵀ v‖ for a random v as long as λ: what ∂_θFᵀ λ would be if nothing cancelled in it, as
    it does near an outer optimum. An error of λ does not cancel."""
    problem = prepare(problem, x, theta)
    dynamic, static = eqx.partition(theta, eqx.is_inexact_array)
    v = tree.random_like(x, seed=6)
    v = tree.scale(tree.norm(adjoint) / jnp.maximum(tree.norm(v), jnp.finfo(tree.dtype(x)).tiny), v)
    _, pullback = jax.vjp(lambda d: problem.residual(x, eqx.combine(d, static)), dynamic)
    return tree.norm(pullback(v)[0])


def _evaluation(
    h: Hypergradient, theta: Any, inner: Any, adjoint: Any, effective_start: Any, terms: Any
) -> Evaluation:
    kind = jnp.result_type(float)
    return Evaluation(
        theta=theta,
        x=h.x,
        value=h.value,
        gradient=h.gradient,
        error=h.certificate.absolute_error,
        scale=h.certificate.scale,
        value_error=_value_error(h),
        terms=terms,
        status=h.status,
        inner_cost=jnp.asarray(inner, kind),
        adjoint_cost=jnp.asarray(adjoint, kind),
        effective_start=jnp.asarray(effective_start, kind),
    )


def _value_error(h: Hypergradient) -> Float[Array, ""]:
    """‖λ‖ ‖F‖ ≥ |∇φᵀ (x - x*)| to first order, since F = ∂ₓF (x - x*) and ∂ₓFᵀ λ = ∇φ."""
    residual = h.certificate.residual
    return residual if h.warm_start is None else residual * tree.norm(h.warm_start.adjoint)


@eqx.filter_jit
def probe(outer: Callable, problem: AbstractProblem, x0: Point, theta: Parameters) -> Array:
    """‖F‖, one projection of F, and φ near x0: numbers by which a problem is known again."""
    x = tree.axpy(0.1, tree.random_like(x0, seed=3), x0)
    F = prepare(problem, x, theta).residual(x, theta)
    kind = jnp.result_type(float)
    value = jnp.asarray(outer(x, theta)).astype(kind)
    along = tree.dot(F, tree.random_like(F, seed=4)).astype(kind)
    return jnp.stack([tree.norm(F).astype(kind), along, value])
