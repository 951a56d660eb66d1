"""One contract for every mode: the same x_T; jvp = vjp = an independent oracle; second derivatives;
jit, vmap, pytrees; constants stay constants; called again, nothing is compiled."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
import scenarios
from numpy.testing import assert_allclose, assert_array_equal
from scenarios import ELASTIC_NET, FIXED_POINT, LOGISTIC, MU, RIDGE, ROOT, L, contraction, cubic

import dargmin
from dargmin import (
    LBFGS,
    Chebyshev,
    ConjugateGradient,
    FixedPointIteration,
    FromOptax,
    FromOptimistix,
    GradientDescent,
    HeavyBall,
    Implicit,
    LateStart,
    Nesterov,
    Neumann,
    NewtonCG,
    ProximalGradient,
    Unrolled,
)
from dargmin.linear import CG, BiCGStab, largest_eigenvalue

# Pairs rather than the full product: each problem, each method and each mode occurs, each mode
# on at least two kinds of problem. The steps are enough for x_T and its derivative to converge.
COMBINATIONS = {
    "ridge-gd-unrolled": (RIDGE, GradientDescent(), Unrolled(), 120),
    "ridge-chebyshev-sqrt": (RIDGE, Chebyshev(MU, L), Unrolled("sqrt"), 60),
    "ridge-heavyball-start": (RIDGE, HeavyBall.tuned(MU, L), LateStart(start=20), 100),
    "ridge-cg-neumann": (RIDGE, ConjugateGradient(), Neumann(100), 4),
    "logistic-nesterov-checkpoint": (LOGISTIC, Nesterov.tuned(0.4, 2.7), Unrolled(7), 80),
    "logistic-convex-last": (LOGISTIC, Nesterov.convex(), LateStart(last=120), 150),
    "logistic-optax-neumann": (LOGISTIC, FromOptax(optax.sgd(0.4, 0.3)), Neumann(120), 120),
    "logistic-newton-implicit": (LOGISTIC, NewtonCG(), Implicit(CG()), 12),
    "logistic-lbfgs-implicit": (LOGISTIC, LBFGS(), Implicit(), 60),
    "logistic-optimistix-polish": (
        LOGISTIC,
        FromOptimistix(optx.GradientDescent(0.4, rtol=1e-9, atol=1e-9)),
        Implicit(CG(), polish=True),
        120,
    ),
    "fixedpoint-unrolled": (FIXED_POINT, FixedPointIteration(), Unrolled(), 60),
    "fixedpoint-neumann": (FIXED_POINT, FixedPointIteration(), Neumann(60), 60),
    "fixedpoint-gd-implicit": (FIXED_POINT, GradientDescent(0.9), Implicit(), 80),
    "root-newton-implicit": (
        ROOT,
        FromOptimistix(optx.Newton(rtol=1e-9, atol=1e-9)),
        Implicit(BiCGStab()),
        10,
    ),
    "root-gd-last": (ROOT, GradientDescent(0.4), LateStart(last=80, checkpoint="sqrt"), 100),
    "elasticnet-fista-implicit": (ELASTIC_NET, ProximalGradient(), Implicit(CG()), 150),
    "elasticnet-plain-sqrt": (
        ELASTIC_NET,
        ProximalGradient(accelerate=False),
        Unrolled("sqrt"),
        150,
    ),
    "elasticnet-iteration-neumann": (ELASTIC_NET, FixedPointIteration(), Neumann(150), 150),
}


SECOND_ORDER = {  # one of each mode and of each kind of problem: these take long to compile
    "ridge-gd-unrolled",
    "ridge-chebyshev-sqrt",
    "ridge-heavyball-start",
    "fixedpoint-neumann",
    "fixedpoint-gd-implicit",
    "logistic-optimistix-polish",
    "root-gd-last",
    "elasticnet-fista-implicit",
}


SLOW = {"logistic-optimistix-polish", "logistic-newton-implicit"}  # most of it compilation


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in COMBINATIONS]
)
def test_value_and_derivatives_are_those_of_the_solution(name):
    scenario, method, mode, steps = COMBINATIONS[name]
    x = lambda theta: (
        dargmin.solve(scenario.problem, method, scenario.x0, theta, steps=steps, mode=mode).x
    )

    @jax.jit
    def derivatives(thetas):
        values, forward = jax.vmap(lambda theta: (x(theta), jax.jacfwd(x)(theta)))(thetas)
        if name not in SECOND_ORDER:
            return values, forward, jax.jacrev(x)(thetas[0]), None
        backward = lambda theta: (jax.jacrev(x)(theta),) * 2
        second, reverse = jax.jacfwd(backward, has_aux=True)(thetas[0])
        return values, forward, reverse, second

    thetas = jnp.stack([scenario.theta, scenario.theta + 0.1])
    values, forward, reverse, second = derivatives(thetas)
    for theta, value, jacobian in zip(np.asarray(thetas), values, forward, strict=True):
        assert_allclose(value, scenario.solution(theta), rtol=0, atol=1e-9)
        assert_allclose(jacobian, scenario.jacobian(theta), rtol=0, atol=1e-8)
    assert_allclose(reverse, forward[0], rtol=0, atol=1e-12)
    if second is not None:
        assert_allclose(second, scenario.second(np.asarray(scenario.theta)), rtol=0, atol=1e-7)


MODES = [Unrolled(), LateStart(start=2), Neumann(60), Implicit()]
EVERY_MODE = pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)


@pytest.mark.parametrize(
    ("scenario", "tol"),
    [(LOGISTIC, None), (LOGISTIC, 1e-3), (ELASTIC_NET, 1e-3)],
    ids=["logistic", "logistic-tol", "elasticnet-tol"],
)
def test_x_T_and_the_number_of_steps_are_the_same_in_every_mode(scenario, tol):
    modes = [Unrolled(), Unrolled("sqrt"), Unrolled(5), LateStart(start=4), LateStart(last=3)]
    modes += [LateStart(start=16, checkpoint="sqrt"), Neumann(2), Implicit(), Implicit(polish=True)]
    method = HeavyBall(0.4, 0.3)
    if scenario is ELASTIC_NET:
        modes, method = modes[1::3], ProximalGradient()

    @jax.jit
    def runs(theta):
        solve = lambda mode: dargmin.solve(
            scenario.problem, method, scenario.x0, theta, steps=17, tol=tol, mode=mode
        )
        return [(s.x, s.steps, s.residual) for s in map(solve, modes)]

    (x, steps, residual), *others = runs(scenario.theta)
    assert (steps == 17) if tol is None else (5 < steps < 16)
    for other in others:
        assert_allclose(other[0], x, rtol=0, atol=1e-14)
        assert other[1] == steps
        assert_allclose(other[2], residual, rtol=1e-10)


def sloped(x, theta):
    """½ Σ exp(scale) u² - n Σ u + (v - shift)², with u* = n exp(-scale) and v* = shift."""
    u, (v,) = x["u"], x["rest"]
    linear = theta["n"].astype(u.dtype) * jnp.sum(u)
    return 0.5 * jnp.sum(jnp.exp(theta["scale"]) * u**2) - linear + (v - theta["more"][0]) ** 2


@EVERY_MODE
def test_x_and_theta_may_be_pytrees_with_integers_none_and_python_floats(mode):
    x0 = {"u": jnp.zeros(2, jnp.float32), "rest": (jnp.zeros((), jnp.float32),)}
    theta = {
        "scale": jnp.array([0.1, -0.2], jnp.float32),
        "n": jnp.array(3),
        "more": (0.5, None, "a name"),
    }
    problem = dargmin.Objective(sloped)

    def total(theta):
        x = dargmin.solve(problem, GradientDescent(0.5), x0, theta, steps=80, mode=mode).x
        return jnp.sum(x["u"]) + 2 * x["rest"][0]

    value, gradient = eqx.filter_value_and_grad(total)(theta)
    u = 3 * np.exp(-np.asarray(theta["scale"]))
    assert value.dtype == gradient["scale"].dtype == jnp.float32
    assert_allclose(value, np.sum(u) + 1, rtol=1e-6)
    assert_allclose(gradient["scale"], -u, rtol=1e-5)
    assert gradient["n"] is None
    by_float = lambda shift: total({**theta, "more": (shift, None, "a name")})
    assert_allclose(jax.jvp(by_float, (0.5,), (1.0,))[1], 2, rtol=1e-5)


@EVERY_MODE
def test_what_f_closes_over_and_data_in_its_leaves_count_as_part_of_theta(mode):
    X, y = scenarios.DATA

    def by_closure(theta, y):
        f = lambda w, _: scenarios.Ridge(X, y)(w, theta)
        return solve(f, None)

    def by_leaves(y):
        return solve(scenarios.Ridge(X, y), RIDGE.theta)

    def solve(f, theta):
        problem, method = dargmin.Objective(f), GradientDescent(0.37)
        return dargmin.solve(problem, method, RIDGE.x0, theta, steps=120, mode=mode).x

    theta = np.asarray(RIDGE.theta)
    by_theta, by_data = jax.jacrev(by_closure, (0, 1))(RIDGE.theta, y)
    want = np.linalg.solve(scenarios.ridge_matrix(theta), scenarios.X.T / 12)
    assert_allclose(by_theta, RIDGE.jacobian(theta), rtol=0, atol=1e-8)
    assert_allclose(by_data, want, rtol=0, atol=1e-8)
    assert_allclose(jax.jit(jax.jacfwd(by_leaves))(y), want, rtol=0, atol=1e-8)


CLOSING = {
    "fixed point": (
        FIXED_POINT,
        FixedPointIteration(),
        lambda theta: dargmin.FixedPoint(lambda x, _: contraction(x, theta)),
    ),
    "root": (
        ROOT,
        GradientDescent(0.4),
        lambda theta: dargmin.Root(lambda x, _: cubic(x, theta)),
    ),
    "composite": (
        ELASTIC_NET,
        ProximalGradient(),
        lambda theta: dargmin.Composite(
            ELASTIC_NET.problem.f, lambda v, _, step: ELASTIC_NET.problem.prox(v, theta, step)
        ),
    ),
}


@pytest.mark.parametrize("kind", CLOSING)
def test_closures_of_other_problems_count_as_part_of_theta(kind):
    scenario, method, closing = CLOSING[kind]
    x = lambda theta: dargmin.solve(closing(theta), method, scenario.x0, None, steps=150).x
    jacobian = scenario.jacobian(np.asarray(scenario.theta))
    assert_allclose(jax.jacrev(x)(scenario.theta), jacobian, rtol=0, atol=1e-8)


def test_a_preconditioner_may_close_over_theta():
    def x(theta):
        jacobi = lambda v: v / (0.5 + jnp.exp(theta)[scenarios.GROUPS])
        mode = Implicit(CG(), preconditioner=jacobi)
        return dargmin.attach(RIDGE.problem, solution, theta, mode)

    theta = np.asarray(RIDGE.theta)
    solution = jnp.asarray(RIDGE.solution(theta))
    for jacobian in (jax.jacfwd(x), jax.jit(jax.jacrev(x))):
        assert_allclose(jacobian(RIDGE.theta), RIDGE.jacobian(theta), rtol=0, atol=1e-9)


H = scenarios.ridge_matrix(np.asarray(RIDGE.theta))
START_ERROR = np.asarray(RIDGE.x0) - RIDGE.solution(np.asarray(RIDGE.theta))


def iterate(mode, steps, step_size=0.2, x0=RIDGE.x0, method=GradientDescent):
    """x_T after a few steps on the ridge, where P_T(H) = (I - hH)^T is far from zero."""
    return dargmin.solve(
        RIDGE.problem, method(step_size), x0, RIDGE.theta, steps=steps, mode=mode
    ).x


def test_x0_is_a_variable_when_unrolled():
    jacobian = jax.jacrev(lambda x0: iterate(Unrolled("sqrt"), 5, x0=x0))(RIDGE.x0)
    assert_allclose(jacobian, np.linalg.matrix_power(np.eye(4) - 0.2 * H, 5), rtol=1e-12)


@pytest.mark.parametrize("mode", [LateStart(last=5), Neumann(3), Implicit()], ids=repr)
def test_x0_is_a_constant_otherwise(mode):
    jacobian = jax.jacrev(lambda x0: iterate(mode, 5, x0=x0))(RIDGE.x0)
    assert_array_equal(jacobian, np.zeros((4, 4)))


def test_given_step_sizes_are_differentiated_on_request():
    # x_T - x* = (I - hH)^T (x_0 - x*), hence dx_T/dh = -T H (I - hH)^{T-1} (x_0 - x*)
    want = -5 * H @ np.linalg.matrix_power(np.eye(4) - 0.2 * H, 4) @ START_ERROR
    mode, sgd = Unrolled(hyperparameters=True), lambda h: FromOptax(optax.sgd(h))
    assert_allclose(jax.jacfwd(lambda h: iterate(mode, 5, h))(0.2), want, rtol=1e-12)
    assert_allclose(jax.jacrev(lambda h: iterate(mode, 5, h, method=sgd))(0.2), want, rtol=1e-12)


@pytest.mark.parametrize("mode", [Unrolled(), LateStart(last=3), Neumann(3), Implicit()], ids=repr)
def test_step_sizes_and_momenta_are_constants_otherwise(mode):
    def x(h):
        problem = dargmin.Objective(RIDGE.problem.f, mu=h, L=1 / h)
        methods = [
            GradientDescent(),
            GradientDescent(h),
            HeavyBall(h, h),
            Nesterov.tuned(h, 1 / h),
            Chebyshev(h, 1 / h),
            FromOptax(optax.sgd(h, momentum=h)),
        ]
        return [
            dargmin.solve(problem, m, RIDGE.x0, RIDGE.theta, steps=5, mode=mode).x for m in methods
        ]

    for jacobian in jax.jit(jax.jacrev(x))(0.2):
        assert_array_equal(jacobian, np.zeros(4))


def test_an_estimated_step_size_is_a_constant_of_the_derivative():
    h = 1 / largest_eigenvalue(lambda v: jnp.asarray(H) @ v, RIDGE.x0)
    theta = np.asarray(RIDGE.theta)
    x, dx = np.asarray(RIDGE.x0), np.zeros((4, 2))
    for _ in range(3):
        gradient = H @ x - scenarios.X.T @ scenarios.Y / 12
        x, dx = x - h * gradient, dx - h * (H @ dx + scenarios.penalty_change(theta, x))
    unrolled = lambda theta: (
        dargmin.solve(RIDGE.problem, GradientDescent(), RIDGE.x0, theta, steps=3, mode=Unrolled()).x
    )
    assert_allclose(jax.jacrev(unrolled)(RIDGE.theta), dx, rtol=1e-12)


class Counted(eqx.Module):
    """½ exp(θ) x² - x, with x* = exp(-θ), and a count of how often it is traced."""

    traces: list = eqx.field(static=True)

    def __call__(self, x, theta):
        self.traces.append(None)
        return 0.5 * jnp.exp(theta) * x**2 - x


@EVERY_MODE
def test_called_again_nothing_is_compiled(mode, caplog):
    traces = []
    problem = dargmin.Objective(Counted(traces))

    def derivatives(theta, x0, step_size, tol):
        x = lambda theta: (
            dargmin.solve(
                problem, GradientDescent(step_size), x0, theta, steps=200, tol=tol, mode=mode
            ).x
        )
        return x(theta), jax.grad(x)(theta), jax.jvp(x, (theta,), (1.0,))[1]

    derivatives(0.1, 0.5, 0.3, 1e-8)
    first = len(traces)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        value, *slopes = derivatives(0.2, 0.0, 0.4, 1e-9)
    assert first == len(traces)
    assert "Compiling" not in caplog.text
    assert_allclose([value, *slopes], np.exp(-0.2) * np.array([1, -1, -1]), rtol=1e-6)


@EVERY_MODE
def test_x_and_theta_may_be_empty(mode):
    f = lambda x, theta: 0.5 * jnp.sum((x - 2.0) ** 2)
    solve = lambda x0, theta: (
        dargmin.solve(dargmin.Objective(f), GradientDescent(0.5), x0, theta, steps=80, mode=mode).x
    )
    assert solve(jnp.zeros(0), 1.0).shape == (0,)
    assert_array_equal(jax.grad(lambda theta: jnp.sum(solve(jnp.zeros(0), theta)))(1.0), 0.0)
    assert_allclose(solve(0.0, ()), 2.0, rtol=1e-12)
    assert_array_equal(jax.grad(lambda theta: solve(0.0, theta))(1.0), 0.0)
