"""The only loops: frozen, and differentiated through with or without checkpoints."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dargmin import tree
from dargmin.linear import prepare
from dargmin.methods.base import AbstractMethod
from dargmin.problems import AbstractProblem
from dargmin.types import Parameters, Point


class Carry(eqx.Module):
    """Where a run stands: x_t, the method's state, t, ‖F‖ where it was last evaluated, and first;
    the length of the longest step, and how many of them moved x, so that they know of θ."""

    x: Point
    state: PyTree
    steps: Int[Array, ""]
    residual: Float[Array, ""]
    first: Float[Array, ""]
    longest: Float[Array, ""]
    moves: Int[Array, ""]


class Run(eqx.Module):
    """A method on a problem at one θ: `begin` and `step` are all that the loops need."""

    problem: AbstractProblem
    method: AbstractMethod
    theta: Parameters

    def begin(self, x0: Point) -> Carry:
        state = tree.as_arrays(self.method.init(self.problem, x0, self.theta))
        far = jnp.asarray(jnp.inf, tree.dtype(x0))
        none = jnp.asarray(0)
        return Carry(x0, state, none, far, far, jnp.zeros_like(far), none)

    def step(self, carry: Carry) -> Carry:
        x, state, residual = self.method.step(self.problem, carry.x, carry.state, self.theta)
        norm = tree.norm(jax.lax.stop_gradient(residual))
        first = jnp.where(carry.steps == 0, norm, carry.first)
        stays = self.method.stays(carry.x, carry.state, (x, state))
        moves = carry.moves + (~stays).astype(carry.moves.dtype)
        moved = tree.norm(tree.sub(*tree.stop_gradient((x, carry.x))))
        longest = jnp.maximum(carry.longest, moved)
        return Carry(x, tree.as_arrays(state), carry.steps + 1, norm, first, longest, moves)

    def refresh(self, carry: Carry) -> Carry:
        """The same carry, held constant but for what it carries of f at x: see the methods."""
        carry = tree.stop_gradient(carry)
        state = self.method.refresh(self.problem, carry.x, carry.state, self.theta)
        return dataclasses.replace(carry, state=state)


def repeat(unfinished: Any, body: Any, state: Any) -> Any:
    """`body`, as long as the state is `unfinished`: a `while_loop` over a state that may have other
    leaves than arrays, and whose arrays keep their dtypes, weak types dropped."""
    arrays, static = eqx.partition(state, eqx.is_array)
    end = jax.lax.while_loop(
        lambda a: unfinished(eqx.combine(a, static)),
        lambda a: tree.strong(eqx.filter(body(eqx.combine(a, static)), eqx.is_array)),
        tree.strong(arrays),
    )
    return eqx.combine(end, static)


def converged(carry: Carry, tol: Float[Array, ""] | None) -> Bool[Array, ""]:
    """Whether the run is over before its steps are: ‖F‖ ≤ tol, or NaN, from which none returns."""
    if tol is None:
        return jnp.asarray(False)
    return ~(carry.residual > tol)


def freeze(
    run: Run, carry: Carry, limit: int | Int[Array, ""], tol: Float[Array, ""] | None
) -> tuple[Carry, Carry]:
    """Run until `limit` steps are done or ‖F‖ ≤ tol, as a constant of every derivative.

    Returns
    -------
    (Carry, Carry)
        Where the run stands, and where it stood one step before."""
    run, carry, tol = tree.stop_gradient((run, carry, tol))

    def unfinished(carries: tuple[Carry, Carry]) -> Bool[Array, ""]:
        now, _ = carries
        return (now.steps < limit) & ~converged(now, tol)

    def advance(carries: tuple[Carry, Carry]) -> tuple[Carry, Carry]:
        now, _ = carries
        return run.step(now), now

    return repeat(unfinished, advance, (carry, carry))


SHARE = 1 / 8
"""How far from its last value the forcing may be where an automatic late start begins: on random
ridge problems, less begins later than is best, and more lets some burn-ins through."""


def late_start(run: Run, begin: Carry, end: Carry) -> Int[Array, ""]:
    """The first K from which on ‖c(x_k) - c(x_T)‖ <= ‖c(x_T)‖ / 8,  c(x) = ∂_θF(x, θ) θ̇.

    c is what drives the derivative: dx_{k+1} - dx_k has the part -h c(x_k). The bound of a late
    start at K falls from there on if M ‖x_K - x*‖ <= (1 - ρ) ‖dx*‖. Here the left side is measured
    against the last iterate instead of being bounded through the last step, and needs no ρ; the
    right side lies between ‖c‖ (1 - ρ) / (1 + ρ) and ‖c‖. θ̇ is a fixed pseudo-random direction.

    References
    ----------
    Mehmood, Knoll, Ochs (2026), arXiv:2602.19733, for the bound."""
    run, begin, end = tree.stop_gradient((run, begin, end))
    theta, rest = eqx.partition(run.theta, eqx.is_inexact_array)
    direction = tree.random_like(theta, seed=3)

    def forcing(x: Point) -> Point:
        along = lambda theta: run.problem.residual(x, eqx.combine(theta, rest))
        return jax.jvp(along, (theta,), (direction,))[1]

    target = forcing(end.x)
    allowed = SHARE * tree.norm(target)

    def unfinished(state: tuple[Carry, Any]) -> Bool[Array, ""]:
        return state[0].steps < end.steps

    def advance(state: tuple[Carry, Any]) -> tuple[Carry, Any]:
        now, start = state
        far = tree.norm(tree.sub(forcing(now.x), target)) > allowed
        return run.step(now), jnp.where(far, now.steps + 1, start)

    _, start = repeat(unfinished, advance, (begin, jnp.asarray(0)))
    return jnp.clip(start, 0, jnp.maximum(end.steps - 1, 0))


def unroll(
    run: Run,
    carry: Carry,
    steps: int,
    *,
    limit: Int[Array, ""] | None = None,
    tol: Float[Array, ""] | None = None,
    checkpoint: int | None = None,
) -> Carry:
    """Run `steps` steps differentiably, or fewer: until step `limit`, or until ‖F‖ ≤ tol.

    With `checkpoint=n` only every n-th carry is kept and the rest is computed again in reverse
    mode. What an early stop leaves over is masked, and skipped a whole segment at a time where
    there are segments. (A bare `cond` around each step would make reverse mode keep all that the
    branch closes over, data included, at every step.)"""
    template = carry

    def join(arrays: Any) -> Carry:
        return eqx.combine(arrays, eqx.filter(template, eqx.is_array, inverse=True))

    def finished(arrays: Any) -> Bool[Array, ""]:
        now = join(arrays)
        over = converged(now, tol)
        return over if limit is None else over | (now.steps >= limit)

    def advance(arrays: Any) -> Any:
        if limit is None and tol is None:
            return tree.strong(eqx.filter(run.step(join(arrays)), eqx.is_array))
        # A step that only fills up starts where the first one did: at the solution it may be
        # singular, and 0 · NaN in its derivative would pass the mask.
        over = finished(arrays)
        following = run.step(join(tree.where(over, harmless, arrays)))
        return tree.where(over, arrays, tree.strong(eqx.filter(following, eqx.is_array)))

    def segment(step: Any, arrays: Any, length: int) -> Any:
        return jax.lax.scan(lambda c, _: (step(c), None), arrays, None, length=length)[0]

    arrays = tree.strong(eqx.filter(carry, eqx.is_array))
    harmless = jax.lax.stop_gradient(arrays)
    if checkpoint is None:
        return join(segment(advance, arrays, steps))

    inner = jax.checkpoint(advance, prevent_cse=False)

    def block(length: int) -> Any:
        def go(arrays: Any) -> Any:
            return segment(inner, arrays, length)

        def go_unless_finished(arrays: Any) -> Any:
            return jax.lax.cond(finished(arrays), lambda a: a, go, arrays)

        maskable = limit is not None or tol is not None
        return jax.checkpoint(go_unless_finished if maskable else go, prevent_cse=False)

    blocks, rest = divmod(steps, checkpoint)
    if blocks:
        arrays = segment(block(checkpoint), arrays, blocks)
    if rest:
        arrays = block(rest)(arrays)
    return join(arrays)


def segment_length(steps: int, checkpoint: int | str | None) -> int | None:
    """The number of steps in a checkpointed segment: near √T, and a divisor of T where one is."""
    if checkpoint is None or isinstance(checkpoint, int):
        return checkpoint
    root = math.isqrt(steps - 1) + 1 if steps > 1 else 1
    near = range(max(root // 2, 1), min(2 * root, steps) + 1)
    divisors = [n for n in near if steps % n == 0]
    return min(divisors, key=lambda n: n + steps // n, default=root)


@eqx.filter_jit
def trace(
    problem: AbstractProblem,
    method: AbstractMethod,
    x0: Point,
    theta: Parameters,
    tangent: Parameters,
    *,
    steps: int,
) -> tuple[Point, Point]:
    """x_t and its derivative along θ̇, for t = 0..steps, by forward mode through the iterations.

    Parameters
    ----------
    problem, method
        As in `dargmin.solve`.
    x0, theta : pytrees
    tangent : pytree like the floating leaves of theta (None elsewhere)
        θ̇.
    steps : int, >= 1

    Returns
    -------
    (xs, dxs) : pytrees like x0, with a leading axis of length steps + 1"""
    x0, theta = tree.as_point(x0), tree.as_arrays(theta)
    problem = prepare(problem, x0, theta)
    method = tree.stop_gradient(method.prepare(problem, x0, theta))

    def iterates(theta: Parameters) -> Point:
        run = Run(problem, method, theta)
        carry = run.begin(x0)
        template = eqx.filter(carry, eqx.is_array, inverse=True)

        def advance(arrays: Any, _: None) -> tuple[Any, Point]:
            following = run.step(eqx.combine(arrays, template))
            return tree.strong(eqx.filter(following, eqx.is_array)), following.x

        _, xs = jax.lax.scan(
            advance, tree.strong(eqx.filter(carry, eqx.is_array)), None, length=steps
        )
        return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), x0, xs)

    xs, dxs = eqx.filter_jvp(iterates, (theta,), (tree.as_arrays(tangent),))
    return xs, tree.fill(dxs, xs)
