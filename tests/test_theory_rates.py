"""The worst case of unrolling: equal to 50-digit values, attained, never exceeded; its burn-in."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

from dargmin import (
    Chebyshev,
    ConjugateGradient,
    GradientDescent,
    HeavyBall,
    Nesterov,
    Sobolev,
    theory,
)

REFERENCE = json.loads((Path(__file__).parent / "theory.json").read_text())
RANDOM = np.random.default_rng(0)

METHODS = {
    "gradient descent at 1/L": lambda mu, L: GradientDescent(1 / L),
    "gradient descent at 2/(L+mu)": lambda mu, L: GradientDescent(2 / (L + mu)),
    "Chebyshev": Chebyshev,
    "heavy ball, plain start": lambda mu, L: HeavyBall.tuned(mu, L, start="plain"),
    "heavy ball, corrected start": HeavyBall.tuned,
    "Nesterov": Nesterov.tuned,
    "Sobolev": Sobolev,
    "heavy ball, tuned for another spectrum": lambda mu, L: HeavyBall.tuned(2 * mu, 1.3 * L),
}


@pytest.mark.parametrize("case", REFERENCE["worst_case"], ids=lambda c: f"{c['method']}, {c['mu']}")
def test_worst_cases_equal_the_fifty_digit_reference(case):
    method = METHODS[case["method"]](case["mu"], case["L"])
    norms = {"A": case["A"], case["given"]: case["norm"]}
    found = theory.worst_case_error(method, case["mu"], case["L"], 60, **norms)
    assert_allclose(found[np.array(case["steps"])], case["error"], rtol=1e-12)


def on_a_grid(name):
    """μ, L, T, a method, and P and P' for t = 0..T on a grid from μ to L: the same for two tests,
    which then compile once."""
    mu, L, T = 0.02, 3.0, 30
    method = METHODS[name](mu, L)
    lam = mu + (L - mu) * np.sin(np.linspace(0, np.pi / 2, 513)) ** 2
    P, dP = map(np.asarray, theory.residual_polynomial(method, lam, T))
    return mu, L, T, method, lam, P, dP


@pytest.mark.parametrize("name", METHODS)
def test_no_commuting_problem_exceeds_the_worst_case(name):
    """Two hundred problems: random spectra in [μ, L], random directions of a and c."""
    mu, L, T, method, lam, P, dP = on_a_grid(name)
    chosen = RANDOM.integers(0, lam.size, (200, 10))
    chosen[:100, 0], chosen[50:150, 1] = 0, lam.size - 1
    for given, first in (("C", P), ("G", P - lam * dP)):
        bound = np.asarray(theory.worst_case_error(method, mu, L, T, A=1.3, **{given: 0.7}))
        a, c = RANDOM.normal(size=(2, 200, 10)) * RANDOM.uniform(size=(2, 200, 10)) ** 4
        a *= 1.3 / np.linalg.norm(a, axis=-1, keepdims=True)
        c *= 0.7 / np.linalg.norm(c, axis=-1, keepdims=True)
        error = np.linalg.norm(first[:, chosen] * a + dP[:, chosen] * c, axis=-1)
        assert np.all(error <= bound[:, None] * (1 + 1e-9))
        # what the random problems attain shows that the comparison is not empty
        assert np.all(np.max(error, axis=1) > 0.2 * bound)


@pytest.mark.parametrize("name", METHODS)
def test_a_problem_attains_the_worst_case(name):
    """An adversary's: ‖p∘a + q∘c‖ by power iteration on the two spheres in turn."""
    mu, L, T, method, lam, P, dP = on_a_grid(name)
    for given, first in (("C", P[T]), ("G", P[T] - lam * dP[T])):
        norms = {"A": 1.3, given: 0.7}
        bound = theory.worst_case_error(method, mu, L, T, **norms)[-1]
        exact = theory.worst_case_error(method, mu, L, T, **norms, eigenvalues=lam)[-1]
        p, q = np.abs(first) * 1.3, np.abs(dP[T]) * 0.7
        a, c = np.full((2, lam.size), lam.size**-0.5)
        for _ in range(5000):
            total = p * a + q * c
            a, c = p * total, q * total
            a, c = a / np.linalg.norm(a), c / np.linalg.norm(c)
        attained = np.linalg.norm(p * a + q * c)
        # the iteration converges linearly, slowly where two eigenvalues nearly tie
        assert exact * (1 - 1e-3) <= attained <= exact * (1 + 1e-12)
        assert_allclose(exact, bound, rtol=1e-2)


