"""Derivatives of the algorithm: exact at every step, with and without checkpoints and tolerances;
and what the frozen modes make of an iterate that has not converged."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scenarios
from numpy.testing import assert_allclose
from scenarios import FIXED_POINT, LOGISTIC, RIDGE

import dargmin
from dargmin import (
    Chebyshev,
    FixedPointIteration,
    GradientDescent,
    HeavyBall,
    Implicit,
    LateStart,
    Nesterov,
    Neumann,
    Unrolled,
)

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())["jvp"]
NESTEROV = Nesterov(0.4, 0.5)
TOL = 1e-4


def iterate(mode, theta, *, steps, tol=None, method=NESTEROV, scenario=LOGISTIC):
    return dargmin.solve(
        scenario.problem, method, scenario.x0, theta, steps=steps, tol=tol, mode=mode
    )


def derivatives(mode, **arguments):
    """The solution and the Jacobian of x_T, from one program."""

    def x(theta):
        solution = iterate(mode, theta, **arguments)
        return solution.x, solution

    jacobian, solution = jax.jit(jax.jacrev(x, has_aux=True))(LOGISTIC.theta)
    return solution, jacobian


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("gradient descent at 2/(L+mu)", lambda mu, L: GradientDescent(2 / (L + mu))),
        ("Chebyshev", Chebyshev),
        ("heavy ball, plain start", lambda mu, L: HeavyBall.tuned(mu, L, start="plain")),
        ("Nesterov", Nesterov.tuned),
    ],
)
def test_unrolled_and_trace_equal_the_fifty_digit_reference(name, method):
    # Here ∂_θH does not commute with H, so that no formula in P_t and P_t' would do.
    H, dH, b, db, x0 = (jnp.asarray(REFERENCE[key]) for key in ("H", "dH", "b", "db", "x0"))
    f = lambda x, s: 0.5 * x @ ((H + s * dH) @ x) + (b + s * db) @ x
    problem, method = dargmin.Objective(f), method(REFERENCE["mu"], REFERENCE["L"])
    xs, dxs = dargmin.trace(problem, method, x0, 0.0, 1.0, steps=20)
    want = REFERENCE["methods"][name]
    assert_allclose(xs[jnp.asarray(REFERENCE["steps"])], want["x"], rtol=1e-12, atol=1e-13)
    assert_allclose(dxs[jnp.asarray(REFERENCE["steps"])], want["dx"], rtol=1e-12, atol=1e-13)
    x = lambda s: dargmin.solve(problem, method, x0, s, steps=10, mode=Unrolled("sqrt")).x
    assert_allclose(jax.jacrev(x)(0.0), want["dx"][3], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("tol", "modes"),
    [
        (None, [Unrolled(), Unrolled("sqrt"), Unrolled(5), Unrolled(100)]),
        (TOL, [Unrolled(), Unrolled("sqrt"), Unrolled(1)]),
        (None, [LateStart(start=4), LateStart(start=4, checkpoint="sqrt")]),
        (TOL, [LateStart(last=7), LateStart(last=7, checkpoint=3)]),
    ],
    ids=["unrolled", "unrolled to tol", "late start", "late start to tol"],
)
def test_checkpoints_change_nothing(tol, modes):
    # of 23 steps, which no length of a segment divides
    x = lambda mode, theta: iterate(mode, theta, steps=23, tol=tol).x
    jacobians = jax.jit(lambda theta: [jax.jacrev(x, 1)(mode, theta) for mode in modes])
    plain, *others = jacobians(LOGISTIC.theta)
    for other in others:
        assert_allclose(other, plain, rtol=0, atol=1e-14)


def test_late_start_is_the_hand_written_truncated_loop():
    f, step_size, momentum = LOGISTIC.problem.f, 0.4, 0.5

    def by_hand(theta):
        x = y = LOGISTIC.x0
        for t in range(12):
            if t == 8:
                x, y = jax.lax.stop_gradient((x, y))
            following = y - step_size * jax.grad(f)(y, theta)
            x, y = following, following + momentum * (following - x)
        return x

    want = jax.jit(lambda theta: (by_hand(theta), jax.jacfwd(by_hand)(theta)))(LOGISTIC.theta)
    for mode in (LateStart(start=8), LateStart(last=4)):
        solution, jacobian = derivatives(mode, steps=12)
        assert solution.start == 8
        assert_allclose(solution.x, want[0], rtol=0, atol=1e-12)
        assert_allclose(jacobian, want[1], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def stop():
    """N, which is a matter of the method and not of the mode."""
    N = int(iterate(Neumann(1), LOGISTIC.theta, steps=50, tol=TOL).steps)
    assert 9 < N < 30
    return N


STOPPED = {
    # with the tolerance, and the same without one once N is known
    "unrolled": (Unrolled(), lambda N: Unrolled(), lambda N: None),
    "last=4": (LateStart(last=4, checkpoint=3), lambda N: LateStart(last=4), lambda N: N - 4),
    "last=40": (LateStart(last=40), lambda N: Unrolled(), lambda N: 0),
    "start=5": (LateStart(start=5), lambda N: LateStart(start=5), lambda N: 5),
    "start=30": (LateStart(start=30), lambda N: LateStart(last=1), lambda N: N - 1),
}


@pytest.mark.parametrize("name", STOPPED)
def test_stopping_at_a_tolerance_is_a_constant_of_the_derivative(name, stop):
    mode, equivalent, start = STOPPED[name]

    @jax.jit
    def compute(theta):
        x = lambda theta: iterate(mode, theta, steps=50, tol=TOL).x
        y = lambda theta: iterate(equivalent(stop), theta, steps=stop).x
        stopped = iterate(mode, theta, steps=50, tol=TOL)
        return stopped, y(theta), jax.jacfwd(x)(theta), jax.jacrev(x)(theta), jax.jacrev(y)(theta)

    stopped, x, forward, reverse, want = compute(LOGISTIC.theta)
    assert stopped.ok and stopped.steps == stop and stopped.start == start(stop)
    assert_allclose(stopped.x, x, rtol=0, atol=1e-14)
    assert_allclose(forward, want, rtol=0, atol=1e-14)
    assert_allclose(reverse, want, rtol=0, atol=1e-14)


def test_a_tolerance_that_is_met_at_the_late_start_itself_gives_one_step(stop):
    N = stop
    for K, start in ((N - 1, N - 1), (N, N - 1), (N + 1, N - 1)):
        solution = iterate(LateStart(start=K), LOGISTIC.theta, steps=50, tol=TOL)
        assert (solution.steps, solution.start) == (N, start)


def logistic_formula(x):
    """-(∂ₓF)⁻¹ ∂_θF at any point x."""
    theta = np.asarray(LOGISTIC.theta)
    hessian = scenarios.logistic_parts(theta)[1](x)
    return -np.linalg.solve(hessian, scenarios.penalty_change(theta, x))


def test_implicit_is_the_formula_at_x_T_and_polish_that_at_the_newton_corrected_point():
    theta = np.asarray(LOGISTIC.theta)
    gradient, hessian = scenarios.logistic_parts(theta)
    truth = LOGISTIC.jacobian(theta)
    solution, plain = derivatives(Implicit(), steps=6)
    x = np.asarray(solution.x)
    assert_allclose(plain, logistic_formula(x), rtol=1e-9)
    polished, corrected = derivatives(Implicit(polish=True), steps=6)
    assert_allclose(polished.x, x, rtol=0, atol=1e-15)  # the value stays
    newton = x - np.linalg.solve(hessian(x), gradient(x))
    assert_allclose(corrected, logistic_formula(newton), rtol=1e-9)
    before, after = np.max(np.abs(plain - truth)), np.max(np.abs(corrected - truth))
    assert before > 1e-4 and after < 2 * before**2


@pytest.mark.parametrize("terms", [1, 7])
def test_neumann_is_the_truncated_series_at_x_T(terms):
    step_size = 0.3
    solution, jacobian = derivatives(Neumann(terms, step_size=step_size), steps=6)
    x, theta = np.asarray(solution.x), np.asarray(LOGISTIC.theta)
    power = np.eye(4) - step_size * scenarios.logistic_parts(theta)[1](x)
    series = sum(np.linalg.matrix_power(power, k) for k in range(terms))
    want = -step_size * series @ scenarios.penalty_change(theta, x)
    assert_allclose(jacobian, want, rtol=1e-12)


def test_neumann_at_a_fixed_point_is_late_start_there():
    x0 = jnp.asarray(FIXED_POINT.solution(np.asarray(FIXED_POINT.theta)))
    x = lambda mode: jax.jacrev(
        lambda theta: (
            dargmin.solve(
                FIXED_POINT.problem, FixedPointIteration(), x0, theta, steps=9, mode=mode
            ).x
        )
    )(FIXED_POINT.theta)
    assert_allclose(x(Neumann(5)), x(LateStart(last=5)), rtol=1e-12)


def test_an_unrolled_chain_of_finite_differences_agrees_on_the_ridge():
    # the derivative of x_T itself, far from convergence, where it is not that of x*
    x = lambda theta: iterate(Unrolled(), theta, steps=3, scenario=RIDGE).x
    step = 1e-5
    e = jnp.array([1.0, 0.0])
    numeric = (x(RIDGE.theta + step * e) - x(RIDGE.theta - step * e)) / (2 * step)
    assert_allclose(jax.jacrev(x)(RIDGE.theta)[:, 0], numeric, rtol=0, atol=1e-9)
