"""When the outer loop may stop, and which directions it may use: without scales or shifts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from numpy.testing import assert_allclose

from dargmin import DargminError, Implicit, Objective, Status
from dargmin.bilevel import LBFGSB, minimize
from dargmin.bilevel.curvature import Pairs
from dargmin.linear import CG

RNG = np.random.default_rng(0)
DATA = RNG.normal(size=50) * 1.7 + 1.0
MEAN = Objective(lambda x, t: 0.5 * jnp.sum((DATA - x) ** 2))
AIM = Objective(lambda x, t: 0.5 * jnp.sum((x - t) ** 2))


class Likelihood(eqx.Module):
    """φ = scale (mean (y - x)² / 2σ² + log σ) + shift, σ = e^θ: least at log σ = log std y."""

    scale: jax.Array
    shift: jax.Array

    def __call__(self, x, theta):
        square = jnp.mean((DATA - x) ** 2)
        return self.scale * (0.5 * square * jnp.exp(-2 * theta) + theta) + self.shift


def likelihood(scale=1.0, shift=0.0, start=-10.0, **more):
    outer = Likelihood(jnp.asarray(scale), jnp.asarray(shift))
    return minimize(outer, MEAN, 0.0, start, optimizer="lbfgs", steps=300, **more)


@pytest.mark.parametrize("start", [-10.0, 0.0, 3.0])
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1, 1e9), (1e9, 0), (1e-9, 0)])
def test_neither_the_start_nor_the_unit_of_phi_nor_a_constant_in_it_decides(scale, shift, start):
    s = likelihood(scale, shift, start)
    # gtol is the relative error of θ, by default 1e-6
    assert s.ok
    assert_allclose(s.theta, np.log(np.std(DATA)), rtol=2e-6)


def test_a_function_that_falls_without_end_is_not_stationary():
    s = likelihood(-1.0, start=-10.0, throw=False)
    assert s.status == Status.nonfinite and s.value < -1e9


def test_gtol_is_the_relative_error_of_theta():
    right = np.log(np.std(DATA))
    loose, tight = likelihood(start=0.0, gtol=1e-1), likelihood(start=0.0, gtol=1e-10)
    assert loose.ok and tight.ok and len(loose.history) < len(tight.history)
    assert abs(loose.theta / right - 1) < 0.2 and abs(tight.theta / right - 1) < 2e-10


def aim(optimizer, target=1.0, start=10.0, **more):
    outer = lambda x, t: jnp.sum((x - target) ** 2)
    return minimize(outer, AIM, jnp.zeros(2), jnp.full(2, start), optimizer=optimizer, **more)


def test_steps_that_are_spent_are_no_success_and_no_error_unless_gtol_was_asked_for():
    adam = optax.adam(1e-3)
    s = aim(adam, steps=30, start=1e3)
    assert s.status == Status.steps_spent and not s.ok and s.value > 1e6
    with pytest.raises(DargminError, match="loosen `gtol`") as caught:
        aim(adam, steps=30, start=1e3, gtol=1e-6)
    assert_allclose(caught.value.result.theta, s.theta)


@pytest.mark.parametrize("target", [1.0, 0.0])
@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.adam(0.1), "lbfgs"])
def test_optimizers_of_fixed_steps_end_too_where_theta_is_stationary(optimizer, target):
    s = aim(optimizer, target=target, steps=2000)
    assert s.ok and len(s.history) < 1000
    assert_allclose(s.theta, target, atol=3e-6)


def test_a_start_that_is_stationary_or_an_outer_function_that_is_constant_is_seen_at_once():
    assert aim("lbfgs", start=1.0, steps=9).ok
    constant = minimize(
        lambda x, t: 3.0 + 0 * jnp.sum(x), AIM, jnp.zeros(2), jnp.ones(2), optimizer="lbfgs",
        steps=9,
    )  # fmt: skip
    assert constant.ok and len(constant.history) == 1


def test_flat_directions_are_followed_to_their_minimum_too():
    # what the last steps have not met counts as the flattest that they have
    weights = jnp.geomspace(1, 1e-8, 6)
    s = minimize(lambda x, t: jnp.sum(weights * (x - 2) ** 2), AIM, jnp.zeros(6),
                 jnp.full(6, -1.0), optimizer="lbfgs", steps=200)  # fmt: skip
    assert s.ok and s.value < 1e-11  # gtol² of ½ L ‖θ‖²
    assert_allclose(s.theta[:4], 2, atol=1e-4)


def test_a_loop_that_diverges_leaves_the_best_theta_and_no_success():
    s = aim(optax.sgd(1.5), start=3.0, steps=60)
    assert s.status == Status.steps_spent
    assert_allclose(s.theta, 3.0)


def test_a_start_on_a_hill_is_no_minimum_although_its_gradient_is_zero():
    s = minimize(lambda x, t: -jnp.sum((x - 1) ** 2), AIM, jnp.zeros(2), jnp.ones(2),
                 optimizer="lbfgs", steps=9, throw=False)  # fmt: skip
    assert s.status == Status.not_positive_definite


def test_a_distance_is_that_of_newton_in_the_metric_of_the_largest_curvature():
    H, least = np.diag([1.0, 100.0]), np.asarray([3.0, 4.0])
    pairs, theta = Pairs.none(2), np.zeros(2)
    for theta in (np.zeros(2), np.asarray([3.0, 0.0]), np.asarray([3.0, 3.9])):
        pairs = pairs.following(theta, H @ (theta - least), 1e-9)
    gradient = H @ (theta - least)
    expected = np.sqrt(gradient @ np.linalg.solve(H, gradient) / 100)
    assert_allclose(pairs.distance(theta, gradient, np.ones(2, bool)), expected, rtol=0.1)
    # a change that may be an error, and a curvature that is negative, show nothing
    noisy = Pairs.none(2).following(np.zeros(2), np.ones(2), 1.0)
    noisy = noisy.following(np.ones(2), 2 * np.ones(2), 1.0)
    assert noisy.distance(theta, gradient, np.ones(2, bool)) == np.inf
    hill = Pairs.none(2).following(np.zeros(2), np.ones(2), 0.0)
    hill = hill.following(np.ones(2), np.zeros(2), 0.0)
    assert hill.distance(theta, gradient, np.ones(2, bool)) == np.inf


d, n = 10, 60
COUNTS = np.random.default_rng(1)
A, B = (jnp.asarray(COUNTS.normal(size=(n, d)) * 0.5) for _ in range(2))
W = COUNTS.normal(size=d) * 0.7 + 0.3
Y, V = (jnp.asarray(COUNTS.poisson(np.exp(M @ W)).astype(float)) for M in (A, B))
POISSON = Objective(
    lambda w, t: (
        jnp.sum(jnp.exp(A @ w) - Y * (A @ w)) + 0.5 * jnp.exp(-2 * t[0]) * jnp.sum((w - t[1]) ** 2)
    )
)


def held_out(w, t):
    return jnp.mean(jnp.exp(B @ w) - V * (B @ w))


@jax.jit
def true_gradient(x, theta):
    """By Newton steps from x, and a dense solve."""
    f = lambda w: POISSON.f(w, theta)
    for _ in range(5):
        x = x - jnp.linalg.solve(jax.hessian(f)(x), jax.grad(f)(x))
    adjoint = jnp.linalg.solve(jax.hessian(f)(x), jax.grad(held_out)(x, theta))
    return -jax.grad(lambda t: jax.grad(lambda w: POISSON.f(w, t))(x) @ adjoint)(theta)


@pytest.mark.parametrize("mode", [Implicit(), Implicit(CG())], ids=["factor", "CG"])
@pytest.mark.parametrize(("optimizer", "steps"), [("lbfgs", 60), (optax.sgd(1.0), 80)])
def test_every_direction_descends_although_the_gradient_cancels(optimizer, steps, mode):
    # near the optimum the adjoint is as large as ever, and what it is multiplied with cancels
    seen = []
    s = minimize(
        held_out, POISSON, jnp.zeros(d), jnp.zeros(2), optimizer=optimizer, steps=steps, mode=mode,
        callback=seen.append,
    )  # fmt: skip
    assert s.ok or s.status == Status.steps_spent
    for at in seen[:: max(1, len(seen) // 30)]:
        true = true_gradient(at.x, at.theta)
        assert jnp.vdot(true, at.gradient) > 0
    if optimizer == "lbfgs":
        assert s.ok and np.linalg.norm(true_gradient(s.x, s.theta)) < 1e-5


def exact_penalties(theta, X, y):
    w = np.linalg.solve(X[:40].T @ X[:40] / 40 + np.diag(np.exp(theta)), X[:40].T @ y[:40] / 40)
    return np.mean((X[40:] @ w - y[40:]) ** 2)


def test_ten_penalties_in_float32_end_as_low_as_the_precision_lets_them():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(60, 10))
    y = X @ (rng.normal(size=10) * (np.arange(10) < 5)) + rng.normal(size=60)
    single = jnp.asarray(X, jnp.float32), jnp.asarray(y, jnp.float32)

    def f(w, theta):
        fit = jnp.mean((single[0][:40] @ w - single[1][:40]) ** 2)
        return 0.5 * (fit + jnp.sum(jnp.exp(theta) * w**2))

    outer = lambda w, theta: jnp.mean((single[0][40:] @ w - single[1][40:]) ** 2)
    start = jnp.full(10, -2.0, jnp.float32)
    s = minimize(outer, Objective(f), jnp.zeros(10, jnp.float32), start, optimizer="lbfgs",
                 steps=200, bounds=(-6.0, 3.0))  # fmt: skip
    best = scipy.optimize.minimize(
        exact_penalties, np.asarray(s.theta, float), (X, y), bounds=[(-6, 3)] * 10,
        options=dict(ftol=1e-15, gtol=1e-9, maxfun=10**5),
    )  # fmt: skip
    assert s.ok
    assert exact_penalties(np.asarray(s.theta, float), X, y) - best.fun < 2e-6  # 20 ε of φ


def test_ftol_ends_a_run_with_status_ok_and_is_off_by_default():
    assert LBFGSB().ftol == 0
    outer = Likelihood(jnp.asarray(1.0), jnp.asarray(0.0))
    early = minimize(outer, MEAN, 0.0, 0.0, optimizer=LBFGSB(ftol=1e-2), steps=99, gtol=1e-12)
    assert early.ok and len(early.history) < 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(gtol=0.0), "gtol must be a number > 0"),
        (dict(outer=lambda x, t: x), "must return one real number, but returns float64"),
        (dict(outer=lambda x, t: x[0, 0]), r"outer\(x0, theta0\) fails"),
        (dict(x0=jnp.zeros(3)), "shape of x0"),
        (dict(x0={"a": jnp.zeros(2)}), "shape of x0"),
        (dict(problem=Objective(lambda x, t: x)), "cannot be evaluated"),
    ],
)
def test_functions_that_do_not_fit_are_named(changed, message):
    arguments = dict(outer=lambda x, t: 1.0 * jnp.sum(t), problem=AIM, x0=jnp.zeros(2)) | changed
    call = [arguments.pop(name) for name in ("outer", "problem", "x0")]
    with pytest.raises(ValueError, match=message):
        minimize(*call, jnp.ones(2), optimizer="lbfgs", steps=2, **arguments)
