"""Spectra and contraction rates, against NumPy's eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import dargmin
from dargmin.linear import contraction, hessian_spectrum
from dargmin.problems import zoo
from dargmin.status import Status


def weighted(x, theta):
    return 0.5 * jnp.sum(theta * x**2)


@pytest.mark.parametrize("condition", [1e1, 1e4])
@pytest.mark.parametrize("steps", [64, 400])  # Lanczos, and exact
def test_the_spectrum_of_a_hessian_is_found(condition, steps):
    values = jnp.asarray(np.geomspace(3 / condition, 3.0, 300))
    problem = dargmin.Objective(weighted)
    found = hessian_spectrum(problem, jnp.zeros(300), values, steps=steps)
    assert found.ok
    assert 3 <= found.L <= 3 * 1.05  # never too small
    assert_allclose(found.mu, 3 / condition, atol=1.01 * float(found.mu_error) + 1e-12)
    assert found.products == min(steps, 300)
    if steps == 400:
        assert_allclose(found.mu, 3 / condition, rtol=1e-9)
    elif condition == 1e1:
        assert_allclose(found.mu, 3 / condition, rtol=1e-2)  # eigenvalues 1e-2 apart


def test_a_krylov_space_that_ends_early_is_no_failure():
    problem = dargmin.Objective(weighted)
    found = hessian_spectrum(problem, jnp.zeros(100), jnp.full(100, 2.0), steps=20)
    assert_allclose((found.mu, found.L), (2, 2), rtol=0.03)


def test_the_spectrum_works_on_pytrees_in_single_precision_and_under_vmap():
    problem = dargmin.Objective(lambda x, theta: theta * (x["a"] ** 2 + 4 * jnp.sum(x["b"] ** 2)))
    x = {"a": jnp.ones((), jnp.float32), "b": jnp.ones((2, 3), jnp.float32)}
    thetas = jnp.asarray([0.5, 1.0], jnp.float32)
    found = jax.vmap(lambda theta: hessian_spectrum(problem, x, theta))(thetas)
    assert_allclose(found.mu, [1, 2], rtol=1e-5)
    assert_allclose(found.condition, [4, 4], rtol=1e-5)
    assert found.L.dtype == jnp.float32


def test_constants_that_are_declared_are_taken_as_they_are():
    problem = dargmin.Objective(weighted, mu=0.5, L=7.0)
    found = hessian_spectrum(problem, jnp.zeros(5), jnp.ones(5))
    assert (found.mu, found.L, found.mu_error, found.L_error) == (0.5, 7, 0, 0)


@pytest.mark.parametrize("d", [5, 200])
def test_an_indefinite_hessian_is_called_not_convex(d):
    values = jnp.linspace(-1.0, 2.0, d)
    found = hessian_spectrum(dargmin.Objective(weighted), jnp.zeros(d), values)
    assert found.status == Status.not_positive_definite
    assert found.mu < 0


def test_the_spectrum_of_a_lasso_is_that_of_its_support():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 30))
    instance = zoo.lasso(X, X[:, :5] @ np.ones(5))
    theta = np.log(0.2)
    x = instance.solution(theta)
    S = np.flatnonzero(x)
    values = np.linalg.eigvalsh(X[:, S].T @ X[:, S] / 60)
    found = hessian_spectrum(instance.problem, jnp.asarray(x), jnp.asarray(theta))
    assert_allclose((found.mu, found.L), (values[0], values[-1]), rtol=0.03)


@pytest.mark.parametrize("angle", [0.0, 1.0])  # a real eigenvalue; a complex pair
def test_the_rate_of_a_contraction_is_its_spectral_radius(angle):
    c, s = np.cos(angle), np.sin(angle)
    B = np.diag([0.0, 0, 0.5, 0.3, -0.2])
    B[:2, :2] = 0.9 * np.array([[c, -s], [s, c]])
    B[2, 3] = 3.0  # not normal: the norm is above 1
    problem = dargmin.FixedPoint(lambda x, theta: theta @ x + 1)
    found = contraction(problem, jnp.zeros(5), jnp.asarray(B))
    assert_allclose(found.rate, 0.9, rtol=1e-3)
    assert found.rate_error < 1e-2
    assert_allclose(found.norm, np.linalg.norm(B, 2), rtol=0.03)
    assert found.norm >= np.linalg.norm(B, 2)


def test_bad_input_is_refused():
    quadratic, map_ = dargmin.Objective(weighted), dargmin.FixedPoint(lambda x, theta: x)
    with pytest.raises(ValueError, match=r"FixedPoint has no symmetric Hessian.*contraction"):
        hessian_spectrum(map_, jnp.zeros(3), jnp.ones(3))
    with pytest.raises(ValueError, match="steps >= 1"):
        hessian_spectrum(quadratic, jnp.zeros(3), jnp.ones(3), steps=0)
    with pytest.raises(ValueError, match="belongs to a FixedPoint"):
        contraction(quadratic, jnp.zeros(3), jnp.ones(3))
    found = hessian_spectrum(quadratic, jnp.zeros(3), jnp.full(3, jnp.nan))
    assert found.status == Status.nonfinite
