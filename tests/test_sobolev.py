"""The Sobolev method: the dense optimum at every step, in every mode, in both precisions."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scenarios import LOGISTIC, MU, RIDGE, L

import dargmin
from dargmin import Chebyshev, Implicit, LateStart, Sobolev, Unrolled
from dargmin.polynomials import SobolevRecurrence
from dargmin.theory import residual_polynomial

HERE = Path(__file__).parent
REFERENCE = json.loads((HERE / "polynomials.json").read_text())
COMMUTATOR = json.loads((HERE / "reference.json").read_text())["jvp"]


def method_of(case):
    return Sobolev(case["mu"], case["L"], case["alpha"], case["eta"])


@pytest.mark.parametrize("case", REFERENCE["sobolev"], ids=lambda c: f"{c['alpha']}, {c['eta']}")
def test_iterates_have_the_optimal_residual_polynomial(case):
    P, dP = residual_polynomial(method_of(case), np.array(case["eigenvalues"]), 60)
    for found, want in ((P, case["P"]), (dP, case["dP"])):
        scale = np.maximum(np.max(np.abs(want), axis=1, keepdims=True), 1e-300)
        assert_allclose(found[np.array(case["steps"])] / scale, want / scale, rtol=0, atol=1e-11)


@pytest.mark.parametrize("case", REFERENCE["sobolev"], ids=lambda c: f"{c['alpha']}, {c['eta']}")
def test_the_mean_square_error_is_the_least_possible_and_never_rises(case):
    """∫P² + η ∫P'², by a midpoint rule in the angle φ, z = cos φ."""
    mu, L, alpha = case["mu"], case["L"], case["alpha"]
    angle = np.pi * (np.arange(4000) + 0.5) / 4000
    density = np.sin(angle) ** (2 * alpha)
    density /= density.sum()
    eigenvalues = (L + mu) / 2 + (L - mu) / 2 * np.cos(angle)
    P, dP = residual_polynomial(method_of(case), eigenvalues, 60)
    objective = (P**2 + case["eta"] * dP**2) @ density
    # the rule is exact for integer α, and otherwise as good as |sin φ|^{2α} is smooth
    rtol = 1e-11 if float(alpha).is_integer() else 1e-4 if alpha > 0 else 5e-2
    assert_allclose(objective[np.array(case["steps"])], case["objective"], rtol=rtol)
    if alpha >= 0:
        assert np.all(np.diff(objective) <= 1e-12 * objective[:-1])


def test_no_burn_in_where_chebyshev_has_one():
    """max |P - λP'|, the worst error of the derivative when dx_0 = dx* + const has no gradient."""
    eigenvalues = np.geomspace(1e-4, 1.0, 400)

    def peak(method):
        P, dP = residual_polynomial(method, eigenvalues, 500)
        return np.max(np.abs(P - eigenvalues * dP))

    # the constants are those of the theory: 0.53 / κ for Chebyshev, 1.5 for the default
    assert_allclose(peak(Chebyshev(1e-4, 1.0)), 5322, rtol=1e-2)
    assert peak(Sobolev(1e-4, 1.0)) < 15
    assert peak(Sobolev(1e-4, 1.0, alpha=0.0, eta=1.0)) < 1.05