def test_the_dual_is_the_sum_where_both_peak_together_and_less_where_they_do_not():
    p, q = jnp.array([3.0, 1.0, 0.0]), jnp.array([-2.0, 1.5, 0.5])
    assert_allclose(theory.dual_worst_case(p, q, 2.0, 5.0), 2 * 3 + 5 * 2, rtol=1e-15)
    # two eigenvalues, one for each: the parts are orthogonal
    apart = theory.dual_worst_case(jnp.array([3.0, 0.0]), jnp.array([0.0, 2.0]), 2.0, 5.0)
    assert_allclose(apart, np.hypot(6, 10), rtol=1e-12)
    for A, C, want in ((0.0, 5.0, 10.0), (2.0, 0.0, 6.0), (0.0, 0.0, 0.0)):
        assert_allclose(theory.dual_worst_case(p, q, A, C), want)
    p, q = RANDOM.normal(size=(2, 30, 5)) * np.exp(RANDOM.normal(size=(2, 30, 5)) * 3)
    for i, found in enumerate(theory.dual_worst_case(jnp.array(p), jnp.array(q), 1.3, 0.4)):
        objective = lambda s, i=i: np.max(
            (1.3 * p[i]) ** 2 * (1 + np.exp(-s)) + (0.4 * q[i]) ** 2 * (1 + np.exp(s))
        )
        best = minimize_scalar(objective, bounds=(-40, 40), options={"xatol": 1e-12}).fun
        assert_allclose(found, np.sqrt(best), rtol=1e-6)
        assert found <= np.sqrt(best) * (1 + 1e-12)


def test_worst_cases_hold_where_the_hessian_and_its_derivative_do_not_commute():
    """With C = ‖dH‖ ‖x_0 - x*‖, over two hundred rotations."""
    mu, L, T, d = 0.02, 3.0, 30, 6
    names = ("gradient descent at 2/(L+mu)", "Chebyshev", "heavy ball, corrected start", "Nesterov")
    H, dH = np.zeros((2, 50, d, d))
    for k in range(50):
        Q = np.linalg.qr(RANDOM.normal(size=(d, d)))[0]
        lam = np.exp(RANDOM.uniform(np.log(mu), np.log(L), d))
        lam[0], lam[-1] = mu, L
        S = RANDOM.normal(size=(d, d))
        H[k], dH[k] = (Q * lam) @ Q.T, S + S.T
        H[k] = (H[k] + H[k].T) / 2
    a, e = RANDOM.normal(size=(2, 50, d))
    A = np.linalg.norm(a, axis=1)
    C = np.linalg.norm(dH, 2, axis=(1, 2)) * np.linalg.norm(e, axis=1)
    for name in names:
        method = METHODS[name](mu, L)
        run = jax.vmap(lambda *args, m=method: theory.derivative_error(m, *args, T))
        error = jnp.linalg.norm(run(*map(jnp.array, (H, dH, a, e))), axis=-1)
        unit_a, unit_c = (
            theory.worst_case_error(method, mu, L, T, A=x, C=y) for x, y in ((1.0, 0.0), (0.0, 1.0))
        )
        bound = A[:, None] * unit_a + C[:, None] * unit_c
        assert np.all(error <= bound * (1 + 1e-9)), name


