"""Kinks: whether a derivative jumps within reach of a point.

At a kink of F(·, θ), or of the derivative of F, x*(θ) may have no derivative, or one on each side.
No program shows where its kinks are, and so they are looked for along a few fixed lines: third
differences of what jumps do not shrink with the lines, and those of what is smooth do, with the
cube of their length."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from dargmin import tree
from dargmin.problems import AbstractProblem, Composite, Objective
from dargmin.problems.structure import piecewise
from dargmin.types import Parameters, Point

JUMP = 0.01
"""By which part of itself a derivative has to change."""

ROUNDING = 30
"""How many ε of its size a point may be off in any case."""

FITS = 4
"""Rounds in which units are fitted: the k-th takes the square root of how far they are off."""

ASIDE = 50
"""How many radii beside x rounding is measured, where there is no kink if there is one at x."""


def nonsmooth_within(
    problem: AbstractProblem, x: Point, theta: Parameters, radius: ArrayLike | Point
) -> Bool[Array, ""]:
    """Whether the residual F(·, θ) or its derivative jumps within three times `radius` of x.

    Where the program of F decides nothing by x, this is false and costs nothing. Elsewhere F and
    ∂F p are compared at four points of each of a few lines through x: along the diagonal, along
    signs, and along a random direction. A jump counts if it is a hundredth of ∂F p, or a tenth
    of what F changes by within the radius. False for a radius that is not finite.

    Parameters
    ----------
    problem : AbstractProblem
        Of an `Objective`, f and its own derivatives are looked at, and of a `Composite` also the
        prox (see `near_kink`).
    x, theta : pytrees
    radius : float, or pytree like x
        The estimated error of x: ‖x - x*‖, or |x - x*| for each coordinate. One number for all
        coordinates of an `Objective` is that of the largest, in units in which the rows of its
        Hessian are alike. At least rounding, 30 ε ‖x‖∞ in those units, is allowed for.

    Returns
    -------
    bool array, shape ()"""
    problem, x, theta, radius = tree.stop_gradient((problem, x, theta, radius))
    if isinstance(problem, Composite):
        at_prox = near_kink(problem, x, theta, _length(radius, x))
        if not piecewise(problem.smooth.residual, x, theta):
            return at_prox
        return at_prox | _jumps(problem, x, theta, radius)
    known = isinstance(problem, Objective) and bool(problem.quadratic)
    if known or tree.size(x) == 0 or not piecewise(problem.residual, x, theta):
        return jnp.asarray(False)
    return _jumps(problem, x, theta, radius)


def near_kink(
    problem: Composite, x: Point, theta: Parameters, distance: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether the derivative of the prox jumps within reach of v = x - h∇f(x).

    P = ∂prox is compared along one fixed direction at points around v. All coordinates are moved up
    and down, by three times the estimated error of v and at least its rounding, 30 ε ‖v‖∞: all by
    as much, by random signs, and by random parts of it; and they are scaled both ways by as much
    and at least by √ε. The kinks of separable penalties, boxes, groups and half-spaces lie across
    one of these moves."""
    problem, x, theta = tree.stop_gradient((problem, x, theta))
    v, unravel = tree.ravel(problem.forward(x, theta))
    if v.size == 0:
        return jnp.asarray(False)
    largest = jnp.max(jnp.abs(v))
    eps = jnp.asarray(jnp.finfo(v.dtype).eps, v.dtype)
    radius = jnp.maximum(3 * distance.astype(v.dtype), ROUNDING * eps * largest)
    outward = jnp.maximum(radius / jnp.where(largest > 0, largest, 1), jnp.sqrt(eps))
    moves = jnp.concatenate([radius * _random(v)[0], outward * v[None]])
    probe = tree.random_like(v, seed=1)

    def derivative(move: Float[Array, " d"]) -> Float[Array, " d"]:
        prox = lambda v: tree.ravel(problem.prox(unravel(v), theta, problem.step))[0]
        return jax.jvp(prox, (v + move,), (probe,))[1]

    there, back = jnp.split(jax.lax.map(derivative, jnp.concatenate([moves, -moves])), 2)
    return jnp.any(jnp.abs(there - back) > JUMP * jnp.abs(probe))


