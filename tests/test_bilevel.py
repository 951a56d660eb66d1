"""The outer loop: certified, resumable, compiled once; against closed forms and SciPy."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from numpy.testing import assert_allclose

import dargmin
from dargmin import DargminError, GradientDescent, Implicit, LateStart, Objective, Status, Unrolled
from dargmin.bilevel import LBFGSB, BilevelSolution, History, minimize
from dargmin.bilevel.checkpoint import Checkpoint
from dargmin.bilevel.progress import Display
from dargmin.linear import CG

RNG = np.random.default_rng(0)
D = 8
X = RNG.normal(size=(60, D)) * np.geomspace(1, 0.2, D)
W = RNG.normal(size=D)
Y = X @ W + RNG.normal(size=60)
LABELS = np.sign(X @ W + 0.5 * RNG.normal(size=60))
TRAIN, VALID = slice(None, 40), slice(40, None)


class Loss(eqx.Module):
    """Data as leaves: another fold compiles nothing."""

    X: jax.Array
    y: jax.Array

    def __call__(self, w, theta):
        return jnp.mean(jax.nn.softplus(-self.y * (self.X @ w)))


class Penalised(eqx.Module):
    loss: Loss

    def __call__(self, w, theta):
        return self.loss(w, theta) + 0.5 * jnp.sum(jnp.exp(theta) * w**2)


LOGISTIC = Objective(Penalised(Loss(jnp.asarray(X[TRAIN]), jnp.asarray(LABELS[TRAIN]))))
VALIDATION = Loss(jnp.asarray(X[VALID]), jnp.asarray(LABELS[VALID]))
W0, THETA0 = jnp.zeros(D), jnp.full(D, -3.0)
RIDGE = Objective(
    lambda w, t: jnp.sum((X[TRAIN] @ w - Y[TRAIN]) ** 2) / 80 + 0.5 * jnp.exp(t) * jnp.sum(w**2)
)


def ridge_validation(w, theta):
    return jnp.mean((X[VALID] @ w - Y[VALID]) ** 2)


def exact_ridge(theta):
    """φ(x*(θ)) by the normal equations."""
    gram = X[TRAIN].T @ X[TRAIN] / 40 + np.exp(theta) * np.eye(D)
    w = np.linalg.solve(gram, X[TRAIN].T @ Y[TRAIN] / 40)
    return np.mean((X[VALID] @ w - Y[VALID]) ** 2)


def logistic(optimizer, steps, **more):
    return minimize(VALIDATION, LOGISTIC, W0, THETA0, optimizer=optimizer, steps=steps, **more)


def total(history):
    return np.sum(history["inner_cost"] + history["adjoint_cost"])


def test_the_penalty_of_ridge_regression_is_where_the_exact_outer_function_is_least():
    least = scipy.optimize.minimize_scalar(exact_ridge, bounds=(-6, 3), method="bounded",
                                           options=dict(xatol=1e-9))  # fmt: skip
    seen = []
    s = minimize(ridge_validation, RIDGE, W0, -4.0, optimizer="lbfgs", steps=30,
                 callback=seen.append)  # fmt: skip
    # minimize_scalar sees values only: √ε of rounding in φ is all that it can resolve
    assert s.ok and s.theta.shape == ()
    assert_allclose(s.theta, least.x, atol=1e-5)
    assert_allclose(s.value, exact_ridge(float(s.theta)), rtol=1e-10)
    assert len(seen) == len(s.history) < 15
    assert np.all(s.history["error"][:-1] <= 0.01)

    # the second bound is where the slope points out of the box
    upper = float(least.x) - 0.5
    at = minimize(ridge_validation, RIDGE, W0, -4.0, optimizer="lbfgs", steps=30,
                  bounds=(-5.0, upper))  # fmt: skip
    assert at.ok and at.theta == upper and at.history["gradient_norm"][-1] == 0


def test_penalties_of_features_are_certified_decreasing_and_stationary():
    bounds = (-6.0, jnp.full(D, 3.0))
    s = logistic("lbfgs", 200, bounds=bounds)
    assert s.ok and np.all((s.theta >= -6) & (s.theta <= 3))
    value, slope = s.history["value"], s.history["gradient_norm"]
    assert np.all(np.diff(value) <= 0) and value[-1] == s.value < 0.9 * value[0]
    assert slope[-1] <= 1e-6 * slope[0]
    far = slope > 1e-6 * slope[0]
    assert np.all(s.history["error"][far] <= 1.0)  # of the gradient; where bounds bite, of less

    # central differences of SciPy's exact inner solutions, at the solution
    def phi(theta):
        f = lambda w: (float(LOGISTIC.f(w, theta)), np.asarray(jax.grad(LOGISTIC.f)(w, theta)))
        w = scipy.optimize.minimize(f, np.zeros(D), jac=True, method="BFGS",
                                    options=dict(gtol=1e-10)).x  # fmt: skip
        return float(VALIDATION(w, theta))

    assert_allclose(phi(s.theta), s.value, rtol=1e-7)
    free = np.flatnonzero((s.theta > -6) & (s.theta < 3))
    for j in free[:2]:
        step = 1e-3 * np.eye(D)[j]
        assert abs(phi(s.theta + step) - phi(s.theta - step)) / 2e-3 <= 1e-6


@pytest.mark.slow
def test_adaptive_accuracy_costs_less_for_the_same_value():
    mode = Implicit(CG())
    adaptive, tight = (logistic(optax.sgd(2.0), 30, rtol=r, mode=mode) for r in ("adaptive", 1e-6))
    # thirty steps are not enough, which is no error, but no success either
    assert adaptive.status == tight.status == Status.steps_spent and len(tight.history) == 31
    assert_allclose(adaptive.value, tight.value, rtol=1e-3)
    assert total(adaptive.history) < 0.9 * total(tight.history)
    assert np.all(adaptive.history["error"] <= 0.1) and np.all(tight.history["error"] <= 1e-6)
    assert np.all(adaptive.history["hypergradients"] == 1)
    cold = logistic(optax.sgd(2.0), 30, rtol=1e-6, mode=mode, warm_start=False)
    assert_allclose(cold.value, tight.value, rtol=1e-6)
    assert total(tight.history) < 0.7 * total(cold.history)


def test_a_fixed_number_of_unrolled_steps_profits_from_warm_starts():
    arguments = dict(method=GradientDescent(1.0), inner_steps=20, throw=False)
    runs = {
        warm: logistic(optax.sgd(1.0), 15, mode=Unrolled(), warm_start=warm, **arguments)
        for warm in (True, False)
    }
    errors = {warm: run.history["error"] for warm, run in runs.items()}
    assert_allclose(errors[True][0], errors[False][0])
    assert errors[True][-1] < 0.7 * errors[False][-1]
    K = runs[True].history["effective_start"]
    assert (
        K[0] == 0
        and np.all(K[5:] > 20)
        and np.all(np.isnan(runs[False].history["effective_start"]))
    )

    # x_T and its derivative by a plain scan, from the same start
    def unrolled(theta):
        x = W0
        for _ in range(20):
            x = x - jax.grad(LOGISTIC.f)(x, theta)
        return VALIDATION(x, theta)

    last = runs[False]
    assert_allclose(last.value, unrolled(last.theta), rtol=1e-10)
    assert np.all(last.history["inner_cost"] == 20)
    assert runs[False].status == Status.ok or runs[False].status == Status.accuracy_not_reached


def test_a_direction_that_is_not_certified_shows_in_the_status():
    # One step from far away: the derivative of the algorithm is nothing like that of the solution
    # (it is zero at a zero start), and with throw=True that is an error that carries the result.
    arguments = dict(method=GradientDescent(0.05), inner_steps=2, warm_start=False)
    with pytest.raises(DargminError, match="accuracy was not reached") as caught:
        logistic(optax.sgd(0.1), 2, mode=LateStart(last=1), **arguments)
    result = caught.value.result
    assert isinstance(result, BilevelSolution) and len(result.history) == 3 and not result.ok
    assert result.history["error"][-1] > 0.5


def test_theta_is_any_pytree_and_stays_within_its_bounds():
    def f(w, theta):
        target = theta["aim"] * theta["count"]
        return 0.5 * jnp.sum((w - target) ** 2) + 0.5 * theta["weight"][0] * jnp.sum(w**2)

    theta = {"aim": jnp.ones(2), "count": 3, "none": None, "weight": [jnp.asarray(0.5)]}
    lower = {"aim": jnp.asarray([-1.0, 0.8]), "count": None, "none": None, "weight": [0.1]}
    s = minimize(
        lambda w, t: jnp.sum((w - jnp.asarray([1.0, 1.0])) ** 2), Objective(f), jnp.zeros(2), theta,
        optimizer=optax.adam(0.1), steps=80, bounds=(lower, 2.0), throw=False,
    )  # fmt: skip
    # w = 3 aim / (1 + weight) should be (1, 1), which the bound of aim₂ leaves room for
    assert s.theta["count"] == 3 and s.theta["none"] is None
    assert np.all(s.theta["aim"] >= np.asarray([-1.0, 0.8])) and 0.1 <= s.theta["weight"][0] <= 2
    assert_allclose(s.x, 3 * s.theta["aim"] / (1 + s.theta["weight"][0]), rtol=1e-6)
    assert s.value < 0.05


KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, {tests!r})
import optax
import test_bilevel as t

def die(solution):
    if len(solution.history) == 5:
        os.kill(os.getpid(), signal.SIGKILL)

t.logistic(optax.adam(0.1), 9, mode=t.Implicit(t.CG()), checkpoint={path!r}, callback=die)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    path = tmp_path / "outer.npz"
    program = KILLED.format(tests=str(Path(__file__).parent), path=str(path))
    environment = {**os.environ, "PYTHONPATH": str(Path(dargmin.__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["outer.npz"]
    seen = []
    again = lambda n, **more: logistic(optax.adam(0.1), n, mode=Implicit(CG()), **more)
    resumed = again(9, checkpoint=path, callback=lambda s: seen.append(len(s.history)))
    whole = again(9)
    assert seen == [6, 7, 8, 9, 10]
    assert_allclose(resumed.theta, whole.theta, rtol=1e-12)
    for name in ("value", "error", "inner_cost", "step_norm"):
        assert_allclose(resumed.history[name], whole.history[name], rtol=1e-6)
    assert np.all(np.diff(resumed.history["time"]) > 0)

    # what is finished is not done again; another problem, or rubbish, is refused
    assert_allclose(again(9, checkpoint=path, callback=seen.append).theta, whole.theta, rtol=1e-12)
    assert len(seen) == 5
    other = eqx.tree_at(lambda p: p.f.loss.X, LOGISTIC, 1.1 * LOGISTIC.f.loss.X)
    arguments = dict(optimizer=optax.adam(0.1), steps=9, checkpoint=path)
    with pytest.raises(ValueError, match="different problem: its objective"):
        minimize(VALIDATION, other, W0, THETA0, **arguments)
    with pytest.raises(ValueError, match="different problem: its theta is"):
        minimize(VALIDATION, LOGISTIC, W0, -3.0, **arguments)
    with pytest.raises(ValueError, match="different problem: its optimizer is Optax"):
        logistic("lbfgs", 9, checkpoint=path)
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="is no checkpoint"):
        logistic(optax.adam(0.1), 9, checkpoint=path)


def test_a_write_that_is_cut_short_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    checkpoint = Checkpoint(tmp_path / "outer.npz", {"theta": "one number"}, {"x0": np.ones(3)})
    assert checkpoint.load(jnp.zeros(2)) is None
    checkpoint.save(jnp.ones(2), np.zeros((4, 10)), np.zeros((7, 3)))
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(jnp.zeros(2), np.zeros((5, 10)), np.zeros((8, 3)))
    state, rows, tape = checkpoint.load(jnp.zeros(2))
    assert_allclose(state, 1)
    assert rows.shape == (4, 10) and tape.shape == (7, 3)


def test_lbfgs_goes_on_from_a_checkpoint_and_an_interrupt_carries_the_result(tmp_path):
    path = tmp_path / "outer.npz"

    def interrupt(solution):
        if len(solution.history) == 4:
            raise KeyboardInterrupt

    arguments = dict(optimizer=LBFGSB(memory=5), steps=60, bounds=(-6.0, 3.0), checkpoint=path)
    run = lambda **more: minimize(VALIDATION, LOGISTIC, W0, THETA0, **arguments, **more)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(callback=interrupt)
    stopped = caught.value.result
    assert stopped.status == Status.steps_spent and len(stopped.history) == 4
    assert stopped.value == stopped.history["value"][3]
    s, whole = run(), run_whole(arguments)
    assert s.ok and s.history["value"][3] == stopped.value
    # the same steps to the bit: the line search was played again
    np.testing.assert_array_equal(s.theta, whole.theta)
    np.testing.assert_array_equal(s.history["value"], whole.history["value"])


def run_whole(arguments):
    return minimize(VALIDATION, LOGISTIC, W0, THETA0, **arguments | dict(checkpoint=None))


def test_the_loop_compiles_once():
    traces = []

    def f(w, theta):
        traces.append(None)
        return jnp.sum(jnp.cosh(w - theta)) + 0.1 * jnp.sum(w**2)

    counts = []
    minimize(
        lambda w, theta: jnp.sum((w - 0.5) ** 2), Objective(f), np.zeros(3), np.ones(3),
        optimizer=optax.sgd(0.1), steps=6, callback=lambda s: counts.append(len(traces)),
    )  # fmt: skip
    assert counts[0] > 0 and counts == [counts[0]] * 7


@pytest.mark.slow
def test_folds_share_one_solve_with_x_stacked():
    folds = np.arange(60).reshape(3, 20)
    rest = np.stack([np.setdiff1d(np.arange(60), fold) for fold in folds])
    inside = Penalised(Loss(jnp.asarray(X[rest]), jnp.asarray(LABELS[rest])))
    held_out = Loss(jnp.asarray(X[folds]), jnp.asarray(LABELS[folds]))
    mapped = lambda f: lambda w, theta: jnp.sum(jax.vmap(lambda g, v: g(v, theta))(f, w))
    # the Hessian of the sum is block diagonal: each fold has its own solution, all in one program
    s = minimize(mapped(held_out), Objective(mapped(inside)), jnp.zeros((3, D)), THETA0,
                 optimizer="lbfgs", steps=3)  # fmt: skip
    assert s.status == Status.steps_spent
    one = Objective(jax.tree.map(lambda u: u[1], inside))
    alone = dargmin.hypergradient(
        jax.tree.map(lambda u: u[1], held_out), one, W0, s.theta, rtol=1e-6, mode=Implicit(CG())
    )
    assert_allclose(s.x[1], alone.x, atol=1e-3)


def test_a_failure_keeps_the_best_so_far():
    # ∇²f is indefinite beyond θ = 1, where the loop goes
    problem = Objective(lambda w, theta: 0.5 * (1 - theta) * w**2 - w)
    run = lambda **more: minimize(
        lambda w, theta: -w - theta, problem, 0.0, 0.0, optimizer=optax.sgd(0.05), steps=50, **more
    )
    with pytest.raises(DargminError, match="so far is on this") as caught:
        run()
    s = caught.value.result
    assert not s.ok and s.status != Status.accuracy_not_reached and 0 < s.theta < 1
    assert_allclose(s.x, 1 / (1 - s.theta), rtol=1e-6)
    assert s.value == np.min(s.history["value"]) and len(s.history) > 2


def test_a_line_search_steps_back_from_where_the_inner_side_fails():
    # x* = 1 / (1 - θ): the first trial is θ = 1, and the minimum is at 0.8, where x* = 5
    problem = Objective(lambda w, theta: 0.5 * (1 - theta) * w**2 - w)
    s = minimize(lambda w, theta: (w - 5) ** 2, problem, 0.0, 0.0, optimizer="lbfgs", steps=40)
    assert s.ok
    assert_allclose(s.theta, 0.8, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(optimizer="adam"), r'optimizer must be "lbfgs".*optax\.adam'),
        (dict(optimizer=optax.lbfgs()), r'line search.*"lbfgs"'),
        (dict(steps=-1), "steps must be an integer >= 0"),
        (dict(rtol=0.0), 'rtol must be "adaptive" or a number > 0'),
        (dict(rtol="tight"), 'rtol must be "adaptive" or a number > 0'),
        (dict(theta0=3), "no floating-point leaf"),
        (dict(mode=Unrolled()), "inner_steps= and method="),
        (dict(mode=Unrolled(), inner_steps=5), "give method="),
        (dict(inner_steps=0), "inner_steps must be an integer >= 1"),
        (dict(bounds=3.0), r"bounds must be a pair \(lower, upper\)"),
        (dict(bounds=(1.0, -1.0)), "lower > upper"),
        (dict(bounds=(0.0, None)), "theta0 must lie within the bounds"),
        (dict(bounds=(jnp.zeros(3), None)), "the lower one must be a number, None or a pytree"),
        (dict(checkpoint="/nowhere/outer.npz"), "no directory"),
    ],
)
def test_bad_arguments_are_named(changed, message):
    arguments = dict(theta0=THETA0, optimizer="lbfgs", steps=3) | changed
    with pytest.raises(ValueError, match=message):
        minimize(VALIDATION, LOGISTIC, W0, arguments.pop("theta0"), **arguments)


def test_bad_settings_of_lbfgs_are_named():
    with pytest.raises(ValueError, match="integer memory >= 1"):
        LBFGSB(memory=0)
    with pytest.raises(ValueError, match="ftol >= 0"):
        LBFGSB(ftol=-1.0)


def test_a_history_is_a_table():
    history = History()
    assert len(history) == 0 and history["value"].shape == (0,)
    history.append({name: i for i, name in enumerate(History.columns)})
    assert len(history) == 1 and history["value"] == [1.0]
    frame = history.to_dataframe()
    assert list(frame.columns) == list(History.columns) and frame["step"].dtype == int
    with pytest.raises(KeyError, match="The columns are step, value"):
        history["loss"]


def test_progress_shows_only_on_a_terminal_and_only_after_a_while(monkeypatch, capsys):
    row = dict.fromkeys(History.columns, 1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    display = Display(5)
    display.show(row)
    assert display.line is None
    display.begin -= 10
    display.show(row)
    display.close()
    assert display.line is not None and display.cost == 4
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    quiet = Display(5)
    quiet.begin -= 10
    quiet.show(row)
    assert quiet.line is None
