"""hypergradient and sensitivity: as accurate as asked for, or a status, on each problem."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scenarios import ELASTIC_NET, FIXED_POINT, LOGISTIC, RIDGE, ROOT

import dargmin
from dargmin import (
    LBFGS,
    DargminError,
    GradientDescent,
    Implicit,
    LateStart,
    NewtonCG,
    Objective,
    ProximalGradient,
    Status,
    Unrolled,
    hypergradient,
    sensitivity,
)
from dargmin.linear import CG
from dargmin.problems import zoo

SCENARIOS = {
    "ridge": RIDGE,
    "logistic": LOGISTIC,
    "fixed point": FIXED_POINT,
    "root": ROOT,
    "elastic net": ELASTIC_NET,
}
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)


def outer(x, theta):
    return 0.5 * jnp.sum((x - 1) ** 2) + jnp.sum(theta**2)


def true_gradient(scenario, theta=None):
    theta = np.asarray(scenario.theta if theta is None else theta)
    return (scenario.solution(theta) - 1) @ scenario.jacobian(theta) + 2 * theta


def distance(value, truth):
    """The relative error of `value`."""
    return np.linalg.norm(value - truth) / np.linalg.norm(truth)


@every_scenario
def test_a_hypergradient_is_as_accurate_as_asked_for(scenario):
    theta = np.asarray(scenario.theta)
    for rtol in (1e-3, 1e-6, 1e-9):
        h = hypergradient(outer, scenario.problem, scenario.x0, scenario.theta, rtol=rtol)
        true = distance(h.gradient, true_gradient(scenario))
        assert h.ok and h.certificate.error <= rtol
        assert true <= 3 * h.certificate.error
        assert_allclose(h.certificate.scale, np.linalg.norm(h.gradient))
        assert_allclose(h.value, outer(h.x, theta))
        assert_allclose(h.x, scenario.solution(theta), atol=rtol)


@pytest.mark.parametrize("scenario", [LOGISTIC, FIXED_POINT, ELASTIC_NET])
def test_a_batch_of_tangents_gives_the_certified_jacobian(scenario):
    truth = scenario.jacobian(np.asarray(scenario.theta)).T
    for rtol in (1e-3, 1e-6, 1e-9):
        s = sensitivity(scenario.problem, scenario.x0, scenario.theta, jnp.eye(2), rtol=rtol)
        assert s.tangent.shape == (2, 4) and s.certificate.error.shape == (2,)
        assert s.ok and np.all(s.certificate.error <= rtol)
        for j in range(2):
            assert distance(s.tangent[j], truth[j]) <= 3 * s.certificate.error[j]


def test_one_tangent_gives_one_derivative():
    tangent = np.array([0.6, -1.1])
    s = sensitivity(ROOT.problem, ROOT.x0, ROOT.theta, tangent, rtol=1e-9)
    assert s.ok and s.certificate.error.shape == ()
    assert_allclose(s.tangent, ROOT.jacobian(np.asarray(ROOT.theta)) @ tangent, rtol=1e-9)


def test_x_and_theta_are_any_pytrees():
    # x = (2a θ₁, [θ₁, θ₂³]) in closed form, with a an integer that rides along in theta
    def f(x, theta):
        aims = jnp.stack([theta["one"], theta["two"][0] ** 3])
        target = 2 * theta["count"] * theta["one"]
        return 0.5 * (x["scale"] - target) ** 2 + jnp.sum((x["pair"] - aims) ** 2)

    theta = {"one": 1.5, "two": np.array([2.0]), "count": 3, "none": None}
    x0 = {"scale": 0.0, "pair": jnp.zeros(2)}
    h = hypergradient(lambda x, _: x["scale"] + jnp.sum(x["pair"]), Objective(f), x0, theta)
    assert h.ok
    assert_allclose(h.value, 9 + 1.5 + 8)
    assert_allclose(h.gradient["one"], 7.0)
    assert_allclose(h.gradient["two"], [12.0])
    assert h.gradient["count"] is None and h.gradient["none"] is None
    tangents = {"one": np.eye(2)[:, 0], "two": np.eye(2)[:, 1:], "count": None, "none": None}
    s = sensitivity(Objective(f), x0, theta, tangents)
    assert_allclose(s.tangent["scale"], [6.0, 0.0], atol=1e-12)
    assert_allclose(s.tangent["pair"], [[1.0, 0.0], [0.0, 12.0]], atol=1e-12)


def test_under_jit_and_vmap_every_lane_has_its_status():
    scales = jnp.array([0.0, 1.0, jnp.nan, -1.0])
    thetas = LOGISTIC.theta + scales[:, None]

    @eqx.filter_jit
    def batch(problem, thetas):
        one = lambda theta: hypergradient(outer, problem, LOGISTIC.x0, theta, throw=False)
        return jax.vmap(one)(thetas)

    h = batch(LOGISTIC.problem, thetas)
    assert h.ok.tolist() == [True, True, False, True]
    assert (h.status == Status.nonfinite).tolist() == [False, False, True, False]
    assert h.cost.products.shape == (4,)
    for i in (0, 1, 3):
        assert distance(h.gradient[i], true_gradient(LOGISTIC, thetas[i])) <= 3e-3


@pytest.mark.slow
def test_what_a_warm_start_remembers_saves_products_in_a_scan():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 20)) * np.geomspace(1, 0.1, 20)
    instance = zoo.logistic(X, (rng.normal(size=60) + X[:, 0] > 0).astype(int))
    thetas = jnp.linspace(-4.0, -3.9, 8)
    phi = lambda x, theta: 0.5 * jnp.sum((x - 1) ** 2)
    start = dargmin.WarmStart.zeros(instance.x0)

    @eqx.filter_jit
    def path(problem, warm):
        def step(carry, theta):
            known = jax.tree.map(lambda u, v: jnp.where(warm, u, v), carry, start)
            h = hypergradient(
                phi, problem, instance.x0, theta, rtol=1e-6, mode=Implicit(CG()),
                warm_start=known, throw=False,
            )  # fmt: skip
            return h.warm_start, (h.gradient, h.ok, h.cost.products)

        return jax.lax.scan(step, start, thetas)[1]

    totals = {}
    for warm in (True, False):
        gradients, ok, products = path(instance.problem, jnp.asarray(warm))
        totals[warm] = int(jnp.sum(products))
        assert np.all(ok)
        for gradient, theta in zip(gradients, thetas, strict=True):
            x, jacobian = instance.solution(theta), instance.jacobian(theta)
            assert abs(gradient - (x - 1) @ jacobian) <= 3e-6 * abs((x - 1) @ jacobian)
    assert totals[True] < 0.8 * totals[False]


def test_a_method_can_be_asked_for():
    method = ProximalGradient(accelerate=False)
    scenario = ELASTIC_NET
    h = hypergradient(outer, scenario.problem, scenario.x0, scenario.theta, method=method)
    assert h.ok and "ProximalGradient was asked for" in h.reason
    assert distance(h.gradient, true_gradient(scenario)) <= 3e-3


@pytest.mark.parametrize(
    ("mode", "steps"), [(Unrolled(), 15), (LateStart(last=4), 60)], ids=["unrolled", "late start"]
)
def test_a_mode_of_the_iterations_is_certified_as_it_is(mode, steps):
    arguments = dict(method=GradientDescent(0.3), mode=mode, steps=steps)
    h = lambda **more: hypergradient(
        outer, LOGISTIC.problem, LOGISTIC.x0, LOGISTIC.theta, **arguments, **more
    )
    with pytest.raises(DargminError, match="accuracy was not reached") as caught:
        h(rtol=1e-6)
    result = caught.value.result
    true = distance(result.gradient, true_gradient(LOGISTIC))
    assert true > 1e-4
    assert_allclose(result.certificate.error, true, rtol=0.01)
    assert h(rtol=2 * true).ok
    assert "not refined" in result.reason


def test_a_spent_budget_is_a_status_that_says_how_far_it_got():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(20, 40)) + rng.normal(size=(20, 1))
    instance = zoo.lasso(X, X[:, :5] @ np.ones(5) + rng.normal(size=20))
    phi = lambda x, theta: jnp.sum(x**2)
    at = lambda steps, throw: hypergradient(
        phi, instance.problem, instance.x0, -3.0, steps=steps, throw=throw
    )
    short = at(2, False)
    assert short.status == Status.not_converged and not short.ok
    assert short.certificate.error == np.inf
    assert np.all(np.isfinite(short.x))
    with pytest.raises(DargminError, match=r"did not converge.*result") as caught:
        at(2, True)
    assert_allclose(caught.value.result.x, short.x)
    x, jacobian = instance.solution(-3.0), instance.jacobian(-3.0)
    assert_allclose(at(10_000, True).gradient, 2 * x @ jacobian, rtol=3e-3)


def test_a_gradient_of_zero_is_ok_within_atol_and_not_accurate_without():
    # x* = θ; the outer minimum is where θ = a, and there the gradient is rounding
    problem = Objective(lambda x, theta: jnp.sum(jnp.cosh(x - theta)))
    a = np.array([0.1, 0.7, -0.3])
    phi = lambda x, theta: 0.5 * jnp.sum((x - a) ** 2)
    at = lambda theta, **more: hypergradient(phi, problem, np.zeros(3), theta, **more)
    h = at(a, atol=1e-9)
    assert h.ok and np.linalg.norm(h.gradient) <= 1e-9
    # near the minimum the gradient θ - a is what is left of a difference: few digits are right
    near = a * (1 + 1e-11)
    h = at(near, rtol=1e-9, throw=False)
    assert h.status == Status.accuracy_not_reached
    assert distance(h.gradient, near - a) <= 3 * h.certificate.error < 1e-2


def test_an_empty_support_has_a_derivative_of_zero_and_is_ok():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 5)), rng.normal(size=12)
    instance = zoo.lasso(X, y)
    theta = np.log(np.max(np.abs(X.T @ y)) / 12) + 0.1
    h = hypergradient(lambda x, theta: jnp.sum((x - 1) ** 2), instance.problem, instance.x0, theta)
    assert h.ok and h.gradient == 0 and np.all(h.x == 0)
    assert h.certificate.error == 0 and h.certificate.absolute_error == 0


class Counter:
    """Counts, while a compiled program runs, how often its parts are evaluated."""

    def __init__(self):
        self.gradients = self.products = 0

    def count(self, name):
        def add():
            setattr(self, name, getattr(self, name) + 1)

        jax.debug.callback(add)

    def objective(self, X, loss):
        """Σ loss(Xw) + ½ e^θ ‖w‖² - w₁, with derivatives by hand, each evaluation counted."""
        slope, curvature = jax.grad(loss), jax.grad(jax.grad(loss))

        @jax.custom_vjp
        def f(w, theta):
            return jnp.sum(jax.vmap(loss)(X @ w)) + jnp.exp(theta) * jnp.sum(w**2) / 2 - w[0]

        def backward(saved, g):
            w, theta = saved
            self.count("gradients")
            gradient = X.T @ jax.vmap(slope)(X @ w) + jnp.exp(theta) * w
            return g * gradient.at[0].add(-1.0), g * jnp.exp(theta) * jnp.sum(w**2) / 2

        def product(w, theta, v):
            self.count("products")
            return X.T @ (jax.vmap(curvature)(X @ w) * (X @ v)) + jnp.exp(theta) * v

        f.defvjp(lambda w, theta: (f(w, theta), (w, theta)), backward)
        return Objective(f, quadratic=loss is jnp.square, hvp=product)


@pytest.mark.parametrize(
    ("loss", "method"),
    [(jnp.square, None), (lambda z: jnp.log(jnp.cosh(z)), GradientDescent(0.02))],
)
def test_the_cost_is_what_was_evaluated(loss, method):
    X = np.random.default_rng(1).normal(size=(20, 6)) * np.geomspace(1, 0.2, 6)
    counter = Counter()
    h = hypergradient(
        lambda x, theta: jnp.sum(x**2), counter.objective(jnp.asarray(X), loss), jnp.ones(6), -1.0,
        method=method, mode=Implicit(CG()), rtol=1e-6,
    )  # fmt: skip
    jax.block_until_ready(h)
    jax.effects_barrier()
    assert h.ok and h.cost.factorisations == 0
    assert counter.products > 10 and counter.gradients > 2
    # A product with ∂_θF counts as a product; here it evaluates a gradient, and differentiates it.
    crossed = int(h.cost.products) - counter.products
    assert crossed > 0
    assert counter.gradients == int(h.cost.gradients) + crossed


def test_it_says_that_it_is_not_differentiable_again():
    def value(theta):
        return hypergradient(outer, RIDGE.problem, RIDGE.x0, theta).value

    def tangent(theta):
        return sensitivity(RIDGE.problem, RIDGE.x0, theta, jnp.ones(2)).tangent

    with pytest.raises(TypeError, match=r"not differentiable again.*solve"):
        jax.grad(value)(RIDGE.theta)
    with pytest.raises(TypeError, match=r"not differentiable again.*solve"):
        jax.jacfwd(tangent)(RIDGE.theta)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(rtol=-1e-3), "rtol must be >= 0"),
        (dict(rtol=float("nan")), "rtol must be >= 0"),
        (dict(atol=-1.0), "atol must be >= 0"),
        (dict(steps=0), "steps must be an integer >= 1"),
        (dict(theta=3), "no floating-point leaf"),
        (dict(theta=None), "no floating-point leaf"),
        (dict(mode=Unrolled()), "give method="),
    ],
)
def test_bad_arguments_are_named(changed, message):
    arguments = dict(x0=RIDGE.x0, theta=RIDGE.theta) | changed
    with pytest.raises(ValueError, match=message):
        hypergradient(outer, RIDGE.problem, **arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(tangent=jnp.ones(3)), r"shapes of theta.*\(3,\).*\(2,\)"),
        (dict(tangent=jnp.ones((0, 2))), r"shapes of theta"),
        (dict(tangent=(jnp.ones(2),)), "structure"),
        (dict(tangent=3), "structure"),
        (dict(rtol=-1.0), "rtol must be >= 0"),
    ],
)
def test_bad_arguments_of_sensitivity_are_named(changed, message):
    arguments = dict(tangent=jnp.ones(2)) | changed
    with pytest.raises(ValueError, match=message):
        sensitivity(RIDGE.problem, RIDGE.x0, RIDGE.theta, **arguments)


def test_x_may_be_a_number_or_empty():
    h = hypergradient(lambda x, _: x**2, Objective(lambda x, t: jnp.cosh(x - t)), 0.5, 2.0)
    assert h.ok
    assert_allclose((h.x, h.gradient), (2.0, 4.0), rtol=1e-9)
    nothing = Objective(lambda x, theta: jnp.sum(x**2) * theta)
    h = hypergradient(lambda x, theta: theta**3, nothing, jnp.zeros(0), 2.0)
    assert h.ok and h.x.shape == (0,)
    assert_allclose(h.gradient, 12.0)


def test_nan_and_infinity_are_a_status():
    at = lambda x0, theta: hypergradient(outer, RIDGE.problem, x0, theta, throw=False)
    for h in (at(RIDGE.x0, RIDGE.theta * jnp.nan), at(RIDGE.x0 * jnp.inf, RIDGE.theta)):
        assert h.status == Status.nonfinite and h.certificate.error == np.inf
        with pytest.raises(DargminError, match="Infinite or NaN"):
            h.certificate.raise_if_failed()


@pytest.mark.parametrize("growth", [1, 0])
def test_a_saddle_is_left_for_a_minimum_or_refused(growth):
    # Newton's method stands still at x₁ = 0, where the implicit formula is finite.
    problem = Objective(lambda x, theta: x[0] ** 2 - x[1] ** 2 + growth * x[1] ** 4 + theta * x[0])
    h = hypergradient(lambda x, _: x[0] ** 2, problem, jnp.zeros(2), 1.0, throw=False)
    if growth:
        assert h.ok
        np.testing.assert_allclose(h.x**2, (0.25, 0.5), rtol=1e-6)
    else:
        assert h.status == Status.unbounded and np.isnan(h.gradient)


@pytest.mark.parametrize(
    "method",
    [pytest.param(NewtonCG(), marks=pytest.mark.slow), LBFGS()],
    ids=["Newton-CG", "L-BFGS"],
)
def test_a_start_at_the_solution_is_not_worked_on(method):
    # There the gradient is rounding: a tolerance relative to it is never met.
    A, y = jax.random.normal(jax.random.key(0), (100, 80)), jnp.arange(100.0) % 2
    loss = lambda x: jnp.mean(jax.nn.softplus(A @ x) - y * (A @ x))
    problem = Objective(lambda x, theta: loss(x) + jnp.exp(theta) / 2 * jnp.sum(x**2))
    theta = jnp.array(-8.0)
    x, costs = jnp.zeros(80), []
    for _ in range(3):
        h = hypergradient(lambda x, _: loss(x), problem, x, theta, rtol=1e-2, method=method)
        x = h.x
        costs.append(int(h.cost.gradients))
    assert costs[2] <= costs[0] / 2  # the second start is at rounding already, or nearly