class _Lines(eqx.Module):
    """The points to look at, one after the other: x + reach ∘ (node u_line + aside p).

    The first ones are x itself: there, units are fitted to the Jacobian. Then come lines of four
    points, with the weights of a third difference; the last line passes x at a distance."""

    line: Int[Array, " points"]
    node: Float[Array, " points"]
    weight: Float[Array, " points"]
    aside: Float[Array, " points"]
    fit: Bool[Array, " points"]

    @classmethod
    def make(cls, count: int, kind: Any) -> "_Lines":
        third = np.array([(-1, -1), (-1 / 3, 3), (1 / 3, -3), (1, 1)])
        node, weight = np.tile(third, (count, 1)).T
        line, head = np.repeat(np.arange(count), 4), np.zeros(FITS)
        aside = np.where(line == count - 1, ASIDE, 0)
        join = lambda begin, rest: jnp.asarray(np.concatenate([begin, rest]), kind)
        return cls(
            line=jnp.asarray(np.concatenate([np.arange(FITS) % count, line])),
            node=join(head, node),
            weight=join(head, weight),
            aside=join(head, aside),
            fit=jnp.arange(FITS + line.size) < FITS,
        )


class _Seen(eqx.Module):
    """Units m of x, the third differences of F and ∂F p along each line, max |∂F p| and max |F|."""

    units: Float[Array, " d"]
    F: Float[Array, "lines d"]
    slope: Float[Array, "lines d"]
    scale: Float[Array, " d"]
    size: Float[Array, " d"]


def _jumps(
    problem: AbstractProblem, x: Point, theta: Parameters, radius: ArrayLike | Point
) -> Bool[Array, ""]:
    """Whether third differences of F, or of ∂F p, are more than what smooth change and rounding
    make of them.

    Of a jump δ they are δ or 2δ, of what is smooth (2 reach / 3)³ times the third derivative. Both
    are measured by ∂F p with p of the size of x's units, coordinate by coordinate. One program
    computes F and ∂F p, for all points."""
    at, unravel = tree.ravel(x)
    eps = jnp.asarray(jnp.finfo(at.dtype).eps, at.dtype)
    u, probes = _random(at)
    # the diagonal has length one; the line beside x is parallel to the second
    u = jnp.concatenate([u[:1] / at.size**0.5, u[1:], u[1:2]])
    fitted = isinstance(problem, Objective)

    def reach(units: Float[Array, " d"]) -> Float[Array, " d"]:
        return _reach(at, x, radius, units)

    def look(seen: _Seen, point: _Lines) -> tuple[_Seen, None]:
        units = seen.units
        offset = point.node * u[point.line] + point.aside * probes[0]
        where = jnp.where(point.fit, at, at + reach(units) * offset)
        p = probes[point.line]
        p = units * jnp.where(point.fit, jnp.sign(p), p)
        residual = lambda at: tree.ravel(problem.residual(unravel(at), theta))[0]
        if isinstance(problem, Objective):  # symmetric, and f may know no other way than back
            F, pull = jax.vjp(residual, where)
            (slope,) = pull(p)
        else:
            F, slope = jax.jvp(residual, (where,), (p,))
        better = _balanced(units, slope) if fitted else units
        F, slope = jnp.where(point.fit, 0, jnp.stack([F, slope]))
        return _Seen(
            units=jnp.where(point.fit, better, units),
            F=seen.F.at[point.line].add(point.weight * F),
            slope=seen.slope.at[point.line].add(point.weight * slope),
            scale=jnp.fmax(seen.scale, jnp.abs(slope)),
            size=jnp.fmax(seen.size, jnp.abs(F)),
        ), None

    none, nothing = jnp.zeros_like(at), jnp.zeros_like(u)
    start = _Seen(jnp.ones_like(at), nothing, nothing, none, none)
    seen, _ = jax.lax.scan(look, start, _Lines.make(len(u), at.dtype))
    units = seen.units
    largest = jnp.max(units * seen.scale)
    scale = jnp.maximum(seen.scale, 100 * eps * largest / units)
    t, size = jnp.max(reach(units) / units), jnp.max(jnp.abs(at) / units)
    enough = 0.1 * t + 10 * eps * size + 30 * _relative(seen.F[-1], scale)
    jump = jnp.abs(seen.F[:-1]) > enough * scale + 100 * eps * seen.size
    bend = jnp.abs(seen.slope[:-1]) > (JUMP + 10 * _relative(seen.slope[-1], scale)) * scale
    return jnp.isfinite(t) & (jnp.any(jump) | jnp.any(bend))


