"""Optimistix's loop, run in ways that can be differentiated."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from dargmin import tree
from dargmin.loop import segment_length
from dargmin.modes import LateStart

State = tuple[Int[Array, ""], PyTree]  # the number t of steps done, and Optimistix's carry


class Loop(eqx.Module):
    """carry -> body(carry) while cond(carry), at most `max_steps` times."""

    cond: Callable
    body: Callable
    max_steps: int | None

    def runs(self, state: State) -> Bool[Array, ""]:
        steps, carry = state
        running = self.cond(carry)
        return running if self.max_steps is None else running & (steps < self.max_steps)

    def step(self, state: State) -> State:
        steps, carry = state
        # A step may return Python scalars and weak types; a carry keeps its types.
        like = lambda new, old: jnp.asarray(new, old.dtype)
        return steps + 1, jax.tree.map(like, self.body(carry), carry)


def first_state(init: PyTree) -> State:
    """t = 0, and the carry with its weak types made strong."""
    return jnp.zeros((), int), jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), init)


def run(loop: Loop, init: PyTree) -> PyTree:
    """The carry at N, not differentiable in reverse mode."""
    return jax.lax.while_loop(lambda s: loop.runs(s), lambda s: loop.step(s), first_state(init))[1]


def run_unrolled(loop: Loop, init: PyTree, max_steps: int, checkpoint: int | str | None) -> PyTree:
    """The carry at N, with the derivative of every step."""
    segment = segment_length(max_steps, checkpoint)
    return _repeat(loop.step, loop.runs, first_state(init), max_steps, segment)[1]


def run_late(loop: Loop, init: PyTree, mode: LateStart, *, lag: int, rejects: bool) -> PyTree:
    """The carry at N, with the derivative of the steps from K on.

    The frozen pass keeps two states on its way, such that K is not far from one of them.

    Parameters
    ----------
    loop : Loop
        All that is differentiated among its leaves.
    init : pytree
        The first carry, a constant. Its first entry is y.
    mode : LateStart
    lag : int
        How many steps in advance y is known.
    rejects : bool
        Whether a step may leave y where it is. If that is all that is differentiated, asking for
        the derivative raises."""
    frozen, begin = tree.stop_gradient(loop), first_state(init)
    count, kept, start_of = _window(mode, loop.max_steps, lag)

    def advance(states: tuple[State, State, State]) -> tuple[State, State, State]:
        now, newer, older = states
        keep = lambda: (now, newer)
        newer, older = jax.lax.cond(kept(now[0]), keep, lambda: (newer, older))
        return frozen.step(now), newer, older

    runs = lambda states: frozen.runs(states[0])
    (total, end), newer, older = jax.lax.while_loop(runs, advance, (begin, begin, begin))
    start = jnp.maximum(start_of(total), 0)
    late = tree.where(newer[0] <= start, newer, older)
    late = jax.lax.while_loop(lambda s: s[0] < start, lambda s: frozen.step(s), late)
    # By number, not by `cond`: rounding must not stop the second pass elsewhere.
    remains = lambda state: state[0] < total
    segment = segment_length(count, mode.checkpoint)
    _, replay = _repeat(loop.step, remains, late, count, segment)
    moved = _moves(frozen, late, total) > lag if rejects else jnp.asarray(True)
    arrays, rest = eqx.partition(end, eqx.is_inexact_array)
    replay = eqx.filter(replay, eqx.is_inexact_array)
    return eqx.combine(_with_derivative_of(arrays, replay, moved), rest)


def _repeat(
    step: Callable[[State], State],
    runs: Callable[[State], Bool[Array, ""]],
    state: State,
    count: int,
    segment: int | None,
) -> State:
    """`step` while `runs`, at most `count` times; reverse mode keeps every `segment`-th state.

    Steps that are left over are masked, whole segments of them skipped. They are taken from the
    first state: at the last one a step may be 0/0, whose derivative no mask can hide."""
    harmless = tree.stop_gradient(state)

    def masked(state: State, _: None) -> tuple[State, None]:
        on = runs(state)
        return tree.where(on, step(tree.where(on, state, harmless)), state), None

    if segment is None:
        return jax.lax.scan(masked, state, length=count)[0]
    inner = jax.checkpoint(masked, prevent_cse=False)

    def run_segment(state: State) -> State:
        return jax.lax.scan(inner, state, length=segment)[0]

    def run_or_skip(state: State, _: None) -> tuple[State, None]:
        return jax.lax.cond(runs(state), run_segment, lambda state: state, state), None

    outer = jax.checkpoint(run_or_skip, prevent_cse=False)
    return jax.lax.scan(outer, state, length=-(-count // segment))[0]


def _window(
    mode: LateStart, max_steps: int | None, lag: int
) -> tuple[int, Callable[[Array], Array], Callable[[Array], Array]]:
    """How many steps are differentiated at most, whether the state at t is kept, and N -> K."""
    if mode.last is not None:
        if max_steps is not None and mode.last > max_steps:
            raise ValueError(
                f"LateStart(last={mode.last}) needs 1 <= last <= max_steps, but "
                f"max_steps={max_steps}. Raise `max_steps` or lower `last`."
            )
        count = mode.last + lag
        return count, lambda t: t % count == 0, lambda total: total - count
    start = mode.start
    if not isinstance(start, int) or max_steps is None or start >= max_steps:
        raise ValueError(
            f"LateStart(start={start}) needs start < max_steps, but max_steps={max_steps}. "
            "Raise `max_steps` or lower `start`; LateStart(last=n) works without `max_steps`."
        )
    # At least one update is differentiated, wherever the solver stops.
    start_of = lambda total: jnp.minimum(start, total - 1 - lag)
    return max(max_steps - start, 1 + lag), lambda t: t <= start, start_of


def _moves(frozen: Loop, late: State, total: Int[Array, ""]) -> Int[Array, ""]:
    """How many late steps move y. The first that does goes where it was sent before, to a point
    that is held constant: θ is in y only if more steps move it than y is known in advance."""

    def advance(states: tuple[State, Array]) -> tuple[State, Array]:
        now, moves = states
        following = frozen.step(now)
        same = jax.tree.map(lambda u, v: jnp.all(u == v), following[1][0], now[1][0])
        moved = ~jnp.all(jnp.stack(jax.tree.leaves(same)))
        return following, moves + moved.astype(moves.dtype)

    return jax.lax.while_loop(lambda s: s[0][0] < total, advance, (late, jnp.asarray(0)))[1]


@jax.custom_jvp
def _with_derivative_of(value: PyTree, replay: PyTree, moved: Bool[Array, ""]) -> PyTree:
    """`value` to the last bit, with the derivative of `replay`, which is not run without need."""
    return value


@_with_derivative_of.defjvp
def _with_derivative_of_jvp(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
    value = _with_derivative_of(*primals)
    one = eqx.error_if(
        jnp.ones(()),
        ~primals[2],
        "LateStart: the search rejected every step that is differentiated, so that the derivative "
        "would be exactly zero. Use Implicit(), or raise `last` (lower `start`).",
    )
    return value, tree.scale(one, tangents[1])