def test_derivatives_of_iterates_where_hessians_do_not_commute():
    case, reference = COMMUTATOR, REFERENCE["jvp"]
    H, dH, b, db = (jnp.array(case[key]) for key in ("H", "dH", "b", "db"))

    def objective(x, s):
        return 0.5 * x @ (H + s * dH) @ x + (b + s * db) @ x

    method = Sobolev(case["mu"], case["L"], reference["alpha"], reference["eta"])
    one, x0 = jnp.ones(()), jnp.array(case["x0"])
    xs, dxs = dargmin.trace(dargmin.Objective(objective), method, x0, 0 * one, one, steps=20)
    steps = np.array(reference["steps"])
    assert_allclose(xs[steps], reference["x"], rtol=1e-12)
    assert_allclose(dxs[steps], reference["dx"], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kappa", [1e-2, 1e-3, 1e-4])
def test_single_precision_costs_no_more_than_it_costs_chebyshev(kappa):
    eigenvalues = np.float32(np.geomspace(kappa, 1, 60))

    def error(method):
        single, _ = residual_polynomial(method, eigenvalues, 600)
        double, _ = residual_polynomial(method, np.float64(eigenvalues), 600)
        assert single.dtype == jnp.float32
        return np.max(np.abs(np.float64(single) - double))

    found = error(Sobolev(kappa, 1.0))
    # ε/√κ: an error made at one step is felt for about 1/√κ of them
    assert found < np.finfo(np.float32).eps / np.sqrt(kappa)
    assert found < 2 * error(Chebyshev(kappa, 1.0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_coefficients_stay_finite_for_a_hundred_thousand_steps(dtype):
    constants = itertools.product((1e-9, 1.0, 1e3), [1e3], (-0.49, 0, 2.5), (1e-6, 1e6))
    batch = [jnp.array(column, dtype) for column in zip(*constants, strict=True)]

    def run(mu, L, alpha, eta):
        recurrence = SobolevRecurrence(mu, L, alpha, eta)
        step = lambda ratios, _: recurrence.advance(ratios)[::-1]
        begin = recurrence.begin(np.dtype(dtype))
        ratios, coefficients = jax.lax.scan(step, begin, None, length=100_000)
        return ratios, jax.tree.map(lambda c: jnp.all(jnp.isfinite(c)), coefficients)

    ratios, finite = jax.jit(jax.vmap(run))(*batch)
    assert all(np.all(flag) for flag in jax.tree.leaves(finite))
    assert all(np.all(np.isfinite(value)) for value in jax.tree.leaves(ratios))


MODES = {
    "ridge, implicit": (RIDGE, (MU, L), Implicit()),
    "ridge, unrolled": (RIDGE, (MU, L), Unrolled()),
    "ridge, late start": (RIDGE, (MU, L), LateStart(start=40)),
    "logistic, last": (LOGISTIC, (0.4, 2.7), LateStart(last=60, checkpoint="sqrt")),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_has_the_derivative_of_the_solution(name):
    scenario, spectrum, mode = MODES[name]

    def x(theta):
        run = dict(steps=100, mode=mode)
        return dargmin.solve(scenario.problem, Sobolev(*spectrum), scenario.x0, theta, **run).x

    forward, reverse = jax.jit(lambda t: (jax.jacfwd(x)(t), jax.jacrev(x)(t)))(scenario.theta)
    # a hundred steps at condition numbers below 10 leave rounding only
    assert_allclose(forward, scenario.jacobian(np.asarray(scenario.theta)), rtol=1e-9)
    assert_allclose(reverse, forward, rtol=1e-9)


def test_coefficients_are_constants_of_the_derivative():
    """A spectrum that is differentiated through gives the same derivative as one that is not."""

    def x(theta, scale):
        method = Sobolev(MU, L * scale(theta[0]))
        return dargmin.solve(RIDGE.problem, method, RIDGE.x0, theta, steps=7, mode=Unrolled()).x

    @jax.jit
    def jacobians(at):
        frozen = jax.jacfwd(lambda t: x(t, lambda s: jnp.full_like(s, 2.0)))(at)
        return frozen, jax.jacfwd(lambda t: x(t, lambda s: 2.0 * jnp.exp(s - at[0])))(at)

    frozen, moving = jacobians(RIDGE.theta)
    assert_allclose(moving, frozen, rtol=1e-12)


def test_a_tolerance_stops_it_and_says_where():
    solution = dargmin.solve(
        RIDGE.problem, Sobolev(MU, L), RIDGE.x0, RIDGE.theta, steps=500, tol=1e-6, mode=Unrolled()
    )
    assert solution.ok and 5 < int(solution.steps) < 100
    assert_allclose(solution.x, RIDGE.solution(np.asarray(RIDGE.theta)), atol=1e-5)


def test_pytrees_of_mixed_precision_keep_their_types():
    x0 = {"a": jnp.ones(2, jnp.float32), "b": jnp.zeros((2, 1))}

    def objective(x, theta):
        pull = jnp.sum((x["b"] - theta) ** 2) + 0.2 * jnp.sum(x["b"] ** 2)
        return 0.5 * pull + jnp.sum(x["a"] ** 2).astype(float)

    problem = dargmin.Objective(objective)
    x = dargmin.solve(problem, Sobolev(1.2, 2.0), x0, 3.0, steps=40, mode=Unrolled()).x
    assert x["a"].dtype == jnp.float32 and x["b"].dtype == jnp.float64
    assert_allclose(x["b"], 2.5, rtol=1e-12)
    assert_allclose(x["a"], 0.0, atol=1e-6)


def test_a_step_evaluates_one_gradient_and_keeps_four_vectors():
    calls = []
    problem = dargmin.Root(lambda x, theta: (calls.append(1), theta * x)[1])
    method, x = Sobolev(0.5, 2.0), jnp.ones(1000)
    state = method.init(problem, x, 1.0)
    for _ in range(3):
        x, state, _ = method.step(problem, x, state, 1.0)
    assert len(calls) == 3
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 4 * 1000 + 20


def test_one_eigenvalue_takes_two_steps():
    """μ = L: the optimum of degree 1 is a shortened Newton step, that of degree 2 is zero."""
    for mu in (3.0, 3.0 * (1 - 1e-15)):
        P, dP = residual_polynomial(Sobolev(mu, 3.0, eta=4.5), 3.0, 3)
        assert_allclose(P, [1, 1 / 3, 0, 0], atol=1e-14)  # η/(λ² + η) = 4.5/13.5
        assert_allclose(dP, [0, -2 / 9, 0, 0], atol=1e-14)


def test_integers_and_arrays_are_numbers_too():
    method = Sobolev(1, np.float64(4), jnp.array(1))
    assert [leaf.dtype for leaf in jax.tree.leaves(method)] == 4 * [jnp.float64]
    assert float(method.recurrence.eta) == 4


def quadratic_and_its_weight(rng, directions):
    """½ xᵀ(H + Σ τ_j E_j) x - (b + Bτ)ᵀx, x_0, its ∂x* (transposed) and A_j², C_j² by NumPy."""
    H, *E = (M @ M.T / 6 + np.eye(6) for M in rng.normal(size=(directions + 1, 6, 6)))
    b, x0, B = rng.normal(size=6), rng.normal(size=6), rng.normal(size=(directions, 6))
    solution = np.linalg.solve(H, b)
    dx = np.stack([np.linalg.solve(H, db - dH @ solution) for dH, db in zip(E, B, strict=True)])
    C = [np.sum((dH @ (x0 - solution)) ** 2) for dH in E]
    mu, L = np.linalg.eigvalsh(H)[[0, -1]]
    arrays = [jnp.asarray(v) for v in (H, np.stack(E), b, B)]

    def f(x, tau):
        H, E, b, B = arrays
        return 0.5 * x @ (H + jnp.tensordot(tau, E, 1)) @ x - (b + tau @ B) @ x

    return dargmin.Objective(f), jnp.asarray(x0), jnp.asarray(dx), (dx**2).sum(1), C, (mu, L)


def test_the_weight_from_an_exact_derivative_is_the_true_one():
    problem, x0, dx, A, C, (mu, L) = quadratic_and_its_weight(np.random.default_rng(0), 2)
    # bounds that do not bind: only the estimate is tested
    mu, L, theta, tangents = 1e-6 * mu, 1e3 * L, jnp.zeros(2), jnp.eye(2)

    def eta(tangent, v, dx0=None):
        method = Sobolev.from_derivative(problem, x0, theta, tangent, v, mu, L, dx0=dx0)
        return float(method.recurrence.eta)

    assert_allclose(eta(tangents[0], dx[0]), C[0] / A[0], rtol=1e-12)
    assert_allclose(eta(tangents, dx), sum(C) / sum(A), rtol=1e-12)
    assert_allclose(eta(tangents, dx, dx0=3 * dx), sum(C) / sum(A) / 4, rtol=1e-12)


def test_the_weight_stays_between_the_squares_of_the_spectrum():
    diagonal = dargmin.Objective(lambda x, theta: 0.5 * jnp.sum(theta * x**2))

    def eta(x0, derivative, **dx0):
        make = lambda x0, v: Sobolev.from_derivative(
            diagonal, x0, jnp.ones(2), jnp.ones(2), v, 0.5, 4.0, **dx0
        )
        return float(jax.jit(make)(jnp.full(2, x0), jnp.full(2, derivative)).recurrence.eta)

    # c = v + x_0 here
    assert eta(-1.0, 1.0) == 0.25  # C = 0
    assert eta(1e3, 1.0) == 16.0
    assert eta(1.0, 1.0) == 4.0  # in between, as it is
    assert eta(1.0, 1.0, dx0=jnp.ones(2)) == 16.0  # A = 0


def test_the_weight_of_pytrees_of_mixed_precision():
    def objective(x, theta):
        a = jnp.sum(x["a"] ** 2).astype(float)
        return 0.5 * a + 0.5 * jnp.sum(theta["t"] * x["b"] ** 2)

    x0 = {"a": jnp.zeros(2, jnp.float32), "b": 2.0}
    theta, tangent = {"t": 1.0, "n": 3}, {"t": 1.0, "n": None}
    v = {"a": np.ones(2), "b": 1.0}
    method = Sobolev.from_derivative(dargmin.Objective(objective), x0, theta, tangent, v, 1, 3, 1)
    assert_allclose(method.recurrence.eta, (1 + 1 + 3**2) / 3, rtol=1e-6)
    assert method.recurrence.alpha == 1


def test_a_derivative_that_does_not_fit_is_refused():
    problem = dargmin.Objective(lambda x, theta: theta * jnp.sum(x**2))
    weigh = lambda v, **dx0: Sobolev.from_derivative(
        problem, jnp.ones(3), 1.0, 1.0, v, 0.1, 1.0, **dx0
    )
    for v, dx0 in ((jnp.ones(2), {}), ((jnp.ones(3),), {}), (jnp.ones(3), dict(dx0=jnp.eye(3)))):
        with pytest.raises(ValueError, match="must be pytrees like x0, or both have one more"):
            weigh(v, **dx0)
    with pytest.raises(ValueError, match="eta=nan"):
        weigh(jnp.full(3, jnp.nan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(mu=2.0, L=1.0), r"\(mu, L\) with 0 <= mu <= L.*mu=2.0 and L=1.0"),
        (dict(mu=-0.1, L=1.0), "mu=-0.1"),
        (dict(mu=0.0, L=1.0), "needs mu > 0.*Nesterov.convex"),
        (dict(mu=0.0, L=1.0, eta=1.0), "needs mu > 0"),
        (dict(mu=np.nan, L=1.0), "mu=nan"),
        (dict(mu=0.1, L=np.inf), "L=inf"),
        (dict(mu=0.1, L=1.0, alpha=-0.5), "alpha > -1/2, but alpha=-0.5"),
        (dict(mu=0.1, L=1.0, alpha=np.nan), "alpha=nan"),
        (dict(mu=0.1, L=1.0, eta=0.0), "eta=0.0, but the weight"),
        (dict(mu=0.1, L=1.0, eta=-1.0), "eta=-1.0"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sobolev(**arguments)
