"""plan: what it chooses, whether the choice keeps what is predicted, and what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import dargmin
from dargmin import Implicit, Unrolled, plan
from dargmin.problems import zoo
from dargmin.trials import polished_error

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 8)) * np.geomspace(1, 0.1, 8)
RIDGE = zoo.ridge(X, X @ np.ones(8))
THETA = jnp.asarray(np.log(0.01))
SIZE = 64  # bytes of x
UNROLLED = Unrolled()
COUNTS = jnp.asarray(RNG.poisson(np.exp(X @ np.ones(8))).astype(float))


def error(p, instance, theta):
    def solution(theta):
        return dargmin.solve(
            instance.problem, p.method, instance.x0, theta, steps=p.steps, mode=p.mode
        ).x

    truth = instance.jacobian(np.asarray(theta))
    return np.linalg.norm(jax.jacfwd(solution)(theta) - truth) / np.linalg.norm(truth)


def test_with_any_mode_the_plan_for_a_ridge_is_implicit_and_right():
    p = plan(RIDGE.problem, RIDGE.x0, THETA, steps=40)
    assert isinstance(p.mode, Implicit)
    assert error(p, RIDGE, THETA) < 1e-8
    assert "Implicit differentiation" in p.reason and "Unrolled, the best would be" in p.reason
    assert f"and {len(p.alternatives) - 8} more in .alternatives" in str(p)


def test_the_predicted_errors_of_unrolling_are_true_and_the_least_is_chosen():
    p = plan(RIDGE.problem, RIDGE.x0, THETA, steps=40, mode=UNROLLED)
    assert p.predicted_error == min(c.predicted_error for c in (p, *p.alternatives))
    for choice in (p, *p.alternatives[:6]):
        assert_allclose(error(choice, RIDGE, THETA), choice.predicted_error, rtol=1e-6)


@pytest.mark.slow
def test_little_memory_brings_checkpoints_and_too_little_an_answer():
    p = plan(RIDGE.problem, RIDGE.x0, THETA, steps=100, mode=UNROLLED, memory=30 * SIZE)
    assert p.mode == Unrolled(checkpoint="sqrt") and p.memory <= 30 * SIZE
    assert "√T states kept" in p.reason and "choices need more" in p.reason
    with pytest.raises(ValueError, match=r"Nothing fits into memory=10 bytes.*needs here is"):
        plan(RIDGE.problem, RIDGE.x0, THETA, steps=100, mode=UNROLLED, memory=10)


@pytest.mark.slow
def test_an_accuracy_is_reached_by_unrolling_where_that_is_asked_for():
    p = plan(RIDGE.problem, RIDGE.x0, THETA, rtol=1e-3, mode=UNROLLED)
    assert error(p, RIDGE, THETA) < 1.5e-3
    instance, theta = zoo.elastic_net(X, X @ np.ones(8)), jnp.full(2, -3.0)
    p = plan(instance.problem, instance.x0, theta, rtol=1e-3, mode=UNROLLED)
    assert error(p, instance, theta) <= 1e-3
    spinning = dargmin.FixedPoint(lambda x, theta: 1.5 * x[::-1] + theta)
    with pytest.raises(ValueError, match=r"No method here reaches rtol=0\.001"):
        plan(spinning, jnp.ones(2), jnp.asarray(0.3), rtol=1e-3, mode=UNROLLED)


@pytest.mark.slow
def test_a_plan_for_an_accuracy_is_what_hypergradient_does():
    labels = (X @ np.ones(8) > 0).astype(int)
    instance = zoo.logistic(X, labels)
    p = plan(instance.problem, instance.x0, THETA - 1, rtol=1e-3)
    outer = lambda x, theta: jnp.sum(x**2)
    h = dargmin.hypergradient(outer, instance.problem, instance.x0, THETA - 1, rtol=1e-3)
    assert h.reason in p.reason
    assert error(p, instance, THETA - 1) < 1e-3


@pytest.mark.slow
def test_where_theory_is_silent_the_candidates_are_measured():
    instance = zoo.elastic_net(X, X @ np.ones(8))
    theta = jnp.asarray([-3.0, -3.0])
    p = plan(instance.problem, instance.x0, theta, steps=60)
    assert isinstance(p.mode, Implicit) and p.predicted_error < 1e-6 and p.measured
    assert error(p, instance, theta) < 1e-8


def poisson(w, theta):
    """Far from w = 0 its curvature grows exponentially: steps tuned to x* diverge on the way."""
    Xw = jnp.asarray(X) @ w
    return jnp.mean(jnp.exp(Xw) - COUNTS * Xw) + 0.5 * jnp.exp(theta) * jnp.sum(w**2)


@pytest.mark.slow
def test_off_the_quadratics_all_that_a_plan_says_was_run_and_what_diverges_is_called_that():
    problem, x0, theta = dargmin.Objective(poisson), 2.5 * jnp.ones(8), jnp.asarray(-3.0)
    p = plan(problem, x0, theta, steps=25)
    truth = dargmin.sensitivity(problem, x0, theta, jnp.ones(()), rtol=1e-8).tangent

    def last(choice):
        found = dargmin.solve(
            problem, choice.method, x0, theta, steps=25, mode=Implicit(), throw=False
        )
        return found.x

    assert all(choice.measured for choice in (p, *p.alternatives)) and p.predicted_error < 1
    diverged = [c for c in p.alternatives if np.isinf(c.predicted_error)]
    assert diverged and diverged == list(p.alternatives[-len(diverged) :])
    assert "diverges" in str(diverged[0])
    assert not np.all(np.isfinite(last(diverged[-1])))
    # A step size that is watched on the way is always among the candidates.
    best = min(c.predicted_error for c in p.alternatives if isinstance(c.mode, Unrolled))
    assert f"{best:.1e}" in p.reason and np.isfinite(best)
    chosen = jax.jacfwd(
        lambda theta: dargmin.solve(problem, p.method, x0, theta, steps=25, mode=p.mode).x
    )(theta)
    off = np.linalg.norm(chosen - truth) / np.linalg.norm(truth)
    assert_allclose(off, p.predicted_error, rtol=1e-3, atol=1e-8)


def test_the_implicit_derivative_at_an_iterate_far_from_the_solution_is_measured():
    # A Newton correction as long as x_1 itself, which `attach` would refuse: on a quadratic the
    # derivative at the corrected point is exact.
    derivative = jnp.asarray(RIDGE.jacobian(np.asarray(THETA)))[None]
    method, tangent = dargmin.GradientDescent(0.01), jnp.ones(1)
    error = polished_error(RIDGE.problem, method, RIDGE.x0, THETA, tangent, derivative, 1)
    assert error < 1e-8


def test_a_composite_without_a_step_size_is_planned_for_as_solve_would_run_it():
    problem = dargmin.Composite(
        lambda w, theta: 0.5 * jnp.mean((jnp.asarray(X) @ w - X @ np.ones(8)) ** 2),
        dargmin.prox.l1(lambda theta: jnp.exp(theta)),
    )
    p = plan(problem, jnp.zeros(8), jnp.asarray(-3.0), steps=20)
    x = dargmin.solve(problem, p.method, jnp.zeros(8), jnp.asarray(-3.0), steps=20, mode=p.mode).x
    assert p.measured and np.isfinite(p.predicted_error) and np.all(np.isfinite(x))


def test_a_root_is_planned_for_and_where_a_pilot_finds_no_minimum_nothing_is_praised():
    cubic = dargmin.Root(lambda x, theta: 2 * x - theta + 0.1 * x**3)
    p = plan(cubic, jnp.zeros(2), jnp.asarray([1.0, 2.0]), steps=8)
    assert p.measured and p.predicted_error < 1e-6
    hill = dargmin.Objective(lambda x, theta: -jnp.sum(x**4) / 4 - theta * jnp.sum(x**2) / 2)
    p = plan(hill, jnp.zeros(2), jnp.asarray(1.0), steps=5)
    assert "No candidate could be judged" in p.reason and "falls without end" in p.reason
    assert not any(choice.measured for choice in (p, *p.alternatives))


@pytest.mark.slow
def test_a_contraction_is_planned_for():
    W = jnp.asarray(0.5 * np.linalg.qr(RNG.normal(size=(4, 4)))[0])
    map_ = dargmin.FixedPoint(lambda x, theta: jnp.tanh(W @ x + theta))
    p = plan(map_, jnp.zeros(4), jnp.asarray(0.3), steps=30)
    assert isinstance(p.method, dargmin.FixedPointIteration) and p.predicted_error < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of steps= and rtol="),
        (dict(steps=3, rtol=0.1), "one of steps= and rtol="),
        (dict(steps=0), "steps must be an integer >= 1"),
        (dict(rtol=-1.0), "rtol must be > 0"),
        (dict(steps=3, mode=Implicit()), "plan chooses the mode"),
        (dict(steps=3, theta=1), "no floating-point leaf"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options, message):
    arguments = dict(problem=RIDGE.problem, x0=RIDGE.x0, theta=THETA) | options
    with pytest.raises(ValueError, match=message):
        plan(**arguments)
