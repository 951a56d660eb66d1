"""DerivativeKernel: the dense optimum at every step, no burn-in in the worst case, every mode."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scenarios import LOGISTIC, MU, RIDGE, L
from scipy.special import roots_chebyt, roots_gegenbauer

import dargmin
from dargmin import Chebyshev, LateStart, Sobolev, Unrolled, theory
from dargmin.methods import DerivativeKernel
from dargmin.polynomials import KernelRecurrence

MINIMAX = json.loads((Path(__file__).parent / "theory.json").read_text())["minimax"]


@pytest.mark.parametrize("alpha", [-0.3, 0.0, 0.5, 1.0, 2.5])
def test_the_derivative_of_every_iterate_is_the_dense_optimum(alpha):
    """Least squares over R = 1 + λ² Σ c_k T_k(z), at the nodes of a Gaussian rule."""
    mu, upper, T = 0.1, 2.0, 16
    z, weights = roots_chebyt(60) if alpha == 0 else roots_gegenbauer(60, alpha)
    lam, root = (upper + mu) / 2 + (upper - mu) / 2 * z, np.sqrt(weights / np.sum(weights))
    P, dP = map(np.asarray, theory.residual_polynomial(DerivativeKernel(mu, upper, alpha), lam, T))
    assert_allclose(P[:2], 1, atol=1e-13)
    # of the P that have this R, the one with the least ∫P'²
    assert_allclose(dP @ root**2, 0, atol=1e-11)
    basis = (lam**2)[:, None] * np.cos(np.arange(T - 1) * np.arccos(z)[:, None])
    for t in range(2, T + 1):
        columns = basis[:, : t - 1]
        c = np.linalg.lstsq(root[:, None] * columns, -root, rcond=None)[0]
        assert_allclose((P - lam * dP)[t], 1 + columns @ c, atol=1e-10)


def test_no_burn_in_in_the_worst_case():
    """G = 0 and κ = 1e-4, on a grid that P of degree 300 cannot hide from (2 %)."""
    lam = 1e-4 + (1 - 1e-4) * np.sin(np.linspace(0, np.pi / 2, 1501)) ** 2

    def errors(method):
        P, dP = theory.residual_polynomial(method, lam, 300)
        return np.max(np.abs(P - lam * dP), axis=1), 1e-4 * np.max(np.abs(dP))

    (sobolev, _), (chebyshev, _) = errors(Sobolev(1e-4, 1.0)), errors(Chebyshev(1e-4, 1.0))
    assert np.max(sobolev) > 9 and np.max(chebyshev) > 5000
    for alpha in (0.0, 0.5, 1.0):
        found, gradient = errors(DerivativeKernel(1e-4, 1.0, alpha))
        assert np.max(found) <= 1 + 1e-9
        assert found[-1] < sobolev[-1] / 20 and found[-1] < chebyshev[-1] / 2000
        # what d∇f(x_0) adds: as for the other methods, less than half of ‖g‖/μ at any t
        assert gradient < 0.47


@pytest.mark.parametrize("case", MINIMAX[:2], ids=lambda case: str(case["kappa"]))
def test_the_worst_case_is_within_a_factor_of_two_of_the_least_possible(case):
    method = DerivativeKernel(case["kappa"], 1.0, alpha=0.0)
    errors = theory.worst_case_error(method, case["kappa"], 1.0, max(case["steps"]), A=1, G=0)
    ratio = errors[np.array(case["steps"])] / np.array(case["error"])
    assert np.all(ratio > 1 - 1e-2) and np.all(ratio < 2)


def test_a_ridge_penalty_from_zero_has_no_burn_in():
    """d∇f(0)/dθ = 0. Four problems with 1/κ from 1e1 to 1e4, smooth targets, and x_0 = 0."""

    def ridge(x, theta):
        penalty, s, y = theta
        return 0.5 * jnp.sum(s * (x - y) ** 2) + 0.5 * penalty * jnp.sum(x**2)

    problem, random, heights = dargmin.Objective(ridge), np.random.default_rng(3), []
    for decades in (1, 2, 3, 4):
        s, penalty = np.logspace(-decades - 1, 0, 40), 10.0**-decades
        y = s * random.normal(size=40)
        exact = -s * y / (s + penalty) ** 2
        spectrum = float(s[0] + penalty), 1 + penalty
        theta = jnp.array(penalty), jnp.array(s), jnp.array(y)
        tangent = jnp.ones(()), jnp.zeros(40), jnp.zeros(40)
        for method in (DerivativeKernel(*spectrum), Chebyshev(*spectrum)):
            _, dxs = dargmin.trace(problem, method, jnp.zeros(40), theta, tangent, steps=200)
            heights.append(np.max(np.linalg.norm(dxs - exact, axis=1)) / np.linalg.norm(exact))
    kernel, chebyshev = np.reshape(heights, (4, 2)).T
    assert np.all(kernel <= 1 + 1e-12)
    assert np.max(chebyshev) > 2


@pytest.mark.parametrize("kappa", [1e-2, 1e-3, 1e-4])
def test_single_precision_costs_little_more_than_it_costs_chebyshev(kappa):
    eigenvalues = np.float32(np.geomspace(kappa, 1, 60))
    method = DerivativeKernel(kappa, 1.0)
    single, _ = theory.residual_polynomial(method, eigenvalues, 600)
    double, _ = theory.residual_polynomial(method, np.float64(eigenvalues), 600)
    assert single.dtype == jnp.float32
    # ε/√κ for Chebyshev's method; sums of its iterates cost a small factor
    error = np.max(np.abs(np.float64(single) - double))
    assert error < 12 * np.finfo(np.float32).eps / np.sqrt(kappa)
    # and what is left at the end is not rounding
    assert_allclose(np.max(np.abs(single[-1])), np.max(np.abs(double[-1])), rtol=1e-2, atol=1e-30)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_coefficients_stay_finite_for_a_hundred_thousand_steps(dtype):
    constants = itertools.product((1e-9, 1.0, 1e3), [1e3], (-0.49, 0, 2.5))
    batch = [jnp.array(column, dtype) for column in zip(*constants, strict=True)]

    def run(mu, upper, alpha):
        recurrence = KernelRecurrence(mu, upper, alpha)
        step = lambda ratios, _: recurrence.advance(ratios)[::-1]
        begin = recurrence.begin(np.dtype(dtype))
        ratios, coefficients = jax.lax.scan(step, begin, None, length=100_000)
        return ratios, jax.tree.map(lambda c: jnp.all(jnp.isfinite(c)), coefficients)

    ratios, finite = jax.jit(jax.vmap(run))(*batch)
    assert all(np.all(flag) for flag in jax.tree.leaves(finite))
    assert all(np.all(np.isfinite(value)) for value in jax.tree.leaves(ratios))


@pytest.mark.parametrize(
    ("scenario", "spectrum", "mode"),
    [(RIDGE, (MU, L), Unrolled()), (LOGISTIC, (0.4, 2.7), LateStart(last=60, checkpoint="sqrt"))],
    ids=["ridge, unrolled", "logistic, late start"],
)
def test_modes_have_the_derivative_of_the_solution(scenario, spectrum, mode):
    def x(theta):
        run = dict(steps=100, mode=mode)
        method = DerivativeKernel(*spectrum)
        return dargmin.solve(scenario.problem, method, scenario.x0, theta, **run).x

    forward, reverse = jax.jit(lambda t: (jax.jacfwd(x)(t), jax.jacrev(x)(t)))(scenario.theta)
    # a hundred steps at condition numbers below 10 leave rounding only
    assert_allclose(forward, scenario.jacobian(np.asarray(scenario.theta)), rtol=1e-9)
    assert_allclose(reverse, forward, rtol=1e-9)


def test_one_eigenvalue_takes_two_steps():
    """μ = L: R(0) = 1 and R'(0) = 0 leave degree 1 no choice, and degree 2 has its zero there."""
    for mu in (3.0, 3.0 * (1 - 1e-15)):
        P, dP = theory.residual_polynomial(DerivativeKernel(mu, 3.0), 3.0, 3)
        assert_allclose(P, [1, 1, 0, 0], atol=1e-14)
        assert_allclose(dP, 0, atol=1e-14)


def test_a_step_evaluates_one_gradient_and_keeps_five_vectors():
    calls = []
    problem = dargmin.Root(lambda x, theta: (calls.append(1), theta * x)[1])
    method, x = DerivativeKernel(0.5, 2.0), jnp.ones(1000)
    state = method.init(problem, x, 1.0)
    for _ in range(3):
        x, state, _ = method.step(problem, x, state, 1.0)
    assert len(calls) == 3
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 5 * 1000 + 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mu=2.0, L=1.0), r"\(mu, L\) with 0 <= mu <= L.*mu=2.0 and L=1.0"),
        (dict(mu=0.0, L=1.0), "needs mu > 0.*Nesterov.convex"),
        (dict(mu=0.1, L=np.inf), "L=inf"),
        (dict(mu=0.1, L=1.0, alpha=-0.5), "alpha > -1/2, but alpha=-0.5"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        DerivativeKernel(**arguments)