@pytest.mark.parametrize("name", [name for name in METHODS if "plain" not in name])
def test_errors_fall_at_the_asymptotic_rate(name):
    mu, L, T = 0.1, 2.0, 1200
    method = METHODS[name](mu, L)
    P, _ = theory.residual_polynomial(method, jnp.array([mu, L]), T)
    with np.errstate(divide="ignore"):
        size = np.log(np.max(np.abs(np.asarray(P)), axis=1))
    t = np.arange(T - 800, T - 500)  # a window, because momentum makes P_t(λ) oscillate
    found = np.max(size[t + 200]) - np.max(size[t])
    if np.isfinite(found):  # P_t of gradient descent underflows nowhere here
        # polynomial factors: ln((t + 200)/t) / 200 of up to the third power
        assert_allclose(found / 200, np.log(theory.rate(method, mu, L)), atol=1e-2)


@pytest.mark.parametrize("kappa", [1.0, 0.5])
def test_one_eigenvalue_is_no_exception(kappa):
    """μ = L, where 1/(L - μ) cancels: closed forms against the polynomials at that eigenvalue."""
    for method in (Chebyshev(kappa, 1.0), HeavyBall.tuned(kappa, 1.0), Nesterov.tuned(kappa, 1.0)):
        found = theory.worst_case_error(method, kappa, 1.0, 5, A=1.0, C=0.3)
        lam = np.linspace(kappa, 1.0, 200)
        grid = theory.worst_case_error(method, kappa, 1.0, 5, A=1.0, C=0.3, eigenvalues=lam)
        assert_allclose(found, grid, atol=1e-12)


@pytest.mark.parametrize("name", ["Chebyshev", "gradient descent"])
@pytest.mark.parametrize("case", REFERENCE["peaks"], ids=lambda case: str(case["kappa"]))
def test_burn_ins_are_those_of_the_fifty_digit_reference(name, case):
    kappa = case["kappa"]
    method = Chebyshev(kappa, 1.0) if name == "Chebyshev" else GradientDescent(2 / (1 + kappa))
    peak, height, length = case[name]
    # the same number of steps for all: one compilation
    errors = theory.worst_case_error(method, kappa, 1.0, 60_000, A=1.0, G=0.0)
    found = theory.burn_in(errors)
    # at 5000 gradient steps the peak is a tie to fifteen digits
    assert abs(int(found.peak) - peak) <= 1 and int(found.length) == length
    assert_allclose(found.height, height, rtol=1e-10)
    where, formula = theory.unrolled_peak(method, kappa, 1.0)
    exact = isinstance(method, GradientDescent)
    assert abs(float(where) - peak) <= 1
    assert_allclose(formula, height, rtol=1e-10 if exact else 3 * kappa)


@pytest.mark.parametrize(("start", "rtol"), [("plain", 4e-2), ("corrected", 4e-2)])
def test_the_peak_of_heavy_ball_is_that_of_its_limit(start, rtol):
    """To leading order: the rest is of relative size √κ."""
    kappa = 1e-4
    method = HeavyBall.tuned(kappa, 1.0, start=start)
    found = theory.burn_in(theory.worst_case_error(method, kappa, 1.0, 400, A=1.0, G=0.0))
    where, height = theory.unrolled_peak(method, kappa, 1.0)
    assert_allclose(where, found.peak, atol=2)
    assert_allclose(height, found.height, rtol=rtol)


def test_gradient_descent_never_gets_worse_up_to_the_step_root_two_over_L():
    mu, L = 0.01, 2.0
    threshold = float(theory.largest_monotone_step(L))
    for h in np.append(RANDOM.uniform(0, threshold, 8), threshold):
        errors = theory.worst_case_error(GradientDescent(h), mu, L, 300, A=1.0, G=0.0)
        assert np.all(np.diff(errors) <= 1e-15 * errors[:-1])
        assert theory.unrolled_peak(GradientDescent(h), mu, L)[1] == 1
    for h in (threshold * (1 + 1e-9), 1.9 / L):
        errors = theory.worst_case_error(GradientDescent(h), mu, L, 300, A=1.0, G=0.0)
        assert errors[2] > errors[1]
        assert_allclose(theory.unrolled_peak(GradientDescent(h), mu, L)[1], np.max(errors))
    assert theory.unrolled_peak(GradientDescent(1.0), mu, 2.0)[0] == np.inf


