"""Diagonals read from programs: exact or not at all; and what they save where units differ."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose

import dargmin
from dargmin import LBFGS, Implicit, NewtonCG, Objective
from dargmin.linear import Auto, LinearOptions, scaling, solve_linear
from dargmin.linear.diagonal import diagonal

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 12))
Y = np.sign(X @ RNG.normal(size=12))
HOT = np.eye(3)[RNG.integers(0, 3, 40)]
VECTOR, TABLE = RNG.normal(size=12), RNG.normal(size=(12, 3))
IMAGE = RNG.normal(size=(5, 6))
LAYER = {"w": TABLE, "b": np.ones(3)}
THETA = RNG.normal(size=12)
softplus = jax.nn.softplus


def ridge(w):
    return jnp.sum(jnp.exp(THETA) * w**2) / 2


FOLLOWED = {
    "quadratic form": (lambda w: w @ (X.T @ X) @ w, VECTOR),
    "least squares": (lambda w: jnp.mean((X @ w - Y) ** 2) + ridge(w), VECTOR),
    "logistic": (lambda w: jnp.mean(softplus(-Y * (X @ w))) + ridge(w), VECTOR),
    "logaddexp, rows": (lambda w: jnp.sum(jnp.logaddexp(0.0, Y * (w @ X.T))), VECTOR),
    "poisson": (lambda w: jnp.mean(jnp.exp(X @ w / 9) - Y * (X @ w)), VECTOR),
    "row by row": (lambda w: jnp.mean(jax.vmap(lambda a, b: softplus(b * (a @ w)))(X, Y)), VECTOR),
    "intercept as last": (lambda w: jnp.mean(softplus(Y * (X @ w[:-1] + w[-1]))), np.ones(13)),
    "one leaf per name": (
        lambda p: jnp.mean(softplus(X @ p["w"] + p["b"])) + ridge(p["w"]),
        {"w": VECTOR, "b": np.ones(())},
    ),
    "several outputs": (lambda W: jnp.mean(softplus(X @ W)), TABLE),
    "flat": (lambda w: jnp.mean(softplus(X @ w.reshape(12, 3))), TABLE.ravel()),
    "transposed": (lambda W: jnp.mean(softplus(W @ X.T)), TABLE.T),
    "softmax": (
        lambda W: jnp.mean(jax.nn.logsumexp(X @ W, axis=1) - jnp.sum(HOT * (X @ W), axis=1)),
        TABLE,
    ),
    "log_softmax": (lambda W: -jnp.mean(HOT * jax.nn.log_softmax(X @ W)), TABLE),
    "optax": (
        lambda p: jnp.mean(optax.softmax_cross_entropy(X @ p["w"] + p["b"], HOT)),
        LAYER,
    ),
    "separable": (lambda x: ridge(x) + jnp.sum(x**4), VECTOR),
    "total variation": (lambda u: jnp.sum(jnp.diff(u, axis=0) ** 4 + 0) + jnp.sum(u**2), IMAGE),
    "neighbours": (lambda x: jnp.sum(x[1:] * x[:-1]) + jnp.sum(x**4), VECTOR),
    "halves": (
        lambda w: jnp.sum((X[:, :6] @ w[6:]) * (X[:, 6:] @ w[:6])) + jnp.sum((X @ w) ** 2),
        VECTOR,
    ),
    "no axis": (lambda x: x**4, np.ones(())),
}
NOT_FOLLOWED = {
    "two layers": (lambda W: jnp.mean((jnp.tanh(X @ W) @ jnp.ones(3)) ** 2), TABLE),
    "matrix quartic": (lambda w: jnp.sum((w @ w.T) ** 2), IMAGE),
    "cumsum": (lambda w: jnp.sum(jnp.cumsum(w) ** 2) + jnp.sum(w**4), VECTOR),
    "gather": (lambda w: jnp.sum(w[jnp.arange(12)[::-1]] ** 2), VECTOR),
    "a product that is cut": (lambda w: jnp.sum(w[:6] * ((X.T @ X) @ w)[6:]), VECTOR),
    "scan": (
        lambda w: jax.lax.scan(lambda c, a: (c + softplus(a @ w), None), 0.0, X)[0],
        VECTOR,
    ),
}


def hessian_product(f, x):
    x = jax.tree.map(jnp.asarray, x)
    return Objective(lambda x, _: f(x)).linear_system(x, None).operator, x


@pytest.mark.parametrize(("f", "x"), FOLLOWED.values(), ids=FOLLOWED)
def test_the_diagonal_is_exact(f, x):
    operator, x = hessian_product(f, x)
    found = jax.jit(lambda x: diagonal(operator, x))(x)
    flat, unravel = ravel_pytree(x)
    want = jnp.diag(jax.hessian(lambda v: f(unravel(v)))(flat))
    assert_allclose(ravel_pytree(found)[0], want, rtol=1e-12, atol=1e-12 * np.max(np.abs(want)))


@pytest.mark.parametrize(("f", "x"), NOT_FOLLOWED.values(), ids=NOT_FOLLOWED)
def test_a_program_that_does_not_show_it_gives_none(f, x):
    assert diagonal(*hessian_product(f, x)) is None


def test_what_does_not_pay_is_left_out():
    ones, mixed = np.ones(12), np.geomspace(1, 1e-2, 12)
    at = lambda f, x: scaling(Objective(lambda x, _: f(x)), jnp.asarray(x), None)
    assert_allclose(at(lambda w: jnp.sum(w**4), ones), 1)  # the same everywhere
    assert_allclose(at(lambda w: jnp.sum(w**4), mixed), 12 * mixed**2)
    assert_allclose(at(lambda w: -jnp.sum(w**4), mixed), 1)  # not convex
    assert_allclose(at(lambda w: jnp.sum(w[1:] ** 4), mixed), 1)  # singular
    # of three rows: low rank, of which only the penalty beside it counts
    few = lambda w: jnp.mean((X[:3] @ w) ** 2) + jnp.sum(mixed * w**2)
    assert_allclose(at(few, ones), 2 * mixed)
    declared = Objective(lambda w, _: jnp.sum(w**2), diagonal=lambda w, _: mixed)
    assert_allclose(scaling(declared, jnp.ones(12), None), mixed)


def logistic(scale):
    """A regression whose features have these units: one problem in different coordinates."""
    rng = np.random.default_rng(1)
    d = scale.size
    A = rng.normal(size=(400, d))
    labels = np.sign(A @ rng.normal(size=d) + rng.normal(size=400))
    B = jnp.asarray(A * scale)

    def f(w, theta):
        penalty = 0.05 * jnp.exp(theta) * jnp.sum((scale * w) ** 2)
        return jnp.mean(softplus(-labels * (B @ w))) + penalty

    def outer(w, theta):
        return jnp.mean(softplus(-labels[:100] * (B[:100] @ w)))

    return Objective(f), outer


@pytest.mark.parametrize(
    ("method", "most"), [(LBFGS(), 20), pytest.param(NewtonCG(), 6, marks=pytest.mark.slow)]
)
def test_units_cost_nothing(method, most):
    scale, x0, theta = np.geomspace(1, 1e3, 100), jnp.zeros(100), jnp.asarray(0.0)
    problem, _ = logistic(scale)
    tol = 1e-8 * np.linalg.norm(problem.residual(x0, theta))
    found = dargmin.solve(problem, method, x0, theta, steps=100, tol=tol)
    assert int(found.steps) <= most
    b = jnp.asarray(scale * RNG.normal(size=100))
    info = solve_linear(problem, found.x, theta, b, options=LinearOptions(rtol=1e-8)).info
    assert info.ok and int(info.products) <= 20 and info.factorisations == 0


@pytest.mark.slow
def test_units_change_no_hypergradient():
    x0, theta = jnp.zeros(100), jnp.asarray(0.0)
    problem, outer = logistic(np.geomspace(1, 1e3, 100))
    mode = Implicit(Auto())  # without a factor that serves all solves
    h = dargmin.hypergradient(outer, problem, x0, theta, mode=mode)
    assert int(h.cost.products + h.cost.gradients) <= 50 and h.cost.factorisations == 0
    problem, outer = logistic(np.ones(100))
    exact = dargmin.hypergradient(outer, problem, x0, theta, rtol=1e-9)
    assert abs(h.gradient - exact.gradient) <= h.certificate.absolute_error
