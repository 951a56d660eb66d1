"""solve and attach: what they return, how they fail, and that nothing is lost when they do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scenarios
from numpy.testing import assert_allclose
from scenarios import LOGISTIC, RIDGE
from scipy.optimize import minimize

import dargmin
from dargmin import DargminError, GradientDescent, Implicit, LateStart, Neumann, Status, Unrolled
from dargmin.linear import CG, BiCGStab, Dense


def solve(mode=None, *, x0=RIDGE.x0, steps=100, problem=RIDGE.problem, **arguments):
    method = arguments.pop("method", GradientDescent(0.3))
    return dargmin.solve(problem, method, x0, RIDGE.theta, steps=steps, mode=mode, **arguments)


def gradient_norm(x):
    theta = np.asarray(RIDGE.theta)
    return np.linalg.norm(scenarios.ridge_matrix(theta) @ x - scenarios.X.T @ scenarios.Y / 12)


def test_a_solution_says_how_it_was_reached():
    solution = solve(tol=1e-6)
    assert solution.ok and solution.status == Status.ok and solution.start is None
    assert solution.tol == 1e-6
    assert_allclose(solution.residual, gradient_norm(solution.x), rtol=1e-9)
    assert solution.raise_if_failed() is solution
    # stopped as soon as it could, which is one step after ‖F‖ was first below the tolerance
    before = solve(steps=int(solution.steps) - 1, tol=1e-6, throw=False)
    earlier = solve(steps=int(solution.steps) - 2)
    assert gradient_norm(before.x) <= 1e-6 < gradient_norm(earlier.x)
    every = solve(steps=7)
    assert every.steps == 7 and every.ok and every.tol is None


@pytest.mark.parametrize(
    "mode", [Unrolled(), LateStart(last=2), Implicit()], ids=lambda m: type(m).__name__
)
def test_spent_steps_raise_and_keep_what_was_computed(mode):
    with pytest.raises(DargminError, match="every step was spent") as caught:
        solve(mode, steps=5, tol=1e-9)
    assert "After 5 steps" in str(caught.value) and "tol=1e-09" in str(caught.value)
    kept = caught.value.result
    assert kept.status == Status.not_converged and not kept.ok
    assert_allclose(kept.x, solve(mode, steps=5).x, rtol=1e-14)
    quiet = solve(mode, steps=5, tol=1e-9, throw=False)
    assert quiet.status == Status.not_converged
    with pytest.raises(DargminError, match="Raise `steps`"):
        quiet.raise_if_failed()


@pytest.mark.parametrize(
    ("bad", "method"), [(np.nan, GradientDescent()), (np.inf, GradientDescent(0.3))]
)
def test_nonfinite_data_are_named_and_give_no_derivative(bad, method):
    X, y = scenarios.DATA
    problem = dargmin.Objective(scenarios.Ridge(X, y.at[3].set(bad)))
    with pytest.raises(DargminError, match="NaN in the data") as caught:
        solve(problem=problem, method=method, tol=1e-6)
    assert caught.value.result.status == Status.nonfinite
    jacobian = jax.jacrev(
        lambda theta: dargmin.solve(problem, method, RIDGE.x0, theta, steps=9, throw=False).x
    )(RIDGE.theta)
    assert np.all(np.isnan(jacobian))


def test_divergence_is_named_and_stops_where_a_tolerance_was_given():
    found = solve(method=GradientDescent(50.0), steps=100_000, tol=1e-6, throw=False)
    assert found.status == Status.nonfinite and found.steps < 1000


def test_statuses_are_batched_under_vmap():
    thetas, step_sizes = jnp.stack([RIDGE.theta] * 3), jnp.array([0.3, 1e-4, 50.0])

    @jax.jit
    @jax.vmap
    def run(theta, step_size):
        return dargmin.solve(
            RIDGE.problem, GradientDescent(step_size), RIDGE.x0, theta,
            steps=500, tol=1e-8, throw=False,
        )  # fmt: skip

    found = run(thetas, step_sizes)
    assert found.ok.tolist() == [True, False, False]
    expected = (Status.ok, Status.not_converged, Status.nonfinite)
    assert all((found.status == status)[lane] for lane, status in enumerate(expected))
    assert_allclose(found.x[0], RIDGE.solution(np.asarray(RIDGE.theta)), atol=1e-8)
    with pytest.raises(DargminError, match=r"every step was spent.*Infinite or NaN"):
        found.raise_if_failed()


def test_inside_jit_the_error_is_raised_when_the_program_runs():
    compiled = jax.jit(lambda theta: solve(steps=5, tol=1e-9).x + jnp.sum(theta))
    with pytest.raises(RuntimeError, match="every step was spent"):
        jax.block_until_ready(compiled(RIDGE.theta))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solve(steps=0), "steps must be an integer >= 1, but got 0"),
        (lambda: solve(steps=2.5), "but got 2.5"),
        (lambda: solve(steps=True), "but got True"),
        (lambda: solve(x0=jnp.arange(4)), r"x0 is int64, but every leaf of x0 must be a real"),
        (lambda: solve(x0=[0.5, "a"]), r"x0\[1\] is str"),
        (lambda: solve(x0=jnp.zeros(4, complex)), "x0 is complex128"),
        (lambda: solve(problem=RIDGE.problem.f), r"as dargmin.Objective\(f\)"),
        (lambda: solve(method=GradientDescent), "such as GradientDescent"),
        (lambda: solve(Implicit), r"such as Implicit\(\)"),
        (lambda: solve(LateStart(start=100)), "needs start < steps, but steps=100"),
        (lambda: solve(LateStart(last=101)), "needs 1 <= last <= steps"),
        (lambda: dargmin.Objective(3.0), r"needs a function f\(x, theta\)"),
        (lambda: solve(problem=dargmin.Objective(lambda x, t: x)), r"returned shape \(4,\)"),
        (lambda: solve(problem=dargmin.Root(lambda x, t: x[:2])), "a pytree like x"),
        (lambda: solve(problem=dargmin.FixedPoint(lambda x, t: (x,))), "a pytree like x"),
    ],
)
def test_a_wrong_argument_is_named(call, message, monkeypatch):
    # without the type checks of the tests, as users run it
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        call()


def test_has_aux_and_an_own_hessian_vector_product():
    f = RIDGE.problem.f
    with_aux = dargmin.Objective(lambda w, theta: (f(w, theta), "anything"), has_aux=True)
    hvp = lambda w, theta, v: 2.0 * jax.jvp(lambda w: jax.grad(f)(w, theta), (w,), (v,))[1]
    theta = np.asarray(RIDGE.theta)
    jacobian = lambda problem: jax.jacrev(
        lambda theta: dargmin.attach(problem, jnp.asarray(RIDGE.solution(theta0)), theta)
    )(RIDGE.theta)
    theta0 = theta
    assert_allclose(jacobian(with_aux), RIDGE.jacobian(theta), atol=1e-9)
    # twice the Hessian is no Hessian: derivatives do not use it
    assert_allclose(jacobian(dargmin.Objective(f, hvp=hvp)), RIDGE.jacobian(theta), atol=1e-9)


@pytest.mark.parametrize("mode", [None, Implicit(CG()), Neumann(200)], ids=["", "CG", "Neumann"])
def test_a_scipy_solution_is_attached(mode):
    theta = np.asarray(LOGISTIC.theta)
    gradient, _ = scenarios.logistic_parts(theta)
    value = lambda w: float(LOGISTIC.problem.f(jnp.asarray(w), LOGISTIC.theta))
    w = minimize(value, np.zeros(4), jac=gradient, method="BFGS", tol=1e-10).x
    attached = lambda theta: dargmin.attach(LOGISTIC.problem, w, theta, mode)
    assert_allclose(attached(LOGISTIC.theta), w, rtol=0, atol=0)
    assert_allclose(jax.jacrev(attached)(LOGISTIC.theta), LOGISTIC.jacobian(theta), atol=1e-8)


def test_attach_refuses_what_it_cannot_do(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for mode in (Unrolled(), LateStart(last=1)):
        with pytest.raises(ValueError, match="no iterations to differentiate through"):
            dargmin.attach(RIDGE.problem, RIDGE.x0, RIDGE.theta, mode)
    with pytest.raises(ValueError, match="x is int64"):
        dargmin.attach(RIDGE.problem, np.arange(4), RIDGE.theta)


class Bent(eqx.Module):
    """½ (x₁² + h x₂² + ½ x₃²) - Σ θ_i b_i x_i."""

    h: float
    b: jax.Array

    def __call__(self, x, theta):
        return 0.5 * jnp.sum(jnp.array([1.0, self.h, 0.5]) * x**2) - jnp.sum(theta * self.b * x)


def bent(h, b=(1.0, 1.0, 1.0)):
    return dargmin.Objective(Bent(h, jnp.array(b)))


FAILING = {
    "budget": (bent(0.01), Implicit(CG(max_steps=1))),
    "budget, polish": (bent(0.01), Implicit(CG(max_steps=1), polish=True)),
    "budget, general": (
        dargmin.Root(lambda x, theta: jnp.array([1.0, 0.01, 0.5]) * x - theta),
        Implicit(BiCGStab(max_steps=1)),
    ),
    "indefinite, CG": (bent(-0.5), Implicit(CG())),
    "indefinite, dense": (bent(-0.5), Implicit(Dense())),
    "inconsistent, CG": (bent(0.0), Implicit(CG())),
    "inconsistent": (bent(0.0), Implicit()),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_failed_adjoint_raises_or_is_nan_and_never_a_finite_wrong_number(name):
    problem, mode = FAILING[name]
    at, zero, t = jnp.ones(3), jnp.zeros(3), jnp.array([1.0, 2.0, 3.0])

    def derivatives(throw):
        x = lambda theta: dargmin.attach(problem, at, theta, mode, throw)
        forward = lambda theta: jax.jvp(x, (theta,), (t,))[1]
        reverse = lambda theta: jax.vjp(x, theta)[1](t)[0]
        return forward, reverse

    forward, reverse = derivatives(throw=False)
    assert np.all(np.isnan(jax.jit(lambda theta: (forward(theta), reverse(theta)))(zero)))
    # the one or the other, in turn: each takes a second to compile
    derivative = derivatives(throw=True)[list(FAILING).index(name) % 2]
    with pytest.raises(RuntimeError, match=r"linear s|Hessian|solves nothing"):
        jax.block_until_ready(derivative(zero))


def test_a_singular_hessian_has_the_minimum_norm_derivative_for_all_cotangents():
    problem = bent(0.0, (1.0, 0.0, 1.0))
    x = lambda theta: dargmin.attach(problem, jnp.zeros(3), theta, throw=False)
    pull = jax.vjp(x, jnp.zeros(3))[1]
    # θ moves x in the range only, where the minimum-norm derivative is diag(1, 0, 2)
    assert_allclose(jax.jacfwd(x)(jnp.zeros(3)), np.diag([1.0, 0.0, 2.0]), atol=1e-12)
    assert_allclose(pull(jnp.array([1.0, 0.0, 1.0]))[0], [1.0, 0.0, 2.0], atol=1e-12)
    # nor does it matter that this one leaves the range
    assert_allclose(pull(jnp.array([1.0, 1.0, 1.0]))[0], [1.0, 0.0, 2.0], atol=1e-12)