def test_peak_and_burn_in_length_equal_a_direct_search():
    """Five hundred bounds r^{t-1} (α + tβ), α < 0 among them."""
    n, t = 500, np.arange(1, 6000)
    rate = 1 - 10 ** RANDOM.uniform(-2.5, 0, n)
    beta = 10 ** RANDOM.uniform(-2, 2, n)
    alpha = np.where(np.arange(n) % 3 == 0, -beta, 1) * RANDOM.uniform(0, 1, n)
    initial = 10 ** RANDOM.uniform(-2, 2, n)
    beta[:10], rate[10:20] = 0, 0
    alpha[:10] = np.abs(alpha[:10])
    E = rate[:, None] ** (t - 1) * (alpha[:, None] + t * beta[:, None])
    index = np.argmax(E, axis=1) + 1
    assert np.array_equal(theory.peak_index(rate, alpha, beta), index)
    assert_allclose(theory.peak_height(rate, alpha, beta), np.max(E, axis=1), rtol=1e-11)
    above = initial[:, None] < E
    assert not np.any(above[:, -1])  # the search is long enough
    length = np.max(np.where(above, t + 1, 0), axis=1)
    assert np.array_equal(theory.burn_in_length(rate, alpha, beta, initial), length)
    assert np.sum(length > 2) > 200


def test_burn_in_length_is_lamberts_function_also_where_that_underflows():
    rate, alpha, beta, initial = 0.999, 0.7, 40.0, 1.1
    decay = -np.log(rate)
    argument = -decay * rate * initial * np.exp(-decay * alpha / beta) / beta
    want = -alpha / beta - lambertw(argument, -1).real / decay
    assert int(theory.burn_in_length(rate, alpha, beta, initial)) == np.ceil(want)
    # E_0/β = 1e-300: w = 700 + ln w, where -e^{-w} has no double
    found = int(theory.burn_in_length(0.5, 0.0, 1e300, 1e-100))
    E = lambda t: np.log(1e300) + np.log(t) + (t - 1) * np.log(0.5)
    assert E(found) <= np.log(1e-100) < E(found - 1)


def test_a_measured_burn_in_says_when_it_is_not_over():
    trace = np.array([[1.0, 1.0, 0.0], [3.0, 0.5, 0.0], [0.9, 0.2, 0.0], [0.8, np.nan, 0.0]])
    found = theory.burn_in(trace)
    assert found.peak.tolist() == [1, 3, 0]
    assert found.height.tolist() == [3.0, np.inf, 1.0]
    assert found.length.tolist() == [2, 4, 0]


@pytest.mark.parametrize("case", REFERENCE["budget"], ids=str)
def test_budget_step_sizes_equal_the_fifty_digit_reference(case):
    h = theory.budget_step_size(case["kappa"], 1.0, case["steps"])
    assert_allclose(h, case["step_size"], rtol=1e-12)
    T, s = case["steps"], float(h) * np.array([case["kappa"], 1.0])
    error = np.abs(1 - s) ** (T - 1) * (1 + (T - 1) * s)
    assert_allclose(error, case["error"], rtol=1e-9)  # both ends of the spectrum, because G = 0


