"""The promise, on inputs that have broken it.

`ok` means: the derivative is right within what was asked, and the estimate covers its error. Where
it is not ok, an infinite error stands beside NaN, and a finite derivative beside an estimate that
covers it. Rows with `must` are problems that have an answer in their precision: flagging them is
no way out. Truth comes from closed forms, NumPy, and finite differences (oracle.py)."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import xlogy
from jax.tree_util import Partial
from oracle import difference, distance, flat, wide

import dargmin
from dargmin import Composite, FixedPoint, GradientDescent, Objective, Root, Status, Unrolled, prox
from dargmin.problems import zoo

ROUNDING = 1e-9  # of the oracles, relative


def assert_promise(derivative, certificate, truth, rtol=1e-3, must=False, oracle=ROUNDING):
    """`truth` is None where there is no derivative."""
    ok, error = bool(certificate.ok), float(certificate.error)
    said = Status[certificate.status]
    assert ok or not must, said
    if not ok and np.all(np.isnan(flat(derivative))):
        return
    assert np.isfinite(error), f"a number without an estimate: {derivative} ({said})"
    if truth is None:
        assert not ok, f"there is no derivative, but {derivative} is ok"
        return
    off = distance(derivative, truth)
    if ok:
        assert off <= 3 * rtol + oracle, f"ok, but off by {off:.2g} ({error:.2g} estimated)"
    assert off <= 3 * error + oracle, f"off by {off:.2g}, but {error:.2g} estimated ({said})"


def assert_hypergradient(outer, problem, x0, theta, truth, rtol=1e-3, must=False, **how):
    h = dargmin.hypergradient(outer, problem, x0, theta, rtol=rtol, throw=False, **how)
    assert_promise(h.gradient, h.certificate, truth, rtol, must)
    return h


def assert_sensitivity(problem, x0, theta, tangent, truth, rtol=1e-3, must=False, **how):
    s = dargmin.sensitivity(problem, x0, theta, tangent, rtol=rtol, throw=False, **how)
    assert_promise(s.tangent, s.certificate, truth, rtol, must)
    return s


def assert_certified(certificate, true, must=False, floor=1e-6):
    """The estimate lies between a third of the true error and ten times it."""
    assert certificate.ok or not must, Status[certificate.status]
    if certificate.ok:
        assert true / 3 <= certificate.error + floor, f"{certificate.error} of a true {true}"
        assert certificate.error <= 10 * true + floor, f"{certificate.error} of a true {true}"


def coordinate(x, theta):
    """φ(x, θ) = x₀, or x."""
    return jnp.reshape(x, -1)[0]


def total(x, theta):
    """φ(x, θ) = Σ x."""
    return jnp.sum(x)


def half_square(x, theta):
    """φ(x, θ) = ½‖x‖²."""
    return 0.5 * jnp.sum(jnp.square(x))


# ---- kinks ---------------------------------------------------------------------------------------


def absolute(x, t):
    return 0.5 * jnp.sum((x - t) ** 2) + jnp.sum(jnp.abs(x))


def hinge(x, t):
    return 0.5 * jnp.sum((x - t) ** 2) + jnp.sum(jnp.maximum(0.0, 1 - x))


def by_cases(x, t):
    return 0.5 * jnp.sum((x - t) ** 2) + jnp.sum(jnp.where(x > 0, x, -x))


def largest(x, t):
    """Its solution has x₀ = x₁ where t₀ is close to t₁."""
    return 0.5 * jnp.sum((x - t) ** 2) + jnp.max(x)


@pytest.mark.parametrize(
    ("f", "t", "x", "tangent", "truth"),
    [
        (absolute, (100.0, 0.5), (99.0, 0.0), (0.0, 1.0), (0.0, 0.0)),
        (hinge, (100.0, 0.5), (100.0, 1.0), (0.0, 1.0), (0.0, 0.0)),
        (by_cases, (100.0, -0.5), (99.0, 0.0), (0.0, 1.0), (0.0, 0.0)),
        (largest, (1.0, 0.8), (0.4, 0.4), (0.0, 1.0), (0.5, 0.5)),
        (absolute, (100.0, 3.0), (99.0, 2.0), (0.0, 1.0), (0.0, 1.0)),
    ],
    ids=["abs", "hinge", "where", "max", "beside the kink"],
)
def test_a_kink_of_an_objective_is_followed_or_flagged(f, t, x, tangent, truth):
    s = assert_sensitivity(Objective(f), jnp.zeros(2), jnp.array(t), jnp.array(tangent), truth)
    if s.ok:
        np.testing.assert_allclose(s.x, x, atol=1e-6)


def test_kinks_away_from_the_solution_are_in_nobodys_way():
    start, t = jnp.array([50.0, 1.0]), jnp.array([100.0, 3.0])
    assert_sensitivity(Objective(absolute), start, t, jnp.array([0.0, 1.0]), (0.0, 1.0), must=True)


def one_sided(x, t):
    return jnp.sum(jnp.maximum(0.0, x) ** 2 + 0.05 * x**2 - t * x)


@pytest.mark.parametrize("start", [0.0, 1.0, -1.0])
def test_a_solution_where_the_curvature_jumps_has_no_derivative(start):
    # x* is t / 2.1 on one side of t = 0 and t / 0.1 on the other
    assert_sensitivity(Objective(one_sided), jnp.full(1, start), 0.0, 1.0, None)


def apart(x, t):
    return 0.5 * jnp.sum((x - t) ** 2)


def ordered(v, theta, step):
    """The projection on {x₀ <= x₁}."""
    return jnp.where(v[0] > v[1], jnp.mean(v) * jnp.ones(2), v)


@pytest.mark.parametrize(
    ("t", "truth", "must"),
    [
        ((1.0, 1.0), None, False),  # on the edge: the derivative is one-sided
        ((1.0, 0.0), (0.5, 0.5), True),
        ((0.0, 1.0), (1.0, 0.0), True),
    ],
    ids=["on the edge", "outside", "inside"],
)
def test_a_projection_on_an_edge_is_one_sided(t, truth, must):
    assert_sensitivity(
        Composite(apart, ordered), jnp.zeros(2), jnp.array(t), jnp.array([1.0, 0.0]), truth,
        must=must,
    )  # fmt: skip


# ---- directions that a residual does not see -----------------------------------------------------


def reflected(H, r, b, x, t):
    """½ xᵀ(R diag(H) R)x - bᵀx + ½ eᵗ ‖x‖², with the reflection R of r."""
    Rx = x - r * (2 * (r @ x) / (r @ r))
    return 0.5 * jnp.sum(H * Rx**2) - b @ x + 0.5 * jnp.exp(t) * jnp.sum(x**2)


def along(q, x, theta):
    """φ(x, θ) = qᵀx."""
    return q @ x


@pytest.mark.parametrize("d", [66, pytest.param(300, marks=pytest.mark.slow)])
def test_a_hypergradient_that_cancels_to_a_thousandth_is_still_right(d):
    rng = np.random.default_rng(d)
    H, r, b, q = np.geomspace(1, 1e-4, d), *rng.normal(size=(3, d))
    R = np.eye(d) - 2 * np.outer(r, r) / (r @ r)
    inverse = R @ np.diag(1 / (H + np.exp(-7.0))) @ R
    change = -np.exp(-7.0) * inverse @ inverse @ b
    unit = change / np.linalg.norm(change)
    q = q - (q @ unit) * unit
    q = q / np.linalg.norm(q) + 1e-3 * unit
    problem = Objective(Partial(reflected, *map(jnp.asarray, (H, r, b))))
    assert_hypergradient(
        Partial(along, jnp.asarray(q)), problem, jnp.zeros(d), -7.0, q @ change, rtol=1e-1
    )


def nearly_flat(u, b, low, x, theta):
    """½ xᵀ(I - (1 - λ) uuᵀ)x - θ bᵀx: one eigenvalue λ, the others 1."""
    return 0.5 * (x @ x - (1 - low) * (u @ x) ** 2) - theta * (b @ x)


def nearly_still(u, b, low, x, theta):
    """(1 - λ) uuᵀx + θb."""
    return (1 - low) * u * (u @ x) + theta * b


def hidden(d, low, c):
    """u, b = w + c u with a unit w ⟂ u, and the solution w + (c / λ) u at θ = 1."""
    u, w = np.ones(d) / np.sqrt(d), np.random.default_rng(d).normal(size=d)
    w = w - (u @ w) * u
    w = w / np.linalg.norm(w)
    return tuple(map(jnp.asarray, (u, w + c * u, low))), w + c / low * u


def test_a_slow_direction_that_hides_in_the_residual_is_found():
    data, x = hidden(66, 1e-6, 3e-7)
    problem = Objective(Partial(nearly_flat, *data))
    assert_hypergradient(half_square, problem, jnp.zeros(66), 1.0, x @ x, rtol=1e-2)
    assert_sensitivity(problem, jnp.zeros(66), 1.0, 1.0, x, rtol=1e-2)


@pytest.mark.slow
def test_a_slow_direction_that_hides_from_a_fixed_point_is_found():
    data, x = hidden(100, 1e-4, 1e-5)
    problem = FixedPoint(Partial(nearly_still, *data))
    assert_sensitivity(problem, jnp.zeros(100), 1.0, 1.0, x, rtol=1e-2)


# ---- units ---------------------------------------------------------------------------------------


def in_units(q, x, t):
    return jnp.sum(0.5 * (q * x) ** 2 - q * x * t)


@pytest.mark.parametrize(("kind", "unit"), [(np.float64, 1e-9), (np.float32, 1e-5)])
def test_the_units_of_the_unknowns_change_nothing(kind, unit):
    q, x0 = jnp.array([1.0, unit], kind), jnp.zeros(2, kind)
    problem, t = Objective(Partial(in_units, q)), jnp.ones(2, kind)
    tangents = np.array([[1, 1], [1, 0], [0, 1]], kind)
    s = dargmin.sensitivity(problem, x0, t, tangents, throw=False)
    assert s.ok, Status[s.status]
    # each unknown in its own unit, too
    np.testing.assert_allclose(s.tangent * q, tangents, rtol=3e-3, atol=3e-3)


def least_squares(A, y, x, theta):
    return 0.5 * jnp.sum((A @ x - theta * y) ** 2)


def test_attach_differentiates_least_squares_in_mixed_units_in_single_precision():
    rng = np.random.default_rng(0)
    A = (rng.normal(size=(20, 2)) * (1, 1e-4)).astype(np.float32)
    y = rng.normal(size=20).astype(np.float32)
    x = np.linalg.lstsq(A.astype(float), y.astype(float))[0]
    problem = Objective(Partial(least_squares, jnp.asarray(A), jnp.asarray(y)))
    at = jnp.asarray(x, jnp.float32)
    change = jax.jacfwd(lambda t: dargmin.attach(problem, at, t))(np.float32(1))
    np.testing.assert_allclose(np.asarray(change) / x, np.ones(2), rtol=1e-2)


# ---- points that are no minima, or far from one --------------------------------------------------


def saddle(x, t):
    return 0.5 * jnp.sum((x[1:] - t) ** 2) - 0.5e-3 * x[0] ** 2


def test_a_saddle_is_no_minimum_however_flat_it_is():
    assert_hypergradient(total, Objective(saddle), jnp.zeros(300), 1.0, None)
    assert_sensitivity(Objective(saddle), jnp.zeros(300), 1.0, 1.0, None)


def network(inputs, targets, hidden, x, log_decay):
    """Mean squares of a tanh network with one hidden layer, and ½ e^θ ‖x‖²."""
    return loss_of(inputs, targets, hidden, x) + 0.5 * jnp.exp(log_decay) * jnp.sum(x**2)


def loss_of(inputs, targets, hidden, x):
    d = inputs.shape[1]
    W, b, v, c = jnp.split(x, (d * hidden, (d + 1) * hidden, (d + 2) * hidden))
    layer = jnp.tanh(inputs @ W.reshape(d, hidden) + b)
    return 0.5 * jnp.mean((layer @ v + c - targets) ** 2)


def wide_network(inputs, targets, x, log_decay):
    return network(inputs, targets, 50, x, log_decay)


@pytest.mark.slow  # compiles for long
def test_a_network_from_zero_weights_ends_at_a_minimum_or_is_flagged():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(30, 4)), rng.normal(size=30) + 0.5
    f = Partial(wide_network, jnp.asarray(inputs), jnp.asarray(targets))
    theta = jnp.log(1e-2)
    h = dargmin.hypergradient(half_square, Objective(f), jnp.zeros(301), theta, throw=False)
    if h.ok:
        values = np.linalg.eigvalsh(np.asarray(jax.hessian(f)(h.x, theta)))
        assert values[0] > -1e-6 * values[-1]
    else:
        assert np.isfinite(h.certificate.error) or np.isnan(h.gradient)


def steep_root(x, t):
    return x + 5 * jnp.tanh(x) - t


def huber(x, t):
    return 0.5 * x**2 + 5 * jnp.sqrt(1 + x**2) - t * x


def exponential(x, t):
    return jnp.sum(jnp.exp(x) - t * x)


def test_a_derivative_from_far_away_is_compared_with_the_one_at_the_solution():
    # ∂x* = 1/6 at x* = 0, where the curvature is 6; at 1e6 it is 1
    certificate = dargmin.certify(Root(steep_root), 1e6, 0.0, tangent=1.0, jvp=1.0)
    assert_certified(certificate, 5.0)
    h = assert_hypergradient(
        coordinate, Objective(huber), 1e6, 0.0, 1 / 6,
        method=GradientDescent(0.5), mode=Unrolled(), steps=5,
    )  # fmt: skip
    assert not h.ok


@pytest.mark.parametrize("x", [5.0, 10.0, 30.0])
def test_an_exact_claim_is_not_blamed_for_the_point_it_comes_with(x):
    for claim, true in ((1.0, 0.0), (1.1, 0.1)):
        certificate = dargmin.certify(Objective(exponential), x, 1.0, tangent=1.0, jvp=claim)
        assert_certified(certificate, true)


def poisson(X, y, w, theta):
    return jnp.mean(jnp.exp(X @ w) - y * (X @ w)) + 0.5 * jnp.exp(theta) * jnp.sum(w**2)


def gamma(X, y, w, theta):
    return jnp.mean(y * jnp.exp(-(X @ w)) + X @ w) + 0.5 * jnp.exp(theta) * jnp.sum(w**2)


@pytest.mark.parametrize("f", [poisson, gamma])
def test_a_flipped_sign_is_an_error_of_two_wherever_it_is_looked_at(f):
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(40, 8)), rng.normal(size=8)
    rate = np.exp(X @ w)
    y = rng.poisson(rate) if f is poisson else rate * rng.gamma(2.0, 0.5, size=40)
    problem = Partial(f, jnp.asarray(X), jnp.asarray(y, float))
    solution, change = glm_oracle(f, X, y, -4.0)
    for seed, share in enumerate((0.1, 0.1, 0.1, 1, 1, 1, 100, 100, 100)):
        noise = np.random.default_rng(seed).normal(size=8)
        x = solution + share * np.linalg.norm(solution) * noise / np.linalg.norm(noise)
        certificate = dargmin.certify(Objective(problem), x, -4.0, tangent=1.0, jvp=-change)
        assert_certified(certificate, 2.0, must=share < 1)


def glm_oracle(f, X, y, theta):
    """The solution and its derivative in θ, by damped Newton steps in NumPy."""
    n, decay = len(y), np.exp(theta)
    sign, count = (1, 1.0) if f is poisson else (-1, y)
    value = lambda w: np.mean(count * np.exp(sign * X @ w) - (y if sign > 0 else -1) * (X @ w))
    full = lambda w: value(w) + 0.5 * decay * w @ w
    w = np.zeros(X.shape[1])
    for _ in range(100):
        mean = count * np.exp(sign * X @ w)
        slope = X.T @ (sign * mean - (y if sign > 0 else -1)) / n + decay * w
        hessian = (X.T * mean) @ X / n + decay * np.eye(w.size)
        step, size = np.linalg.solve(hessian, slope), 1.0
        while full(w - size * step) > full(w) and size > 1e-6:
            size /= 2
        w = w - size * step
    return w, -np.linalg.solve(hessian, decay * w)


@pytest.mark.parametrize("share", [0.1, 1.0, 100.0])
def test_a_claim_at_a_point_beside_a_lasso_is_judged_by_the_support_of_the_solution(share):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(30, 12))
    instance = zoo.lasso(X, X[:, :4] @ np.ones(4) + 0.3 * rng.normal(size=30))
    x, change = instance.solution(-2.0), instance.jacobian(-2.0)
    assert 2 <= np.sum(x != 0) < 12
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(size=12)
        at = x + share * np.linalg.norm(x) * noise / np.linalg.norm(noise)
        for claim in (
            change,
            change + 0.1 * np.linalg.norm(change) * noise / np.linalg.norm(noise),
        ):
            certificate = dargmin.certify(instance.problem, at, -2.0, tangent=1.0, jvp=claim)
            assert_certified(certificate, distance(claim, change))


def entropic(x, b):
    return -(x[0] + b * x[1]) + 0.03 * jnp.sum(xlogy(x, x))


@pytest.mark.slow
def test_a_solution_in_a_corner_of_the_simplex_is_reached_or_flagged():
    s = assert_sensitivity(
        Composite(entropic, prox.simplex(1.0)), jnp.array([0.5, 0.5]), 0.7, 1.0, CORNER
    )
    if s.ok:
        np.testing.assert_allclose(s.x, (SHARE, 1 - SHARE), rtol=1e-4)


SHARE = 1 / (1 + np.exp(-0.3 / 0.03))  # x₀ of the softmax
CORNER = SHARE * (1 - SHARE) / 0.03 * np.array([-1.0, 1.0])


def cubic(x, k):
    return (x - k) ** 3


def quartic(x, k):
    return jnp.sum((x - k) ** 4)


@pytest.mark.parametrize("start", [3.0, 3.5])
@pytest.mark.parametrize("problem", [Root(cubic), Objective(quartic)], ids=["cubic", "quartic"])
def test_a_degenerate_solution_is_followed_or_flagged(problem, start):
    assert_sensitivity(problem, start, 3.0, 1.0, 1.0)


def nonlinear_fit(x, t):
    return 0.5 * (jnp.exp(x) - t) ** 2 + 0.5 * (x + 1) ** 2


def gauss_newton(x, t, v):
    return jnp.exp(2 * x) * v + v


def test_a_gauss_newton_product_is_used_to_walk_and_not_to_differentiate():
    x = 1.0
    for _ in range(20):
        e = np.exp(x)
        x -= ((e - 3) * e + x + 1) / (2 * e**2 - 3 * e + 1)
    truth = np.exp(x) / (2 * np.exp(2 * x) - 3 * np.exp(x) + 1)
    assert abs(truth - 0.5474) < 1e-4
    problem = Objective(nonlinear_fit, hvp=gauss_newton)
    assert_sensitivity(problem, 0.0, 3.0, 1.0, truth, must=True)
    assert_hypergradient(coordinate, problem, 0.0, 3.0, truth, must=True)


# ---- precisions that differ ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "other"), [(np.float32, np.float64), (np.float64, np.float32)], ids=str
)
def test_mixed_precision_works_or_is_one_value_error(kind, other):
    x0, t, one = jnp.zeros(2, kind), jnp.ones(2, other), jnp.ones(2, other)
    problem = Objective(apart)
    calls = (
        lambda: dargmin.hypergradient(total, problem, x0, t).gradient,
        lambda: dargmin.sensitivity(problem, x0, t, one).tangent,
        lambda: dargmin.certify(problem, x0, t, tangent=one, jvp=jnp.ones(2, kind)).error + 1,
    )
    with jax.numpy_dtype_promotion("standard"):
        for call in calls:
            try:
                np.testing.assert_allclose(call(), 1.0, rtol=3e-3)
            except ValueError as error:
                assert "float32" in str(error) and "float64" in str(error)


# ---- many solutions ------------------------------------------------------------------------------


def factored(A, dA, B, dB, x, theta):
    """½‖UV - (A + θ dA)(B + θ dB)‖², of rank 2 for every θ: x = (U, V) is one of many."""
    return 0.5 * jnp.sum((x[0] @ x[1] - (A + theta * dA) @ (B + theta * dB)) ** 2)


def product_gap(C, x, theta):
    """φ(x, θ) = ½‖UV - C‖², which is the same at all solutions."""
    return 0.5 * jnp.sum((x[0] @ x[1] - C) ** 2)


def test_a_solution_among_many_moves_by_the_shortest_way():
    rng = np.random.default_rng(0)
    A, dA = rng.normal(size=(2, 4, 2))
    B, dB = rng.normal(size=(2, 2, 4))
    problem = Objective(Partial(factored, *map(jnp.asarray, (A, dA, B, dB))))
    x0 = (A + 1e-2 * rng.normal(size=A.shape), B + 1e-2 * rng.normal(size=B.shape))
    change = dA @ B + A @ dB
    s = dargmin.sensitivity(problem, x0, 0.0, 1.0, throw=False)
    U, V = map(np.asarray, s.x)
    J = np.hstack([np.kron(np.eye(4), V.T), np.kron(U, np.eye(4))])  # of vec(UV), row by row
    truth = np.linalg.pinv(J, rcond=1e-3) @ change.ravel()
    assert_promise(s.tangent, s.certificate, truth, oracle=1e-6)
    if s.ok:
        moved = flat(s.tangent)
        null = moved - np.linalg.pinv(J, rcond=1e-3) @ (J @ moved)
        assert np.linalg.norm(null) < 1e-3 * np.linalg.norm(moved)


@pytest.mark.slow  # compiles for long
def test_a_warm_start_among_many_solutions_does_not_drift():
    rng = np.random.default_rng(0)
    A, dA = rng.normal(size=(2, 4, 2))
    B, dB = rng.normal(size=(2, 2, 4))
    C = rng.normal(size=(4, 4))
    problem = Objective(Partial(factored, *map(jnp.asarray, (A, dA, B, dB))))
    x0, warm = (A + 1e-2 * rng.normal(size=A.shape), jnp.asarray(B)), None
    for theta in (0.0, 0.05, 0.1, 0.15):
        M = (A + theta * dA) @ (B + theta * dB)
        change = dA @ (B + theta * dB) + (A + theta * dA) @ dB
        h = assert_hypergradient(
            Partial(product_gap, jnp.asarray(C)), problem, x0, theta, np.sum((M - C) * change),
            warm_start=dargmin.WarmStart.zeros(x0) if warm is None else warm,
        )  # fmt: skip
        warm = h.warm_start
        if h.ok:
            U, V = map(np.asarray, h.x)
            J = np.hstack([np.kron(np.eye(4), V.T), np.kron(U, np.eye(4))])
            adjoint = flat(warm.adjoint)
            null = adjoint - np.linalg.pinv(J, rcond=1e-3) @ (J @ adjoint)
            assert np.linalg.norm(null) < 1e-3 * np.linalg.norm(adjoint)


def difference_of_two(x, theta):
    return 0.5 * (x[0] - x[1] - theta) ** 2


@pytest.mark.parametrize("jacobian", [jax.jacfwd, jax.jacrev])
def test_attach_moves_by_the_shortest_way_in_both_directions(jacobian):
    x = lambda theta: dargmin.attach(Objective(difference_of_two), jnp.array([0.5, -0.5]), theta)
    np.testing.assert_allclose(jacobian(x)(1.0), (0.5, -0.5), rtol=1e-6)


def steady(theta):
    """The null vector of the rates whose sum is 1, by NumPy."""
    values, vectors = np.linalg.eig(np.asarray(rates(theta)))
    x = np.real(vectors[:, np.argmin(np.abs(values))])
    return x / np.sum(x)


def test_a_fixed_point_with_a_conserved_total_keeps_it():
    truth = (steady(0.3 + 1e-5) - steady(0.3 - 1e-5)) / 2e-5
    x0 = jnp.array([1.0, 0.0, 0.0])
    assert_sensitivity(FixedPoint(kinetics), x0, 0.3, 1.0, truth, must=True)


def test_a_hypergradient_knows_of_a_conserved_total():
    truth = (steady(0.3 + 1e-5) - steady(0.3 - 1e-5)) / 2e-5
    x0 = jnp.array([1.0, 0.0, 0.0])
    assert_hypergradient(coordinate, FixedPoint(kinetics), x0, 0.3, truth[0], must=True)


def rates(theta):
    """A kinetic scheme of three states; its columns sum to zero."""
    k = jnp.array([[0.0, 0.5, 1.0], [0.0, 0.0, 0.7], [0.4, 0.3, 0.0]])
    k = k.at[1, 0].set(jnp.exp(theta))
    return k - jnp.diag(jnp.sum(k, axis=0))


def kinetics(x, theta):
    return x + 0.2 * rates(theta) @ x


EPSILON = 0.3


def sinkhorn(C, f, scale):
    """One round of the potentials f and g of entropic transport, whose constant is free."""
    return -EPSILON * jax.nn.logsumexp((other(C, f, scale) - scale * C) / EPSILON, axis=1)


def other(C, f, scale):
    """g, with marginals 1 / n that are left out."""
    return -EPSILON * jax.nn.logsumexp((f[:, None] - scale * C) / EPSILON, axis=0)


def transport_cost(C, f, scale):
    g = other(C, f, scale)
    plan = jnp.exp((f[:, None] + g - scale * C) / EPSILON) / C.shape[0]
    return jnp.sum(plan * scale * C)


def test_the_transport_cost_has_a_derivative_though_the_potentials_have_a_free_constant():
    C = np.random.default_rng(0).uniform(size=(5, 5))

    def cost(scale):
        K = np.exp(-scale * C / EPSILON)
        v = np.ones(5)
        for _ in range(500):
            u = 1 / (K @ v)
            v = 1 / (K.T @ u)
        return np.sum(u[:, None] * K * v * scale * C) / 5

    truth = (cost(1 + 1e-5) - cost(1 - 1e-5)) / 2e-5
    C = jnp.asarray(C)
    h = dargmin.hypergradient(
        Partial(transport_cost, C), FixedPoint(Partial(sinkhorn, C)), jnp.zeros(5), 1.0,
        throw=False,
    )  # fmt: skip
    assert_promise(h.gradient, h.certificate, truth, must=True, oracle=1e-8)


def logistic_loss(X, y, w, theta):
    return jnp.mean(jax.nn.softplus(-y * (X @ w)))


@pytest.mark.slow  # compiles for long
def test_tied_columns_leave_the_predictions_of_an_l1_model_their_derivative():
    rng = np.random.default_rng(0)
    X, Z = rng.normal(size=(40, 4)), rng.normal(size=(20, 4))
    y, aims = (np.sign(data @ (2, -1, 1, 0) + rng.logistic(size=len(data))) for data in (X, Z))
    double = lambda data: jnp.asarray(np.hstack([data, data[:, :2]]))
    truth = l1_logistic_oracle(X, y, Z, aims, -3.0)
    assert_hypergradient(
        Partial(logistic_loss, double(Z), jnp.asarray(aims)),
        Composite(Partial(logistic_loss, double(X), jnp.asarray(y)), prox.l1(jnp.exp)),
        jnp.zeros(6), -3.0, truth, must=True,
    )  # fmt: skip


def l1_logistic_oracle(X, y, Z, aims, theta):
    """d φ / dθ without the ties: proximal gradient steps, then the formula on the support."""
    n, h, penalty = len(y), 4 * len(y) / np.linalg.norm(X, 2) ** 2, np.exp(theta)
    slope = lambda X, y, w: -X.T @ (y / (1 + np.exp(y * (X @ w)))) / len(y)
    w = np.zeros(X.shape[1])
    for _ in range(5000):
        v = w - h * slope(X, y, w)
        w = np.sign(v) * np.maximum(np.abs(v) - h * penalty, 0)
    S = np.flatnonzero(w)
    assert S.size >= 2
    p = 1 / (1 + np.exp(-X @ w))
    H = (X[:, S].T * (p * (1 - p))) @ X[:, S] / n
    return -slope(Z, aims, w)[S] @ np.linalg.solve(H, penalty * np.sign(w[S]))


# ---- single precision ----------------------------------------------------------------------------


def scaled_logistic(X, y, value, unit, x, theta):
    """A logistic regression whose value and whose unknowns come in other units."""
    w = x / unit
    data = jnp.mean(jax.nn.softplus(-y * (X @ w)))
    return value * (data + 0.5 * jnp.exp(theta) * jnp.sum(w**2))


def scaled_loss(X, y, unit, x, theta):
    return jnp.mean(jax.nn.softplus(-y * (X @ (x / unit))))


@pytest.mark.slow  # compiles for long
def test_single_precision_and_units_of_1e6_are_right_or_flagged():
    rng = np.random.default_rng(0)
    X, Z = rng.normal(size=(30, 5)), rng.normal(size=(20, 5))
    y, aims = (np.sign(data.sum(axis=1) + rng.logistic(size=len(data))) for data in (X, Z))
    data = lambda *arrays: tuple(jnp.asarray(array, jnp.float32) for array in arrays)
    plain, loss = (wide(Partial(scaled_logistic, *data(X, y, 1, 1))), wide(data(Z, aims, 1)))
    truth = difference(plain, Partial(scaled_loss, *loss), np.zeros(5), -2.0)
    x0, theta = np.zeros(5, np.float32), np.float32(-2)
    for value in (1e6, 1, 1e-6):
        for unit in (1e6, 1, 1e-6):
            problem = Objective(Partial(scaled_logistic, *data(X, y, value, unit)))
            outer = Partial(scaled_loss, *data(Z, aims, unit))
            for rtol, must in ((1e-3, True), (1e-6, False)):
                assert_hypergradient(outer, problem, x0, theta, truth, rtol, must)


def kernel(points, theta, jitter):
    """exp(θ₁ - ½ (s - t)² e^(-2 θ₀)) + jitter: θ holds the logarithms of length and variance."""
    far = (points[:, None] - points) * jnp.exp(-theta[0])
    return jnp.exp(theta[1] - 0.5 * far**2) + jitter * jnp.eye(len(points), dtype=points.dtype)


def whitened(points, y, z, theta):
    """The mode of a Gaussian-process classifier, in white coordinates: u = Lz."""
    u = jnp.linalg.cholesky(kernel(points, theta, 1e-6)) @ z
    return 0.5 * z @ z + jnp.sum(jax.nn.softplus(-y * u))


def whitened_loss(points, y, z, theta):
    u = jnp.linalg.cholesky(kernel(points, theta, 1e-6)) @ z
    return jnp.mean(jax.nn.softplus(-y * jnp.roll(u, 1)))


def latent(points, y, u, theta):
    """The mode of a Gaussian-process classifier."""
    K = jnp.linalg.cholesky(kernel(points, theta, 1e-6))
    prior = 0.5 * jnp.sum(jax.scipy.linalg.solve_triangular(K, u, lower=True) ** 2)
    return prior + jnp.sum(jax.nn.softplus(-y * u))


def latent_loss(y, u, theta):
    return jnp.mean(jax.nn.softplus(-y * jnp.roll(u, 1)))


def process():
    rng = np.random.default_rng(0)
    points = np.linspace(0, 4, 40) + 0.02 * rng.normal(size=40)
    return points, np.sign(np.sin(2 * points) + 0.3 * rng.normal(size=40))


@pytest.mark.slow  # compiles for long
@pytest.mark.parametrize("length", [-1.0, 0.0])
def test_a_gaussian_process_in_single_precision_is_right_or_flagged(length):
    data = tuple(jnp.asarray(array, jnp.float32) for array in process())
    theta = np.array([length, 1.0], np.float32)
    f, outer = Partial(whitened, *data), Partial(whitened_loss, *data)
    truth = difference(wide(f), wide(outer), np.zeros(40), theta)
    assert_hypergradient(outer, Objective(f), np.zeros(40, np.float32), theta, truth)


# ---- no estimate, no number ----------------------------------------------------------------------


def ridge_of_one_direction(x, theta):
    """½ (x₀ - x₁ - θ₀)² + ½ θ₁ (x₀ + x₁)²: at θ₁ = 0, x₀ is not determined."""
    return 0.5 * (x[0] - x[1] - theta[0]) ** 2 + 0.5 * theta[1] * (x[0] + x[1]) ** 2


BAD_AND_GOOD = {
    "inconsistent": (ridge_of_one_direction, np.zeros(2), (1.0, 0.0), (1.0, 1.0), (0.5, 0.0)),
    "not converged": (exponential, np.zeros(1), (-1.0,), (2.0,), (0.5,)),
    "nonfinite": (exponential, np.zeros(1), (np.nan,), (2.0,), (0.5,)),
}


@pytest.mark.parametrize("name", BAD_AND_GOOD)
def test_where_there_is_no_estimate_there_is_no_number(name):
    f, x0, bad, good, truth = BAD_AND_GOOD[name]
    bad, good = jnp.array(bad), jnp.array(good)
    direction = jnp.zeros_like(bad).at[0].set(1.0)

    def run(theta):
        h = dargmin.hypergradient(coordinate, Objective(f), x0, theta, throw=False)
        s = dargmin.sensitivity(Objective(f), x0, theta, direction, throw=False)
        first = jnp.reshape(s.tangent, -1)[0]
        return (h.gradient, h.certificate), (first, s.certificate)

    h, s = run(bad)
    assert_promise(*h, None)
    assert not (s[1].ok and name != "inconsistent")  # the shortest way is a derivative
    together = jax.vmap(run)(jnp.stack([bad, good]))
    lane = lambda i: jax.tree.map(lambda u: u[i], together)
    assert_promise(*lane(0)[0], None)
    for (value, certificate), right in zip(lane(1), (truth, truth[0]), strict=True):
        assert_promise(value, certificate, right, must=True)
    for value, certificate in (s, lane(0)[1]):
        assert np.isfinite(certificate.error) or np.isnan(value)


@pytest.mark.parametrize("steps", [1, 30])
def test_too_few_steps_give_a_right_number_or_none(steps):
    assert_hypergradient(
        coordinate, Objective(exponential), np.array([5.0]), np.array([1.0]), 1.0,
        method=GradientDescent(1e-4), steps=steps,
    )  # fmt: skip


# ---- flagging is no way out ----------------------------------------------------------------------


def small_network(inputs, targets, x, log_decay):
    return network(inputs, targets, 4, x, log_decay)


def small_loss(inputs, targets, x, log_decay):
    return loss_of(inputs, targets, 4, x)


def assert_most_reached(outer, f, starts, theta):
    """At least nine of ten are ok, and each of these is right."""
    reached = 0
    for x0 in starts:
        h = dargmin.hypergradient(outer, Objective(f), x0, theta, throw=False)
        truth = difference(f, outer, h.x, theta) if h.ok else None
        assert_promise(h.gradient, h.certificate, truth, oracle=1e-6)
        reached += bool(h.ok)
    assert reached >= 0.9 * len(starts), f"{reached} of {len(starts)}"


@pytest.mark.slow  # compiles for long
def test_small_networks_are_trained_to_a_minimum_from_random_starts():
    rng = np.random.default_rng(0)
    data = [(z, np.sin(2 * z[:, 0]) * z[:, 1]) for z in rng.normal(size=(2, 20, 2))]
    train, valid = (tuple(map(jnp.asarray, pair)) for pair in data)
    f, outer = Partial(small_network, *train), Partial(small_loss, *valid)
    assert_most_reached(outer, f, rng.normal(size=(10, 17)), jnp.log(1e-3))


def wells(C, b, x, theta):
    """¼ Σ (x² - 1)² + ½ xᵀCx - θ bᵀx: many minima, and a Hessian that is indefinite at 0."""
    return 0.25 * jnp.sum((x**2 - 1) ** 2) + 0.5 * x @ C @ x - theta * (b @ x)


@pytest.mark.slow  # compiles for long
def test_wells_are_reached_from_indefinite_starts():
    rng = np.random.default_rng(0)
    C, b, q = rng.normal(size=(6, 6)), *rng.normal(size=(2, 6))
    f = Partial(wells, jnp.asarray(0.15 * (C + C.T)), jnp.asarray(b))
    outer = Partial(along, jnp.asarray(q))
    assert_most_reached(outer, f, 0.3 * rng.normal(size=(10, 6)), jnp.asarray(0.1))


def ridge(X, y, w, theta):
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.exp(theta) * jnp.sum(w**2)


def squares(X, y, w, theta):
    return 0.5 * jnp.mean((X @ w - y) ** 2)


@pytest.mark.parametrize(("kind", "decades"), [(np.float64, 6), (np.float32, 2)])
def test_ridge_with_columns_in_different_units_is_reached(kind, decades):
    rng = np.random.default_rng(0)
    units = 10.0 ** rng.uniform(-decades, decades, size=8)
    X, Z = ((rng.normal(size=(n, 8)) * units).astype(kind) for n in (40, 20))
    y, aims = ((data @ (1 / units) + rng.normal(size=len(data))).astype(kind) for data in (X, Z))
    theta = kind(-4)
    # solved in units in which the diagonal of the Hessian is 1
    wX, wZ, wy, waims = (array.astype(float) for array in (X, Z, y, aims))
    H = wX.T @ wX / 40 + np.exp(-4) * np.eye(8)
    s = 1 / np.sqrt(np.diag(H))
    solve = lambda v: s * np.linalg.solve(H * np.outer(s, s), s * v)
    w = solve(wX.T @ wy / 40)
    truth = -(wZ.T @ (wZ @ w - waims) / 20) @ solve(np.exp(-4) * w)
    problem = Objective(Partial(ridge, jnp.asarray(X), jnp.asarray(y)))
    outer = Partial(squares, jnp.asarray(Z), jnp.asarray(aims))
    assert_hypergradient(outer, problem, np.zeros(8, kind), theta, truth, must=True)


def tiny(x, theta):
    """A strictly convex quadratic with the Hessian 1e-12 diag(1, 2, 4)."""
    return 1e-12 * jnp.sum(0.5 * jnp.array([1, 2, 4], x.dtype) * x**2 - theta * x)


def test_a_small_hessian_is_no_singular_one():
    x0, theta = np.zeros(3, np.float32), np.float32(1)
    assert_sensitivity(Objective(tiny), x0, theta, theta, (1, 0.5, 0.25), must=True)


@pytest.mark.slow
def test_a_flat_start_is_left_behind():
    assert_sensitivity(Objective(exponential), -30.0, 1.0, 1.0, 1.0, must=True)
    assert_hypergradient(coordinate, Objective(exponential), -30.0, 1.0, 1.0, must=True)


def barrier(c, x, theta):
    """cᵀx + θ x₀ - 1e-3 (Σ log x + log(1 - Σ x))."""
    slack = jnp.log(x), jnp.log(1 - jnp.sum(x))
    return c @ x + theta * x[0] - 1e-3 * (jnp.sum(slack[0]) + slack[1])


@pytest.mark.slow
def test_a_log_barrier_is_reached():
    rng = np.random.default_rng(0)
    c, q = rng.normal(size=(2, 5))
    f, outer = Partial(barrier, jnp.asarray(c)), Partial(along, jnp.asarray(q))
    h = dargmin.hypergradient(outer, Objective(f), jnp.full(5, 1 / 7), 0.1, throw=False)
    assert h.ok, Status[h.status]
    assert h.certificate.error <= 1e-3
    truth = difference(f, outer, h.x, 0.1, step=1e-5)
    assert_promise(h.gradient, h.certificate, truth, oracle=1e-5)


@pytest.mark.slow  # compiles for long
def test_a_gaussian_process_in_its_own_coordinates_is_reached():
    data = tuple(map(jnp.asarray, process()))
    f, outer = Partial(latent, *data), Partial(latent_loss, data[1])
    theta = np.array([-1.0, 1.0])
    h = dargmin.hypergradient(outer, Objective(f), np.zeros(40), theta, throw=False)
    assert h.ok, Status[h.status]
    assert h.certificate.error <= 1e-3
    assert_promise(h.gradient, h.certificate, difference(f, outer, h.x, theta), oracle=1e-5)


@pytest.mark.slow  # compiles for long
def test_random_projections_on_the_simplex_are_reached():
    for seed in range(8):
        t, tangent = np.random.default_rng(seed).normal(size=(2, 10))
        order = np.sort(t)[::-1]
        levels = (np.cumsum(order) - 1) / np.arange(1, 11)
        level = levels[np.flatnonzero(order > levels)[-1]]
        assert np.min(np.abs(t - level)) > 1e-3, "degenerate: choose other seeds"
        S = t > level
        truth = np.where(S, tangent - np.mean(tangent[S]), 0.0)
        assert_sensitivity(
            Composite(apart, prox.simplex(1.0)), jnp.full(10, 0.1), jnp.asarray(t),
            jnp.asarray(tangent), truth, must=True,
        )  # fmt: skip


TRAINING = """
    import jax, jax.numpy as jnp, dargmin

    problem = dargmin.FixedPoint(
        lambda z, p: jnp.tanh(p["W"] @ z + p["U"] @ p["input"] + p["b"])
    )

    def layer(weights, input):
        p = weights | {"input": input}
        return dargmin.solve(
            problem, dargmin.FixedPointIteration(), jnp.zeros(40), p, steps=200, tol=1e-5,
            throw=False,
        ).x

    def loss(weights, inputs, targets):
        z = jax.vmap(lambda input: layer(weights, input))(inputs)
        return jnp.mean((z @ weights["v"] - targets) ** 2)

    @jax.jit
    def step(weights, inputs, targets):
        value, slope = jax.value_and_grad(loss)(weights, inputs, targets)
        return value, jax.tree.map(lambda w, g: w - 0.3 * g, weights, slope)

    keys = jax.random.split(jax.random.key(0), 5)
    weights = {
        "W": 1.5 * jax.random.normal(keys[0], (40, 40)) / 40**0.5,
        "U": jax.random.normal(keys[1], (40, 8)), "b": jnp.zeros(40),
        "v": jax.random.normal(keys[2], (40,)) / 40**0.5,
    }
    inputs = jax.random.normal(keys[3], (64, 8))
    targets = jnp.sin(inputs[:, 0]) + inputs[:, 1] * inputs[:, 2]
    for _ in range(200):
        value, weights = step(weights, inputs, targets)
    print(float(value))
"""


@pytest.mark.slow  # two hundred steps
def test_training_an_equilibrium_layer_ends():
    source = os.pathsep.join(sys.path)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRAINING)],
        env=os.environ | {"PYTHONPATH": source}, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
