"""diagnose: what it measures, what it predicts beforehand, and what it says of hopeless cases."""

import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from scenarios import LOGISTIC

import dargmin
from dargmin import diagnose
from dargmin.diagnose import settled
from dargmin.problems import zoo

mpl.use("Agg")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)) * np.geomspace(1, 0.1, 6)
RIDGE = zoo.ridge(X, X @ np.ones(6))
THETA = np.log(0.01)
MU, L = RIDGE.spectrum(THETA)
X0 = jnp.asarray(30 * RNG.normal(size=6))


def per_feature(w, theta):
    """A ridge whose penalties change H in a way that does not commute with it."""
    residual = jnp.asarray(X) @ w - jnp.asarray(X) @ jnp.ones(6)
    return jnp.vdot(residual, residual) / 80 + 0.5 * jnp.sum(jnp.exp(theta) * w**2)


@pytest.mark.slow
def test_a_diagnosis_measures_what_the_recursion_does_and_predicts_it():
    method = dargmin.GradientDescent(2 / (MU + L))
    d = diagnose(RIDGE.problem, method, X0, jnp.asarray(THETA), steps=300)
    H = X.T @ X / 40 + np.exp(THETA) * np.eye(6)
    x, dx, solution, truth = (
        np.asarray(X0),
        np.zeros(6),
        RIDGE.solution(THETA),
        RIDGE.jacobian(THETA),
    )
    errors = [1.0]
    for _ in range(300):
        dx = dx - float(method.step_size) * (H @ dx + np.exp(THETA) * x)
        x = x - float(method.step_size) * (H @ (x - solution))
        errors.append(np.linalg.norm(dx - truth) / np.linalg.norm(truth))
    assert d.ok and d.has_burn_in and d.truth_error < 1e-6
    assert_allclose(d.derivative_error, errors, rtol=1e-7)
    assert d.burn_in.peak == np.argmax(errors)
    assert_allclose(d.prediction.errors, errors, rtol=1e-7)
    assert np.all(d.prediction.bound >= np.asarray(errors) * (1 - 1e-9))
    assert_allclose(d.estimates[:, 1], d.derivative_error[d.estimates[:, 0].astype(int)], rtol=1e-4)
    remedies = {remedy.name: remedy.error for remedy in d.remedies}
    assert remedies["implicit, polished"] < 1e-9
    assert remedies["Sobolev"] < d.derivative_error[-1]
    assert remedies["late start"] < d.derivative_error[-1]


@pytest.mark.parametrize(
    "method",
    [pytest.param(dargmin.Sobolev, marks=pytest.mark.slow, id="Sobolev"), dargmin.Nesterov.tuned],
)
def test_the_prediction_is_exact_on_quadratics_that_do_not_commute(method):
    theta = jnp.linspace(-5.0, -3.0, 6)
    problem = dargmin.Objective(per_feature)
    d = diagnose(problem, method(0.006, 1.2), X0, theta, steps=60, remedies=False)
    assert d.directions == 4  # of 6 parameters, random directions
    assert_allclose(d.prediction.errors, d.derivative_error, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_the_prediction_comes_close_on_a_logistic_regression():
    method = dargmin.GradientDescent(0.4)
    d = diagnose(LOGISTIC.problem, method, LOGISTIC.x0, LOGISTIC.theta, steps=40, remedies=False)
    assert_allclose(d.prediction.errors, d.derivative_error, atol=0.1)


@pytest.mark.slow
def test_every_method_is_diagnosed_and_what_theory_does_not_cover_is_said():
    method = dargmin.FromOptax(optax.sgd(0.5, momentum=0.5))
    d = diagnose(RIDGE.problem, method, X0, jnp.asarray(THETA), steps=30, remedies=False)
    assert d.prediction is None and "FromOptax" in d.notes[0]
    text = str(d)
    assert "30 steps" in text and "note: no prediction" in text
    lasso = zoo.lasso(X, X @ np.ones(6))
    d = diagnose(lasso.problem, dargmin.ProximalGradient(), X0, jnp.asarray(-3.0), steps=30)
    assert "Composite" in d.notes[0]
    assert {remedy.name for remedy in d.remedies} >= {"late start", "warm start", "implicit"}


def test_an_estimated_step_size_changes_nothing_else_about_a_composite():
    def f(x, theta):
        return jnp.sum((x - theta) ** 2), "what else f returns"

    problem = dargmin.Composite(f, dargmin.prox.l1(0.1), has_aux=True)
    found = settled(problem, jnp.zeros(2), jnp.ones(2))
    assert_allclose(found.step, 0.5, rtol=0.1)  # 1/L̂: the estimate of L has a margin
    assert found.aux(jnp.zeros(2), jnp.ones(2)) == "what else f returns"


@pytest.mark.slow
def test_a_composite_without_a_step_size_is_diagnosed_as_solve_would_run_it():
    problem = dargmin.Composite(
        lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2 / 0.9), dargmin.prox.l1(0.1)
    )
    method, theta = dargmin.FixedPointIteration(), jnp.asarray([1.0, -2.0])
    d = diagnose(problem, method, jnp.zeros(2), theta, steps=6, remedies=False)
    x = dargmin.solve(problem, method, jnp.zeros(2), theta, steps=6).x
    assert d.ok and d.derivative_error[-1] < 1e-3
    assert_allclose(d.last[0], x, rtol=1e-12)


