"""Residual polynomials: equal to 50-digit values, to closed forms, to what the methods do, and to
the dense optimum; finite for as long as anyone iterates."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import eval_gegenbauer, roots_gegenbauer

import dargmin
from dargmin import polynomials as family
from dargmin.theory import residual_polynomial

HERE = Path(__file__).parent
CLASSICAL = json.loads((HERE / "reference.json").read_text())["polynomials"]
SOBOLEV = json.loads((HERE / "polynomials.json").read_text())["sobolev"]


def heavy_ball(mu, L):
    root, ell = np.sqrt(L), np.sqrt(mu)
    return (2 / (root + ell)) ** 2, ((root - ell) / (root + ell)) ** 2


def nesterov(mu, L):
    root = np.sqrt(mu / L)
    return 1 / L, (1 - root) / (1 + root)


# name: the family by its recurrence (mu, L, steps), and the method
PAIRS = {
    "gradient descent at 1/L": (
        lambda mu, L, T: family.gradient_descent(1 / L, T),
        lambda mu, L: dargmin.GradientDescent(1 / L),
    ),
    "gradient descent at 2/(L+mu)": (
        lambda mu, L, T: family.gradient_descent(2 / (L + mu), T),
        lambda mu, L: dargmin.GradientDescent(2 / (L + mu)),
    ),
    "heavy ball, plain start": (
        lambda mu, L, T: family.heavy_ball(*heavy_ball(mu, L), T, start="plain"),
        lambda mu, L: dargmin.HeavyBall.tuned(mu, L, start="plain"),
    ),
    "heavy ball, corrected start": (
        lambda mu, L, T: family.heavy_ball(*heavy_ball(mu, L), T),
        dargmin.HeavyBall.tuned,
    ),
    "Nesterov": (
        lambda mu, L, T: family.nesterov(*nesterov(mu, L), T),
        dargmin.Nesterov.tuned,
    ),
    "Chebyshev": (family.chebyshev, dargmin.Chebyshev),
    "Sobolev": (
        lambda mu, L, T: family.sobolev(mu, L, 0.5, mu * L, T),
        dargmin.Sobolev,
    ),
}


def assert_same(found, want, rtol):
    """Both P and P', at every t relative to the largest value over λ."""
    for a, b in zip(found, want, strict=True):
        b = np.asarray(b)
        scale = np.maximum(np.max(np.abs(b), axis=1, keepdims=True), 1e-300)
        assert_allclose(np.asarray(a) / scale, b / scale, rtol=0, atol=rtol)


@pytest.mark.parametrize("case", CLASSICAL, ids=lambda case: f"{case['method']}, L={case['L']}")
def test_classical_families_equal_the_fifty_digit_reference(case):
    polynomials = PAIRS[case["method"]][0](case["mu"], case["L"], 60)
    P, dP = family.evaluate(polynomials, np.array(case["eigenvalues"]))
    steps = np.array(case["steps"])
    assert_same((P[steps], dP[steps]), (case["P"], case["dP"]), 1e-11)


@pytest.mark.parametrize("case", SOBOLEV, ids=lambda case: f"{case['alpha']}, {case['eta']}")
def test_sobolev_polynomials_equal_the_dense_optimum_of_fifty_digits(case):
    spectrum = case["mu"], case["L"], case["alpha"], case["eta"]
    P, dP = family.evaluate(family.sobolev(*spectrum, 60), np.array(case["eigenvalues"]))
    steps = np.array(case["steps"])
    assert_same((P[steps], dP[steps]), (case["P"], case["dP"]), 1e-11)


@pytest.mark.parametrize("name", PAIRS)
def test_recurrence_and_method_have_the_same_residual_polynomials(name):
    polynomials, method = PAIRS[name]
    mu, L = 0.03, 7.0
    eigenvalues = np.linspace(mu, 1.02 * L, 23)  # a little beyond, where most of them grow
    found = family.evaluate(polynomials(mu, L, 150), eigenvalues)
    assert_same(found, residual_polynomial(method(mu, L), eigenvalues, 150), 1e-10)


