"""diagnose: what unrolling does on this problem, why, and what to do instead."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.certificate import certify
from dargmin.checks import blames_arguments, check_theta
from dargmin.diagnosis import Diagnosis, Remedy
from dargmin.linear import hessian_spectrum, smoothness
from dargmin.loop import trace
from dargmin.methods import AbstractMethod, GradientDescent, Sobolev
from dargmin.modes import AbstractMode, Implicit, LateStart
from dargmin.problems import AbstractProblem, Composite, Objective
from dargmin.sensitivity import sensitivity
from dargmin.solve import check_arguments, solve
from dargmin.status import Status, describe, is_ok
from dargmin.theory import Prediction, budget_step_size, burn_in, predict
from dargmin.types import Parameters, Point

DIRECTIONS = 4
"""Up to that many parameters, all derivatives are traced; of more, so many random directions."""

_MOST_STORED = 2e9  # bytes of iterates and derivatives


@blames_arguments
def diagnose(
    problem: AbstractProblem,
    method: AbstractMethod,
    x0: Point,
    theta: Parameters,
    *,
    steps: int,
    tangent: Parameters | None = None,
    truth: tuple[Point, Point] | None = None,
    remedies: bool = True,
) -> Diagnosis:
    """Run the method, unroll its derivative, and say what happened, why, and what to do instead.

    Parameters
    ----------
    problem, method, x0, theta
        As in `solve`. Any method; where theory has no prediction for it, the diagnosis says so.
    steps : int, >= 1
        T.
    tangent : pytree like the floating leaves of theta, or with a leading axis, optional
        θ̇, or several. If None: every coordinate of a θ of up to 4 numbers, else 4 random
        directions.
    truth : (x*, dx*), optional
        The solution and its derivative (with the tangent's leading axis, if it has one), where
        they are known. Found by a certified implicit solve if None.
    remedies : bool
        Whether to try what could be done instead; each takes about another run.

    Returns
    -------
    Diagnosis
        `print` it, `.plot()` it, or take `.to_dataframe()`.

    Raises
    ------
    ValueError
        If an argument is off, or the traces would not fit into 2 GB."""
    check_arguments(problem, method, steps)
    x0, theta = tree.as_point(x0), tree.as_arrays(theta)
    problem = settled(problem, x0, theta)
    tangents, single = directions(theta, tangent)
    k = jax.tree.leaves(tangents)[0].shape[0]
    _check_memory(steps, tree.size(x0), k, tree.dtype(x0).itemsize)
    xs, dxs = _traces(problem, method, x0, theta, tangents, steps)
    last = jax.tree.map(lambda u: u[-1], xs)
    solution, derivatives, error, status = _truth(
        problem, x0, last, theta, tangents, truth, tangent
    )
    unit = float(jnp.linalg.norm(_norms(derivatives)))
    iterate = _distances(xs, solution) / float(tree.norm(tree.sub(x0, solution)) or 1)
    scale = unit if unit > 0 else 1.0
    judge = partial(_relative_error, derivatives=derivatives, scale=scale)
    derivative = np.linalg.norm([_distances(*p) for p in _each(dxs, derivatives)], axis=0) / scale
    notes = [] if unit > 0 else ["dx* = 0: errors of the derivative are absolute"]
    if not is_ok(status):
        notes.append(f"no truth to judge by: {describe(status)}")
    convex = _convexity(problem, last, theta)
    notes += [convex] if convex else []
    prediction = None
    if is_ok(status) and not convex:
        found = predict(
            problem, method, x0, theta, solution=solution, tangents=tangents,
            derivatives=derivatives, steps=steps,
        )  # fmt: skip
        if isinstance(found, str):
            notes.append(f"no prediction: {found}")
        else:
            prediction = _scaled(found, scale)
    times = sorted({0, steps, *np.geomspace(1, steps, 9).astype(int).tolist()})
    return Diagnosis(
        method=method,
        iterate_error=iterate,
        derivative_error=derivative,
        estimates=_estimates(problem, theta, tangents, xs, dxs, times, scale),
        burn_in=burn_in(np.nan_to_num(derivative, nan=np.inf, posinf=np.inf)),
        prediction=prediction,
        remedies=tuple(
            _remedies(problem, method, x0, last, theta, tangents, steps, prediction, judge)
        )
        if remedies and is_ok(status)
        else (),
        solution=solution,
        derivatives=derivatives,
        last=(last, jax.tree.map(lambda u: u[0, -1] if single else u[:, -1], dxs)),
        directions=k,
        truth_error=error,
        status=status,
        notes=tuple(notes),
    )


def settled(problem: AbstractProblem, x0: Point, theta: Parameters) -> AbstractProblem:
    """The problem with its step size, if it has one, estimated at x0, as `solve` does."""
    if not isinstance(problem, Composite) or problem.step_size is not None:
        return problem
    return dataclasses.replace(problem, step_size=1 / _smoothness(problem, x0, theta))


@eqx.filter_jit
def _smoothness(problem: Composite, x0: Point, theta: Parameters) -> Float[Array, ""]:
    return smoothness(problem, x0, theta)


@eqx.filter_jit
def _traces(
    problem: AbstractProblem, method: AbstractMethod, x0: Point, theta: Parameters,
    tangents: Parameters, steps: int,
) -> tuple[Point, Point]:  # fmt: skip
    """x_t, and dx_t for every direction, which is the leading axis."""
    along = partial(trace, problem, method, x0, theta, steps=steps)
    return jax.vmap(along, out_axes=(None, 0))(tangents)


def _convexity(problem: AbstractProblem, last: Point, theta: Parameters) -> str | None:
    """What is to be said where the method ended at no minimum."""
    if not isinstance(problem, Objective) or not bool(tree.all_finite(last)):
        return None
    spectrum = hessian_spectrum(problem, last, theta)
    if spectrum.status != Status.not_positive_definite:
        return None
    return (
        f"not convex at x_T, where the Hessian has the eigenvalue {float(spectrum.mu):.2g}: no "
        "prediction, and x* may be another minimum than the one that the method goes to"
    )


def _truth(
    problem: AbstractProblem, x0: Point, last: Point, theta: Parameters, tangents: Parameters,
    truth: tuple[Point, Point] | None, tangent: Parameters | None,
) -> tuple[Point, Point, float, Any]:  # fmt: skip
    if truth is not None:
        solution, derivatives = (tree.as_point(part, "truth") for part in truth)
        same = jax.tree.map(lambda d, u: d.ndim == u.ndim, derivatives, x0)
        if all(jax.tree.leaves(same)):
            derivatives = jax.tree.map(lambda d: d[None], derivatives)
        return solution, derivatives, 0.0, Status.ok
    start = tree.where(tree.all_finite(last), last, x0)
    rtol = 1e-8 if tree.dtype(x0) == jnp.float64 else 1e-3
    found = sensitivity(problem, start, theta, tangents, rtol=rtol, throw=False)
    errors = found.certificate.absolute_error
    total = float(jnp.linalg.norm(errors)) / (float(jnp.linalg.norm(_norms(found.tangent))) or 1.0)
    # Enough to judge errors of a percent by, whatever was asked for.
    missed = found.status == Status.accuracy_not_reached
    status = Status.ok if bool(missed) and total < 1e-3 else found.status
    return found.x, found.tangent, total, status


@eqx.filter_jit
def _certificates(
    problem: AbstractProblem, theta: Parameters, tangents: Parameters, xs: Point, dxs: Point
) -> Float[Array, "n k"]:
    one = lambda x, tangent, dx: certify(problem, x, theta, tangent=tangent, jvp=dx).absolute_error
    return jax.lax.map(lambda p: jax.vmap(partial(one, p[0]))(tangents, p[1]), (xs, dxs))


def _estimates(
    problem: AbstractProblem, theta: Parameters, tangents: Parameters, xs: Point, dxs: Point,
    times: list[int], scale: float,
) -> Float[np.ndarray, "n 2"]:  # fmt: skip
    at = jnp.asarray(times)
    points = jax.tree.map(lambda u: u[at], xs)
    values = jax.tree.map(lambda u: jnp.swapaxes(u[:, at], 0, 1), dxs)
    errors = np.linalg.norm(
        np.asarray(_certificates(problem, theta, tangents, points, values)), axis=1
    )
    return np.stack([np.asarray(times, float), errors / scale], axis=1)


def _remedies(
    problem: AbstractProblem, method: AbstractMethod, x0: Point, last: Point, theta: Parameters,
    tangents: Parameters, steps: int, prediction: Prediction | None, judge: Any,
) -> Iterator[Remedy]:  # fmt: skip
    dx, start = derivative_in_mode(
        problem, method, x0, theta, tangents, steps, LateStart(start="auto")
    )
    yield Remedy("late start", judge(dx), f"at K = {int(start)}, chosen from the iterates")
    dx, _ = _traces(problem, method, last, theta, tangents, steps)[1], None
    yield Remedy("warm start", judge(jax.tree.map(lambda u: u[:, -1], dx)), "x_0 = x_T of this run")
    if isinstance(problem, Objective) and prediction is not None:
        mu, L = prediction.mu, prediction.L
        if isinstance(method, GradientDescent):
            h = budget_step_size(mu, L, steps)
            dx = _traces(problem, GradientDescent(h), x0, theta, tangents, steps)[1]
            note = f"h = {float(h * L):.4g}/L, the best for T = {steps} in the worst case"
            yield Remedy("another step", judge(jax.tree.map(lambda u: u[:, -1], dx)), note)
        if not isinstance(method, Sobolev):
            dx = _traces(problem, Sobolev(mu, L), x0, theta, tangents, steps)[1]
            name = f"Sobolev({float(mu):.3g}, {float(L):.3g})"
            yield Remedy("Sobolev", judge(jax.tree.map(lambda u: u[:, -1], dx)), name)
    dx, _ = derivative_in_mode(problem, method, x0, theta, tangents, steps, Implicit())
    yield Remedy("implicit", judge(dx), "at the same x_T")
    dx, _ = derivative_in_mode(problem, method, x0, theta, tangents, steps, Implicit(polish=True))
    yield Remedy("implicit, polished", judge(dx), "at x_T after a Newton correction")


@eqx.filter_jit
def derivative_in_mode(
    problem: AbstractProblem, method: AbstractMethod, x0: Point, theta: Parameters,
    tangents: Parameters, steps: int, mode: AbstractMode,
) -> tuple[Point, Any]:  # fmt: skip
    """dx_T along every tangent, in forward mode, and where a late start began."""
    dynamic, static = eqx.partition(theta, eqx.is_inexact_array)

    def last_iterate(dynamic: Parameters) -> tuple[Point, Any]:
        theta = eqx.combine(dynamic, static)
        found = solve(problem, method, x0, theta, steps=steps, mode=mode, throw=False)
        return found.x, found.start

    along = lambda tangent: jax.jvp(last_iterate, (dynamic,), (tangent,), has_aux=True)[1:]
    dx, start = jax.vmap(along, out_axes=(0, None))(tangents)
    return dx, start


def directions(theta: Parameters, tangent: Parameters | None) -> tuple[Parameters, bool]:
    """θ̇ with a leading axis: as given, or the coordinates, or random; whether it had none."""
    check_theta(theta)
    like = eqx.filter(theta, eqx.is_inexact_array)
    if tangent is not None:
        given = eqx.filter(tree.as_arrays(tangent), eqx.is_inexact_array)
        pairs = list(zip(jax.tree.leaves(given), jax.tree.leaves(like), strict=True))
        if all(t.ndim == u.ndim for t, u in pairs):
            return jax.tree.map(lambda t: t[None], given), True
        return given, False
    flat, unravel = tree.ravel(like)
    if flat.size <= DIRECTIONS:
        return jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype)), False
    random = [tree.ravel(tree.random_like(like, seed=10 + i))[0] for i in range(DIRECTIONS)]
    return jax.vmap(unravel)(jnp.stack(random)), False


def _check_memory(steps: int, d: int, k: int, itemsize: int) -> None:
    needed = (steps + 1) * d * (k + 1) * itemsize
    if needed > _MOST_STORED:
        most = int(_MOST_STORED / (d * (k + 1) * itemsize)) - 1
        raise ValueError(
            f"diagnose keeps every iterate and {k} derivatives: {needed / 1e9:.1f} GB for "
            f"steps={steps}, d={d}. Lower steps to {most}, or give one tangent."
        )


def _relative_error(dx: Point, *, derivatives: Point, scale: float) -> float:
    return float(jnp.linalg.norm(_norms(tree.sub(dx, derivatives)))) / scale


def _norms(values: Point) -> Float[Array, " k"]:
    return jax.vmap(tree.norm)(values)


def _distances(values: Point, truth: Point) -> Float[np.ndarray, " times"]:
    return np.asarray(jax.vmap(lambda v: tree.norm(tree.sub(v, truth)))(values))


def _each(dxs: Point, derivatives: Point) -> Iterator[Any]:
    k = jax.tree.leaves(derivatives)[0].shape[0]
    return ((jax.tree.map(lambda u, i=i: u[i], t) for t in (dxs, derivatives)) for i in range(k))


def _scaled(p: Prediction, scale: float) -> Prediction:
    where = lambda p: (p.errors, p.bound, p.implicit)
    scaled = tuple(None if u is None else u / scale for u in where(p))
    return eqx.tree_at(where, p, scaled, is_leaf=lambda u: u is None)