@pytest.mark.slow
def test_a_contraction_is_bounded_and_what_does_not_contract_is_called_that():
    W = jnp.asarray(0.7 * np.linalg.qr(RNG.normal(size=(6, 6)))[0])
    map_ = dargmin.FixedPoint(lambda x, theta: jnp.tanh(W @ x + theta))
    iteration = dargmin.FixedPointIteration()
    d = diagnose(map_, iteration, X0, jnp.asarray(0.3), steps=25, remedies=False)
    assert d.ok and np.all(d.derivative_error[1:] <= np.asarray(d.prediction.bound)[1:] * 1.5)
    spiral = jnp.asarray([[0.0, -1.5], [1.5, 0.0]])
    map_ = dargmin.FixedPoint(lambda x, theta: spiral @ x + theta)
    d = diagnose(map_, iteration, jnp.ones(2), jnp.asarray(0.3), steps=25, remedies=False)
    assert d.prediction is None and "no contraction there" in d.notes[0]
    assert d.burn_in.height > 1e3


@pytest.mark.slow
def test_a_saddle_and_a_divergence_are_not_explained_away():
    problem = dargmin.Objective(lambda x, theta: jnp.sum(x**4) / 4 - theta * jnp.sum(x**2) / 2)
    near_saddle = jnp.full(3, 1e-9)
    step = dargmin.GradientDescent(0.1)
    d = diagnose(problem, step, near_saddle, jnp.asarray(1.0), steps=10, remedies=False)
    assert d.prediction is None and any("not convex" in note for note in d.notes)
    with_long_steps = dargmin.GradientDescent(30 / L)
    d = diagnose(RIDGE.problem, with_long_steps, X0, jnp.asarray(THETA), steps=400, remedies=False)
    assert np.isinf(d.burn_in.height) and "diverges" in str(d)


def test_a_diagnosis_is_a_table_and_a_figure():
    method = dargmin.Chebyshev(MU, L)
    d = diagnose(RIDGE.problem, method, X0, jnp.asarray(THETA), steps=50, remedies=False)
    table = d.to_dataframe()
    assert list(table.columns) == [
        "t", "iterate_error", "derivative_error", "estimate", "predicted", "bound",
    ]  # fmt: skip
    assert len(table) == 51 and table.estimate.notna().sum() == len(d.estimates)
    ax = d.plot()
    assert "Chebyshev: burn-in" in ax.get_title("left")
    plt.close(ax.figure)


def test_a_truth_that_is_known_is_used():
    truth = RIDGE.solution(THETA), RIDGE.jacobian(THETA)
    method = dargmin.HeavyBall.tuned(MU, L)
    d = diagnose(
        RIDGE.problem, method, X0, jnp.asarray(THETA), steps=20, truth=truth, remedies=False
    )
    assert d.truth_error == 0
    assert_allclose(d.derivatives[0], truth[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(steps=0), "steps must be an integer >= 1"),
        (dict(theta=3), "no floating-point leaf"),
        (dict(steps=10**9), r"Lower steps to \d+"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(change, message):
    arguments = (
        dict(
            problem=RIDGE.problem,
            method=dargmin.GradientDescent(0.1),
            x0=X0,
            theta=jnp.asarray(1.0),
            steps=9,
        )
        | change
    )
    with pytest.raises(ValueError, match=message):
        diagnose(**arguments)