@pytest.mark.parametrize("alpha", [-0.3, 0.5, 1.0, 2.5])
def test_gegenbauer_polynomials_are_normalised_at_zero(alpha):
    mu, L = 0.02, 3.0
    t, eigenvalues = np.arange(31)[:, None], np.linspace(mu, L, 11)
    z = lambda lam: (2 * lam - L - mu) / (L - mu)
    norm = eval_gegenbauer(t, alpha, z(0.0))
    P = eval_gegenbauer(t, alpha, z(eigenvalues)) / norm
    # C_n^{(α)}' = 2α C_{n-1}^{(α+1)}
    slope = 2 * alpha * eval_gegenbauer(np.maximum(t - 1, 0), alpha + 1, z(eigenvalues)) * (t > 0)
    found = family.evaluate(family.gegenbauer(mu, L, alpha, 30), eigenvalues)
    assert_same(found, (P, slope / norm * 2 / (L - mu)), 1e-11)


@settings(max_examples=20)
@given(
    kappa=st.floats(-5, -0.5).map(lambda e: 10**e),
    alpha=st.sampled_from([-0.3, 0.0, 0.25, 0.5, 1.0, 2.5]),
    eta=st.floats(-8, 1).map(lambda e: 10**e),
    L=st.sampled_from([1.0, 7.0, 1e-3]),
)
def test_short_and_long_recurrence_agree_up_to_two_hundred_steps(kappa, alpha, eta, L):
    mu, eta = kappa * L, eta * L**2
    nodes, weights = gauss(mu, L, alpha, 201)  # exact up to degree 401
    eigenvalues = np.linspace(mu, L, 41)
    want = family.evaluate(family.sobolev_for_measure(nodes, weights, eta, 200), eigenvalues)
    found = family.evaluate(family.sobolev(mu, L, alpha, eta, 200), eigenvalues)
    # The nodes and the 200 × 200 orthogonalisation are good to this; the short recurrence to 1e-11.
    assert_same(found, want, 3e-9)


def gauss(mu, L, alpha, n):
    """Nodes and weights of Gauss–Gegenbauer quadrature on [μ, L]; SciPy has no α = 0."""
    if alpha == 0:
        z, weights = np.cos(np.pi * (np.arange(n) + 0.5) / n), np.ones(n)
    else:
        z, weights = roots_gegenbauer(n, alpha)
    return (L + mu) / 2 + (L - mu) / 2 * z, weights


def test_a_zero_of_the_sobolev_polynomial_at_zero_is_no_division_by_zero():
    """φ_5 vanishes for these constants: S_5 cannot be normalised at 0, P_5 is as good as ever."""
    constants = 0.01, 1.0, 0.0, 0.0118898
    polynomials = family.sobolev(*constants, 8)
    assert abs(polynomials.coefficients.phi[4]) < 1e-5
    eigenvalues = np.linspace(0.01, 1.0, 9)
    dense = family.sobolev_for_measure(*gauss(0.01, 1.0, 0.0, 20), 0.0118898, 8)
    want = family.evaluate(dense, eigenvalues)
    assert_same(family.evaluate(polynomials, eigenvalues), want, 1e-12)


def test_the_optimum_for_an_empirical_spectrum_solves_the_normal_equations():
    rng = np.random.default_rng(4)
    nodes, weights, eta, degree = rng.uniform(0.1, 1, 9), rng.uniform(0.2, 2, 9), 0.03, 5
    w = np.concatenate([weights, eta * weights]) ** 0.5
    powers = np.arange(1, degree + 1)
    monomials = np.concatenate([nodes[:, None] ** powers, powers * nodes[:, None] ** (powers - 1)])
    target = -w * np.concatenate([np.ones(9), np.zeros(9)])
    c = np.linalg.lstsq(w[:, None] * monomials, target, rcond=None)[0]
    P = 1 + nodes[:, None] ** powers @ c
    dP = (powers * nodes[:, None] ** (powers - 1)) @ c
    polynomials = family.sobolev_for_measure(nodes, weights, eta, degree)
    found = family.evaluate(polynomials, nodes)
    assert_allclose(found[0][-1], P, atol=1e-11)
    assert_allclose(found[1][-1], dP, atol=1e-11)


