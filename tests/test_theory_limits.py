"""Exact errors where Hessians do not commute, and what no method can beat."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import dargmin
from dargmin import (
    Chebyshev,
    ConjugateGradient,
    GradientDescent,
    HeavyBall,
    Nesterov,
    Sobolev,
    polynomials,
    theory,
)
from dargmin.methods import DerivativeKernel

REFERENCE = json.loads((Path(__file__).parent / "theory.json").read_text())
STEP, EYE = GradientDescent(0.5), np.eye(2)
NONE, ONE, TWO = np.ones(0), np.ones(1), np.ones(2)
COMMUTATOR = REFERENCE["commutator"]
METHODS = {
    "gd_opt": lambda mu, L: GradientDescent(2 / (L + mu)),
    "cheb": Chebyshev,
    "hb": lambda mu, L: HeavyBall.tuned(mu, L, start="plain"),
    "nest": Nesterov.tuned,
    "sobolev_alpha1_eta0.5": lambda mu, L: Sobolev(mu, L, 1.0, 0.5),
    "kernel": DerivativeKernel,
}


@pytest.mark.parametrize("name", COMMUTATOR["dx"])
def test_the_exact_error_equals_the_fifty_digit_reference_without_commutation(name):
    case = COMMUTATOR
    method = METHODS[name](case["mu"], case["L"])
    H, dH, x0, x, dx = (jnp.array(case[key]) for key in ("H", "dH", "x0", "xstar", "dxstar"))
    error = theory.derivative_error(method, H, dH, jnp.array(case["dx0"]) - dx, x0 - x, 20)
    assert_allclose((error + dx)[np.array(case["steps"])], case["dx"][name], rtol=1e-11, atol=1e-12)


def test_the_exact_error_is_that_of_forward_mode_through_the_iterations():
    """For the one method that the reference does not have."""
    case = COMMUTATOR
    H, dH, b, db = (jnp.array(case[key]) for key in ("H", "dH", "b", "db"))
    x0, x, dx = (jnp.array(case[key]) for key in ("x0", "xstar", "dxstar"))
    method = DerivativeKernel(case["mu"], case["L"])
    f = lambda x, s: 0.5 * x @ (H + s * dH) @ x + (b + s * db) @ x
    zero, one = jnp.zeros(()), jnp.ones(())
    _, dxs = dargmin.trace(dargmin.Objective(f), method, x0, zero, one, steps=20)
    error = theory.derivative_error(method, H, dH, -dx, x0 - x, 20)
    assert_allclose(error + dx, dxs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_divided_differences_do_not_lose_close_eigenvalues(name):
    method = METHODS[name](0.1, 2.0)
    close = 0.7 * (1 + 1e-13)
    lam = np.array([0.1, 0.7, close, 1.5, 2.0])
    found = theory.divided_differences(method, lam, 25)
    P, dP = map(np.asarray, theory.residual_polynomial(method, lam, 25))
    # between two points a hair apart, the derivative; and on the diagonal
    assert_allclose(found[:, 1, 2], dP[:, 1], rtol=1e-9, atol=1e-11)
    assert_allclose(np.diagonal(found, axis1=1, axis2=2), dP, rtol=1e-11, atol=1e-12)
    far = lam[:, None] - lam
    i, j = np.nonzero(np.abs(far) > 0.1)
    assert_allclose(found[:, i, j], (P[:, i] - P[:, j]) / far[i, j], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", REFERENCE["minimax"], ids=lambda case: str(case["kappa"]))
def test_the_minimax_limit_of_unrolling_equals_the_reference(case):
    steps, error = np.array(case["steps"]), np.array(case["error"])
    chosen = np.nonzero(steps <= 63)[0][:: 1 if case["kappa"] == 0.1 else 3]
    for i in chosen:
        found = theory.minimax_unrolled(case["kappa"], 1.0, int(steps[i]))
        assert_allclose(found, error[i], rtol=1.5e-2)
    implicit = theory.minimax_implicit(case["kappa"], 1.0, steps)
    late = steps * np.sqrt(case["kappa"]) >= 3
    want = np.asarray(implicit * theory.minimax_ratio(case["kappa"], 1.0, steps))
    assert_allclose(want[late], error[late], rtol=2e-2)


def test_the_minimax_limit_does_not_depend_on_the_unit():
    assert_allclose(
        theory.minimax_unrolled(0.7, 35.0, 12), theory.minimax_unrolled(0.02, 1.0, 12), rtol=1e-6
    )


def test_the_implicit_limit_is_chebyshevs_polynomial():
    P, _ = theory.residual_polynomial(Chebyshev(0.02, 3.0), 3.0, 25)
    assert_allclose(theory.minimax_implicit(0.02, 3.0, np.arange(26)), np.abs(P), rtol=1e-12)


def test_no_method_beats_hindsight_on_two_hundred_problems():
    random = np.random.default_rng(7)
    mu, L, T, n = 0.01, 1.0, 25, 12
    lam = np.exp(random.uniform(np.log(mu), np.log(L), (200, n)))
    a, c = random.normal(size=(2, 200, n))
    c[::2] = -lam[::2] * a[::2]  # G = 0
    best = np.array([theory.hindsight_error(*row, T) for row in zip(lam, a, c, strict=True)])
    assert_allclose(best[:, 0], np.linalg.norm(a, axis=1))
    assert np.all(np.diff(best) <= 0)
    for name in METHODS:
        P, dP = map(np.asarray, theory.residual_polynomial(METHODS[name](mu, L), lam, T))
        error = np.linalg.norm(P * a + dP * c, axis=-1).T
        # the least squares stop at rounding, which a method may fall below
        assert np.all(error >= best * (1 - 1e-9) - 1e-12)
    # one step for each eigenvalue, and one more for R'(0) = 0
    assert np.all(best[1::2, n] < 1e-12) and np.max(best[::2, n]) > 1e-2
    # rounding delays some of them, whose eigenvalues are close
    assert np.median(best[::2, n + 1]) < 1e-9 and np.max(best[::2, n + 1]) < 1e-3


def test_hindsight_is_the_dense_least_squares_problem():
    random = np.random.default_rng(8)
    lam, a, c = random.uniform(0.3, 1, 9), random.normal(size=9), random.normal(size=9)
    found = theory.hindsight_error(lam, a, c, 6)
    for t in range(1, 7):
        k = np.arange(1, t + 1)
        columns = lam[:, None] ** k * a[:, None] + k * lam[:, None] ** (k - 1) * c[:, None]
        p = np.linalg.lstsq(columns, -a, rcond=None)[0]
        assert_allclose(found[t], np.linalg.norm(a + columns @ p), rtol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.minimax_unrolled(0.0, 1.0, 5), "mu > 0"),
        (lambda: theory.minimax_unrolled(1.0, 1.0, 5), "one eigenvalue"),
        (lambda: theory.minimax_unrolled(0.5, 1.0, 0), "steps >= 1"),
        (lambda: theory.minimax_ratio(2.0, 1.0, 5), "mu=2.0 and L=1.0"),
        (lambda: theory.minimax_implicit(0.0, 1.0, 5), "mu > 0"),
        (lambda: theory.hindsight_error(np.ones(1), np.ones(2), np.ones(1), 5), "same length"),
        (
            lambda: theory.hindsight_error(np.zeros(1), np.ones(1), np.ones(1), 5),
            "positive eigenvalues",
        ),
        (lambda: theory.divided_differences(ConjugateGradient(), np.ones(1), 5), "depend on"),
        (lambda: theory.divided_differences(Chebyshev(1, 2), np.ones(1), 0), "steps >= 1"),
    ],
)
def test_bad_arguments_say_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kappa", [1 - 1e-3, 1 - 1e-7, 1 - 1e-12])
def test_the_minimax_of_unrolling_is_found_for_nearly_one_eigenvalue(kappa):
    # there 4 √κ t / (1 - κ) times the implicit minimax is exact up to O(1 - κ)
    bound = theory.minimax_ratio(kappa, 1.0, 5) * theory.minimax_implicit(kappa, 1.0, 5)
    assert_allclose(theory.minimax_unrolled(kappa, 1.0, 5), bound, rtol=2e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.minimax_ratio(1.0, 1.0, 3), "one eigenvalue"),
        (lambda: theory.minimax_ratio(0.1, 1.0, -1), "steps >= 1"),
        (lambda: theory.minimax_implicit(0.1, 1.0, -1), "steps >= 0"),
        (lambda: theory.minimax_implicit(0.1, 1.0, np.nan), "whole number"),
        (lambda: theory.minimax_unrolled(0.1, 1.0, 3, nodes=1), "nodes >= 8"),
        (lambda: theory.minimax_unrolled(np.ones(2), 1.0, 3), "one number each"),
        (lambda: jax.jit(lambda m: theory.minimax_unrolled(m, 1.0, 3))(0.1), "on the host"),
        (lambda: theory.hindsight_error(NONE, NONE, NONE, 3), "vectors of the same length"),
        (lambda: theory.hindsight_error(ONE, np.nan * ONE, ONE, 3), "all finite"),
        (lambda: theory.burn_in(np.array([-1.0, 2.0])), "negative"),
        (lambda: theory.burn_in_length(0.5, 1.0, np.inf, 1.0), "finite"),
        (lambda: theory.warm_distances(0.5, 3, e0=1.0, lipschitz=1.0, changes=0.1), "a vector"),
        (lambda: theory.forward_bound(TWO / 4, np.ones(3), M=1, e0=1, delta0=1), "broadcast"),
        (lambda: theory.reverse_bound(0.5, 3, 1.5, M=1, e0=1, norm=1), "whole number"),
        (lambda: theory.worst_case_error(STEP, 0.1, 1, 3, A=np.inf, C=1), "finite"),
        (lambda: theory.worst_case_error(STEP, 0.1, 1, 3, A=1, C=1, eigenvalues=5 * ONE), "widen"),
        (lambda: theory.worst_case_error(STEP, 0.1, 1, 3, A=1, C=1, eigenvalues=NONE), "a vector"),
        (lambda: theory.dual_worst_case(jnp.ones(2), jnp.ones(3), 1.0, 1.0), "broadcast"),
        (lambda: theory.dual_worst_case(jnp.ones(2), jnp.ones(2), -1.0, 1.0), "never negative"),
        (lambda: theory.derivative_error(STEP, EYE, np.eye(3), TWO, TWO, 3), "shape"),
        (
            lambda: theory.derivative_error(
                STEP, EYE + np.array([[0, 1], [0, 0]]), EYE, TWO, TWO, 3
            ),
            "H",
        ),
        (lambda: polynomials.gradient_descent(np.nan, 3), "finite"),
        (lambda: polynomials.chebyshev(TWO / 2, 1.0, 3), "jax.vmap"),
        (lambda: polynomials.sobolev_for_measure(NONE, NONE, 0.1, 3), "two vectors"),
    ],
)
def test_bad_and_extreme_input_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_trace_that_begins_unknown_has_no_burn_in_that_could_be_called_none():
    b = theory.burn_in(jnp.asarray([[np.nan, 1.0], [1.0, 2.0], [0.5, 0.5]]))
    assert np.isnan(b.height[0]) and b.length[0] == 3
    assert b.height[1] == 2 and b.length[1] == 2


def test_integers_are_points_like_any_other():
    family = polynomials.chebyshev(0.1, 1.0, 3)
    assert_allclose(family(1), family(jnp.asarray(1.0)), rtol=1e-15)


def test_a_method_that_is_tuned_inside_jit_has_its_worst_case_too():
    worst = lambda mu: theory.worst_case_error(HeavyBall.tuned(mu, 1.0), mu, 1.0, 9, A=1.0, C=1.0)
    assert_allclose(jax.jit(worst)(0.1), worst(0.1), rtol=0.01)  # on a grid: misses at most 1 %