def test_no_step_size_beats_the_one_for_the_budget():
    """Two hundred problems, G = 0 among them; each against four hundred other step sizes."""

    @jax.jit
    @jax.vmap
    def compare(mu, A, G, T):
        def error(h):
            s = h[:, None] * jnp.stack([mu, jnp.ones_like(mu)])
            p, q = jnp.abs(1 - s) ** (T - 1) * (1 + (T - 1) * s), T * h[:, None]
            q = q * jnp.abs(1 - s) ** (T - 1)
            return theory.dual_worst_case(p, q, A, G)

        h = theory.budget_step_size(mu, 1.0, T, A, G)
        others = jnp.geomspace(1e-6, 2.0, 400)
        return h, error(h[None])[0], jnp.minimum(jnp.min(error(others)), A)

    mu = 10 ** RANDOM.uniform(-4, 0, 200)
    A, G = 10 ** RANDOM.uniform(-1, 1, 200), 10 ** RANDOM.uniform(-3, 1, 200)
    G[:50] = 0
    T = RANDOM.choice([2.0, 30.0, 1000.0], 200)
    h, found, best = map(np.asarray, compare(mu, A, G, T))
    assert np.all(found <= best * (1 + 1e-10))
    # doing nothing is best where G is large and steps are few
    assert 20 < np.sum(h == 0) < 150 and np.all(h[G == 0] > 0)


def test_small_budgets_have_the_step_sizes_of_closed_form():
    assert_allclose(theory.budget_step_size(1e-12, 2.0, 2), 2**0.5 / 2.0, rtol=1e-9)
    assert_allclose(theory.budget_step_size(1e-12, 2.0, 3), 1.5 / 2.0, rtol=1e-9)
    assert_allclose(theory.budget_step_size(0.5, 2.0, 1), 2 / 2.5)
    assert theory.budget_step_size(0.5, 2.0, 1, A=1.0, G=1e-3) == 0
    assert_allclose(theory.budget_step_size(3.0, 3.0, 7), 1 / 3.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.worst_case_error(Chebyshev(1, 2), 2.0, 1.0, 3, A=1, C=1), "mu=2.0 and L=1"),
        (lambda: theory.worst_case_error(Chebyshev(1, 2), 1.0, 2.0, 0, A=1, C=1), "steps >= 1"),
        (lambda: theory.worst_case_error(Chebyshev(1, 2), 1.0, 2.0, 3, A=1), "needs one of them"),
        (lambda: theory.worst_case_error(Chebyshev(1, 2), 1.0, 2.0, 3, A=1, C=1, G=1), "one of th"),
        (lambda: theory.worst_case_error(Chebyshev(1, 2), 1.0, 2.0, 3, A=-1, C=1), "A=-1"),
        (lambda: theory.worst_case_error(Chebyshev(1, 2), 1.0, 2.0, 3, A=1, G=-1), "G=-1"),
        (lambda: theory.worst_case_error(ConjugateGradient(), 1.0, 2.0, 3, A=1, G=1), "depend on"),
        (lambda: theory.worst_case_error(GradientDescent(), 1.0, 2.0, 3, A=1, G=1), "step_size="),
        (lambda: theory.rate(ConjugateGradient(), 1.0, 2.0), "Use GradientDescent"),
        (lambda: theory.rate(Chebyshev(1, 2), -1.0, 2.0), "mu=-1"),
        (lambda: theory.unrolled_peak(Nesterov.tuned(1, 2), 1.0, 2.0), "burn_in\\(worst_case"),
        (lambda: theory.unrolled_peak(Chebyshev(0, 2), 0.0, 2.0), "mu > 0"),
        (lambda: theory.unrolled_peak(GradientDescent(), 1.0, 2.0), "step_size="),
        (lambda: theory.largest_monotone_step(0.0), "L=0.0"),
        (lambda: theory.peak_index(1.0, 1.0, 1.0), "rate=1.0"),
        (lambda: theory.peak_height(0.5, 1.0, -1.0), "beta=-1"),
        (lambda: theory.burn_in_length(0.5, -2.0, 1.0, 1.0), "alpha \\+ beta=-1"),
        (lambda: theory.burn_in_length(0.5, 1.0, 1.0, 0.0), "initial=0.0"),
        (lambda: theory.burn_in(1.0), "along the first axis"),
        (lambda: theory.budget_step_size(0.0, 1.0, 5), "mu > 0"),
        (lambda: theory.budget_step_size(0.1, 1.0, 0), "steps >= 1"),
        (lambda: theory.budget_step_size(0.1, 1.0, 5, A=-1.0), "A=-1"),
    ],
)
def test_bad_arguments_say_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
