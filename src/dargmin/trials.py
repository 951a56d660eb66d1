"""Trials: every candidate of a plan is run once, a program for each class of method."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dargmin import tree
from dargmin.linear import prepare
from dargmin.loop import Run, freeze
from dargmin.methods import AbstractMethod
from dargmin.modes import Implicit
from dargmin.problems import AbstractProblem
from dargmin.types import Parameters, Point


@dataclass(frozen=True)
class Trial:
    """What a method gave in T steps: relative errors of the derivative, inf where it diverged.

    Attributes
    ----------
    unrolled : array, shape (T,)
        Unrolled, after 1, ..., T steps.
    late, implicit, polished : float
        Started late, implicit at x_T, and implicit at the corrected x_T."""

    unrolled: Float[np.ndarray, " T"]
    late: float
    implicit: float
    polished: float


def run_trials(
    problem: AbstractProblem,
    methods: list[AbstractMethod],
    x0: Point,
    theta: Parameters,
    tangents: Parameters,
    derivatives: Point,
    steps: int,
    start: int,
) -> list[Trial]:
    """Run every method once, and its derivative along each tangent with it.

    Parameters
    ----------
    problem : AbstractProblem
        With its step size settled.
    methods : list of AbstractMethod
        Those that differ in numbers only (step sizes, momenta) share a program.
    x0, theta : pytrees
    tangents, derivatives : pytrees like the floating leaves of theta and like x0
        θ̇ and dx* = ∂x*(θ) θ̇, each with a leading axis of k.
    steps : int, >= 1
        T.
    start : int, in [0, T]
        The K of the late start.

    Returns
    -------
    list of Trial, in the order of the methods"""
    ends: dict[int, Any] = {}
    for members in _alike(methods):
        arrays = [eqx.filter(methods[i], eqx.is_array) for i in members]
        rest = eqx.filter(methods[members[0]], eqx.is_array, inverse=True)
        together = eqx.combine(jax.tree.map(lambda *u: jnp.stack(u), *arrays), rest)
        begin = jnp.full(len(members), start)
        found = _run(problem, together, begin, x0, theta, tangents, derivatives, steps)
        ends |= {i: jax.tree.map(lambda u, j=j: u[j], found) for j, i in enumerate(members)}
    order = range(len(methods))
    points = jax.tree.map(lambda *u: jnp.stack(u), *(ends[i][2] for i in order))
    implicit, polished = (
        np.asarray(_implicit(problem, points, theta, tangents, derivatives, polish))
        for polish in (False, True)
    )
    return [
        Trial(_known(ends[i][0]), *map(float, map(_known, (ends[i][1], implicit[i], polished[i]))))
        for i in order
    ]


def polished_error(
    problem: AbstractProblem,
    method: AbstractMethod,
    x0: Point,
    theta: Parameters,
    tangents: Parameters,
    derivatives: Point,
    steps: int,
) -> float:
    """The relative error of the implicit derivative at the corrected x_T; parameters as in
    `run_trials`."""
    x = _last(problem, method, x0, theta, steps)
    points = jax.tree.map(lambda u: u[None], x)
    return float(_known(_implicit(problem, points, theta, tangents, derivatives, True))[0])


def _known(error: Any) -> Float[np.ndarray, "..."]:
    """The error, infinite where it is not a number."""
    return np.where(np.isfinite(error), error, np.inf)


def _alike(methods: list[AbstractMethod]) -> Iterable[list[int]]:
    """The indices of methods that differ in numbers only, together."""
    groups: dict[Any, list[int]] = {}
    for i, method in enumerate(methods):
        leaves, structure = jax.tree.flatten(method)
        kind = tuple(u.shape if eqx.is_array(u) else id(u) for u in leaves)
        groups.setdefault((structure, kind), []).append(i)
    return groups.values()


@eqx.filter_jit
def _run(
    problem: AbstractProblem, methods: AbstractMethod, starts: Int[Array, " n"], x0: Point,
    theta: Parameters, tangents: Parameters, derivatives: Point, steps: int,
) -> Any:  # fmt: skip
    """For each method: the errors of dx_1, ..., dx_T, the error of the late dx_T, and x_T."""
    problem = prepare(problem, x0, theta)
    dynamic, static = eqx.partition(theta, eqx.is_inexact_array)
    still_tangents = jax.tree.map(jnp.zeros_like, tangents)
    twice = lambda a, b: jax.tree.map(lambda u, v: jnp.concatenate([u, v]), a, b)
    halves = lambda t: (jax.tree.map(lambda u, i=i: jnp.split(u, 2)[i], t) for i in (0, 1))

    stacked, rest = eqx.partition(methods, eqx.is_array)

    def one(arguments: tuple[Any, Array]) -> Any:
        numbers, start = arguments
        method = eqx.combine(numbers, rest)
        method = tree.stop_gradient(method.prepare(problem, x0, theta))
        run = lambda dynamic: Run(problem, method, eqx.combine(dynamic, static))
        template = eqx.filter(run(dynamic).begin(x0), eqx.is_array, inverse=True)

        def split(carry: Any) -> tuple[Any, Any]:
            """What moves with θ, and the counters, which do not."""
            arrays = tree.strong(eqx.filter(carry, eqx.is_array))
            return eqx.partition(arrays, eqx.is_inexact_array)

        def along(function: Any, primals: Any, motions: Any) -> Any:
            push = lambda motion: jax.jvp(function, primals, motion, has_aux=True)
            return jax.vmap(push, out_axes=(None, 0, None))(motions)

        def advance(state: Any, t: Array) -> Any:
            moving, counters, motion = state
            step = lambda m, dynamic: split(run(dynamic).step(eqx.combine(m, counters, template)))
            late = tree.where(t < start, still_tangents, tangents)
            moving, motion, counters = along(
                step, (moving, dynamic), (motion, twice(tangents, late))
            )
            unrolled, _ = halves(motion.x)
            return (moving, counters, motion), _error(unrolled, derivatives)

        begin = lambda dynamic: split(run(dynamic).begin(x0))
        late = tree.where(start > 0, still_tangents, tangents)
        moving, motion, counters = along(begin, (dynamic,), (twice(tangents, late),))
        (moving, _, motion), errors = jax.lax.scan(
            advance, (moving, counters, motion), jnp.arange(steps)
        )
        _, late = halves(motion.x)
        return errors, _error(late, derivatives), moving.x

    return jax.lax.map(one, (stacked, starts))


@eqx.filter_jit
def _last(
    problem: AbstractProblem, method: AbstractMethod, x0: Point, theta: Parameters, steps: int
) -> Point:
    """x_T."""
    problem = prepare(problem, x0, theta)
    run = Run(problem, method.prepare(problem, x0, theta), theta)
    return freeze(run, run.begin(x0), steps, None)[0].x


@eqx.filter_jit
def _implicit(
    problem: AbstractProblem, points: Point, theta: Parameters, tangents: Parameters,
    derivatives: Point, polish: bool,
) -> Float[Array, " n"]:  # fmt: skip
    """The error of the implicit derivative at each of the points, which may be far from x*."""
    dynamic, static = eqx.partition(theta, eqx.is_inexact_array)

    def one(x: Point) -> Float[Array, ""]:
        mode = Implicit(polish=polish)

        def at(dynamic: Parameters) -> Point:
            theta = eqx.combine(dynamic, static)
            return mode.attach(prepare(problem, x, theta), x, theta, False)

        along = lambda tangent: jax.jvp(at, (dynamic,), (tangent,))[1]
        return _error(jax.vmap(along)(tangents), derivatives)

    return jax.lax.map(one, points)


def _error(dx: Point, derivatives: Point) -> Float[Array, ""]:
    """‖dx - dx*‖ / ‖dx*‖ over all directions; absolute where dx* = 0."""
    scale = tree.norm(derivatives)
    return tree.norm(tree.sub(dx, derivatives)) / jnp.where(scale > 0, scale, 1)
