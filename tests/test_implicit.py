"""Implicit derivatives where the solution is one of many: forward, reverse, and beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import dargmin
from dargmin import FixedPoint, Implicit, Objective
from dargmin.linear import CG
from dargmin.linear.matrix import Beside, spectral

BOTH = pytest.mark.parametrize("jacobian", [jax.jacfwd, jax.jacrev])


def difference_of_two(x, theta):
    """½ (x₀ - x₁ - θ)², whatever x₀ + x₁ is."""
    return 0.5 * (x[0] - x[1] - theta) ** 2


def and_their_sum(x, theta):
    """At θ₁ = 0, x₀ + x₁ is not determined; it moves with θ₁ unless it is 0."""
    return difference_of_two(x, theta[0]) + 0.5 * theta[1] * (x[0] + x[1]) ** 2


def in_units(q, x, theta):
    y = q * x
    return difference_of_two(y[:2], theta) + difference_of_two(y[2:], theta**2)


def attached(f, x, mode=None):
    problem = f if isinstance(f, FixedPoint) else Objective(f)
    return lambda theta: dargmin.attach(problem, jnp.asarray(x), theta, mode, throw=False)


@BOTH
@pytest.mark.parametrize("mode", [None, Implicit(CG())], ids=["", "CG"])
def test_what_is_determined_has_a_derivative_in_both_directions(jacobian, mode):
    found = jacobian(attached(and_their_sum, [0.5, -0.5], mode))(jnp.array([1.0, 0.0]))
    assert_allclose(found, [[0.5, 0.0], [-0.5, 0.0]], atol=1e-12)


@BOTH
@pytest.mark.parametrize("mode", [None, Implicit(CG())], ids=["", "CG"])
def test_what_is_not_determined_has_none(jacobian, mode):
    found = jacobian(attached(and_their_sum, [1.0, 0.0], mode))(jnp.array([1.0, 0.0]))
    assert np.all(np.isnan(found[:, 1]))


def test_the_shortest_way_is_that_of_the_units_that_x_has_in_both_directions():
    q = np.array([1.0, 1e-8, 1e8, 1.0])
    f = lambda x, theta: in_units(jnp.asarray(q), x, theta)
    J = np.array([[1, -1, 0, 0], [0, 0, 1, -1]]) * q
    truth = J.T @ np.linalg.solve(J @ J.T, [1.0, 2.0])  # at θ = 1
    for jacobian in (jax.jacfwd, jax.jacrev):
        found = jax.jit(jacobian(attached(f, np.array([0.5, -0.5, 0.5, -0.5]) / q)))(1.0)
        assert_allclose(q * found, q * truth, atol=1e-7)


def rates(theta):
    """A kinetic scheme of three states; its columns sum to zero."""
    k = jnp.array([[0.0, 0.5, 1.0], [0.0, 0.0, 0.7], [0.4, 0.3, 0.0]])
    k = k.at[1, 0].set(jnp.exp(theta))
    return k - jnp.diag(jnp.sum(k, axis=0))


def kinetics(x, theta):
    return x + 0.2 * rates(theta) @ x


def steady(theta):
    values, vectors = np.linalg.eig(np.asarray(rates(theta)))
    x = np.real(vectors[:, np.argmin(np.abs(values))])
    return x / np.sum(x)


def test_a_conserved_total_stays_in_every_order_and_lane():
    h = 1e-4
    low, here, high = (steady(0.3 + step) for step in (-h, 0.0, h))
    x = attached(FixedPoint(kinetics), here)
    first = jax.jit(jax.vmap(jax.jacrev(x)))(jnp.full(2, 0.3))
    assert_allclose(first, np.tile((high - low) / (2 * h), (2, 1)), atol=1e-7)
    second = jax.jacrev(jax.jacrev(x))(0.3)
    assert_allclose(second, (high - 2 * here + low) / h**2, atol=1e-6)


PAIRS = np.array([(0, 1), (0, 2), (1, 2)])


def springs(x, theta):
    """Three points in space, with the lengths (1, 1.1, 1.2) θ between them."""
    lengths = jnp.linalg.norm(x[PAIRS[:, 0]] - x[PAIRS[:, 1]], axis=1)
    return 0.5 * jnp.sum((lengths - theta * jnp.array([1, 1.1, 1.2], x.dtype)) ** 2)


def first_length(x):
    return jnp.linalg.norm(x[0] - x[1])


def triangle(theta):
    """In the plane of the first two coordinates, in closed form."""
    a, b, c = theta * np.array([1.0, 1.1, 1.2])
    u = (a**2 + b**2 - c**2) / (2 * a)
    return np.array([[0, 0, 0], [a, 0, 0], [u, np.sqrt(b**2 - u**2), 0]])


def rigid(theta, x):
    return dargmin.attach(Objective(springs), x, theta, throw=False)


RIGID = {jacobian: jax.jit(jacobian(rigid)) for jacobian in (jax.jacfwd, jax.jacrev)}


@pytest.mark.parametrize("off", [0.0, 1e-9, 1e-6, 1e-3])
def test_rigid_motions_are_no_saddle_beside_the_solution(off):
    x = triangle(1.3)
    H = np.asarray(jax.hessian(springs)(x, 1.3)).reshape(9, 9)
    changes = np.asarray(jax.jacfwd(jax.grad(springs), 1)(x, 1.3)).ravel()
    truth = -np.linalg.pinv(H, rcond=1e-7) @ changes
    for seed in range(3):
        at = x + off * np.random.default_rng(seed).normal(size=(3, 3))
        for jacobian in (jax.jacfwd, jax.jacrev):
            found = np.asarray(RIGID[jacobian](1.3, jnp.asarray(at))).ravel()
            # off by O(off), times the spread of the spectrum on what is determined
            assert np.linalg.norm(found - truth) <= (1e-5 + 20 * off) * np.linalg.norm(truth)


@pytest.mark.parametrize(("kind", "tol"), [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_a_molecule_that_is_loosely_solved_has_the_derivative_of_its_lengths(kind, tol):
    def length(theta, x0):
        method = dargmin.LBFGS()
        solution = dargmin.solve(Objective(springs), method, x0, theta, steps=300, tol=tol)
        return first_length(solution.x)

    slope = jax.jit(jax.grad(length))
    for seed in range(4):
        x0 = triangle(1.1) + 0.1 * np.random.default_rng(seed).normal(size=(3, 3))
        assert_allclose(slope(kind(1.3), jnp.asarray(x0, kind)), 1.0, atol=10 * tol)


def test_a_small_curvature_that_is_positive_is_never_taken_for_none():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    K, b = (Q * np.geomspace(1, 1e-7, 6)) @ Q.T, rng.normal(size=6)
    x = np.linalg.solve(K, b)
    at = x + 1e-6 * np.linalg.norm(x) * rng.normal(size=6)
    f = lambda x, theta: 0.5 * x @ jnp.asarray(K) @ x - theta * (jnp.asarray(b) @ x)
    assert_allclose(jax.jacfwd(attached(f, at))(1.0), x, rtol=1e-6)


def test_a_saddle_beyond_what_is_undetermined_stays_one():
    beside = Beside(jnp.array([1e-6, 0.0]), jnp.array([1.0, 0.0]))
    assert spectral(jnp.diag(jnp.array([1.0, -1e-3])), beside).indefinite
    assert not spectral(jnp.diag(jnp.array([1.0, -1e-6])), beside).indefinite


def nonlinear_fit(x, t):
    return 0.5 * jnp.sum((jnp.exp(x) - t) ** 2 + (x + 1) ** 2)


def gauss_newton(x, t, v):
    return jnp.exp(2 * x) * v + v


@BOTH
def test_derivatives_are_those_of_f_whatever_product_it_is_walked_with(jacobian):
    problem = Objective(nonlinear_fit, hvp=gauss_newton)
    method = dargmin.NewtonCG()
    x = lambda t: dargmin.solve(problem, method, jnp.zeros(2), t, steps=60, tol=1e-10).x
    e = np.exp(np.asarray(x(3.0)))
    assert_allclose(jacobian(x)(3.0), e / (2 * e**2 - 3 * e + 1), rtol=1e-8)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_precision_of_x_decides_and_theta_keeps_its_own(kind):
    other = np.float32 if kind == np.float64 else np.float64
    apart = lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2)
    x, theta, one = jnp.ones(2, kind), jnp.ones(2, other), jnp.ones(2, other)
    certificate = dargmin.certify(
        Objective(apart), x, theta, cotangent=one, vjp=1.1 * one, rtol=1e-3
    )
    assert certificate.error.dtype == kind
    assert_allclose(certificate.error, 0.1, rtol=1e-3)