def _reach(
    at: Float[Array, " d"], x: Point, radius: ArrayLike | Point, units: Float[Array, " d"]
) -> Float[Array, " d"]:
    """Three times the radius, by how much each coordinate is moved; at least 30 ε ‖x‖∞, in the
    units and without them. Where x is zero, as if it were one."""
    size, plain = jnp.max(jnp.abs(at) / units), jnp.max(jnp.abs(at))
    eps = jnp.asarray(jnp.finfo(at.dtype).eps, at.dtype)
    least = ROUNDING * eps * jnp.where(size > 0, jnp.minimum(units * size, plain), units)
    if _is_like(radius, x):
        wide = jnp.abs(tree.ravel(tree.as_arrays(radius))[0])
    else:
        wide = jnp.asarray(radius, at.dtype) * units
    return jnp.maximum(3 * wide, least)


def _balanced(units: Float[Array, " d"], slope: Float[Array, " d"]) -> Float[Array, " d"]:
    """Units closer to those in which the rows of a symmetric J are alike, with the largest one:
    √(m / |J p|), for p of size m. Where J is zero there is no telling, and they are the largest."""
    ratio = units / jnp.abs(slope)
    known = jnp.isfinite(ratio)
    largest = jnp.max(jnp.where(known, ratio, 0))
    share = jnp.where(known, ratio, largest) / jnp.where(largest > 0, largest, 1)
    least = jnp.finfo(units.dtype).tiny ** 0.25
    return jnp.where(largest > 0, jnp.maximum(jnp.sqrt(share), least), 1)


def _relative(change: Float[Array, " d"], scale: Float[Array, " d"]) -> Float[Array, ""]:
    """The largest change / scale, of those that are known."""
    ratio = jnp.abs(change) / scale
    return jnp.max(jnp.where(jnp.isfinite(ratio), ratio, 0))


def _random(at: Float[Array, " d"]) -> tuple[Float[Array, "4 d"], Float[Array, "5 d"]]:
    """Directions, which are ones, signs twice, and numbers in [-1, 1]; and more such numbers.

    With this seed two coordinates part along the first signs and along the numbers."""
    drawn = tree.random_like(jnp.broadcast_to(at, (8, at.size)), seed=2)
    return jnp.concatenate([jnp.ones_like(drawn[:1]), jnp.sign(drawn[:2]), drawn[2:3]]), drawn[3:]


def _is_like(radius: Any, x: Point) -> bool:
    """Whether a radius is given for each coordinate."""
    if jax.tree.structure(radius) != jax.tree.structure(x):
        return False
    pairs = zip(jax.tree.leaves(radius), jax.tree.leaves(x), strict=True)
    return all(jnp.shape(r) == jnp.shape(u) for r, u in pairs)


def _length(radius: Any, x: Point) -> Float[Array, ""]:
    """One number for a radius that may be given for each coordinate."""
    kind = tree.dtype(x)
    if _is_like(radius, x):
        return tree.norm(tree.as_arrays(radius)).astype(kind)
    return jnp.asarray(radius, kind)