def test_the_optimum_vanishes_once_the_degree_counts_every_node_twice():
    nodes = np.array([0.1, 0.3, 1.0])
    P, dP = family.evaluate(family.sobolev_for_measure(nodes, np.ones(3), 0.1, 9), nodes)
    assert P.shape == (10, 3)
    assert np.max(np.abs(P[5])) > 1e-2
    assert_allclose(P[6:], 0, atol=1e-12)
    assert_allclose(dP[6:], 0, atol=1e-11)
    # at 0 every polynomial is 1: with a node there, no degree makes the sum vanish
    nodes = np.array([0.0, 0.5])
    P, _ = family.evaluate(family.sobolev_for_measure(nodes, np.ones(2), 0.1, 9), nodes)
    assert_allclose(P[:, 0], 1, rtol=1e-12)
    assert_allclose(P[4:, 1], 0, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_a_hundred_thousand_steps_overflow_nowhere_and_leave_one_at_zero(name):
    polynomials = PAIRS[name][0](1e-6, 1.0, 100_000)
    # rounding takes L beyond the edge of convergence, so end just inside
    P, dP = family.evaluate(polynomials, np.append(0.0, np.geomspace(1e-6, 1 - 1e-9, 5)))
    assert P.shape == dP.shape == (100_001, 6)
    assert np.all(np.isfinite(P)) and np.all(np.isfinite(dP))
    assert np.max(np.abs(P[-1, 1:])) < 1
    # differences of ones are exact; an average of ones may lose an ulp at each step at most
    assert_allclose(P[:, 0], 1, rtol=1e5 * np.finfo(float).eps)


@pytest.mark.parametrize("build", [family.chebyshev, lambda *a: family.sobolev(*a[:2], 0.5, 4, 6)])
def test_one_eigenvalue_is_a_spectrum_like_any_other(build):
    P, dP = family.evaluate(build(2.0, 2.0, 6), np.array([2.0, 1.0]))
    assert np.all(np.isfinite(P)) and np.all(np.isfinite(dP))
    assert_allclose(P[2:, 0], 0, atol=1e-15)


def test_single_precision_input_stays_single():
    P, dP = family.evaluate(family.chebyshev(0.1, 1.0, 5), jnp.float32([0.1, 0.5]))
    assert P.dtype == dP.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: family.chebyshev(2.0, 1.0, 5), r"\(mu, L\)"),
        (lambda: family.chebyshev(-1.0, 1.0, 5), "0 <= mu <= L"),
        (lambda: family.chebyshev(0.0, np.inf, 5), "L=inf"),
        (lambda: family.gegenbauer(0.1, 1.0, -0.5, 5), "alpha=-0.5"),
        (lambda: family.sobolev(0.1, 1.0, 0.5, 0.0, 5), "eta=0.0"),
        (lambda: family.sobolev(0.0, 1.0, 0.5, 1.0, 5), "mu > 0"),
        (lambda: family.sobolev(0.1, 1.0, 0.5, 1.0, 0), "steps=0"),
        (lambda: family.heavy_ball(0.1, 0.5, 5, start="warm"), "corrected"),
        (lambda: family.gradient_descent(0.1, 0), "steps >= 1"),
        (lambda: family.sobolev_for_measure(np.ones(1), np.ones(2), 0.1, 3), "shape"),
        (lambda: family.sobolev_for_measure(np.ones(1), -np.ones(1), 0.1, 3), "positive weights"),
        (lambda: family.sobolev_for_measure(np.array([np.nan]), np.ones(1), 0.1, 3), "finite"),
        (lambda: family.sobolev_for_measure(np.ones(1), np.ones(1), -0.1, 3), "eta=-0.1"),
        (lambda: residual_polynomial(dargmin.Chebyshev(0.1, 1.0), 0.5, 0), "steps >= 1"),
        (lambda: residual_polynomial(dargmin.GradientDescent(), 0.5, 3), "step_size"),
        (lambda: residual_polynomial(dargmin.ConjugateGradient(), 0.5, 3), "depend"),
        (lambda: residual_polynomial(dargmin.FromOptax(optax.adam(0.1)), 0.5, 3), "depend"),
    ],
)
def test_bad_arguments_say_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_coefficients_can_be_computed_for_a_batch_of_spectra():
    mu = jnp.array([0.01, 0.1])
    values = lambda mu: family.evaluate(family.sobolev(mu, 1.0, 0.5, mu, 20), 0.3)
    P, dP = jax.jit(jax.vmap(values))(mu)
    for i, one in enumerate(mu):
        want = values(one)
        assert_allclose((P[i], dP[i]), want, rtol=1e-11)
