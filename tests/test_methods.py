"""Each method is its formula: residual polynomials, rates, finite termination; step sizes that are
estimated are safe; methods from elsewhere do what they do at home."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import optimistix as optx
import pytest
import scenarios
from numpy.testing import assert_allclose, assert_array_equal
from scenarios import ELASTIC_NET, FIXED_POINT, LOGISTIC, RIDGE, ROOT

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
from dargmin.linear import largest_eigenvalue

REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())["polynomials"]
DIAGONAL = dargmin.Objective(lambda x, eigenvalues: 0.5 * jnp.sum(eigenvalues * x**2))
BY_NAME = {
    "gradient descent at 1/L": lambda mu, L: GradientDescent(1 / L),
    "gradient descent at 2/(L+mu)": lambda mu, L: GradientDescent(2 / (L + mu)),
    "Chebyshev": Chebyshev,
    "heavy ball, plain start": lambda mu, L: HeavyBall.tuned(mu, L, start="plain"),
    "Nesterov": Nesterov.tuned,
}


def polynomials(method, eigenvalues, steps):
    """P_t(λ) and P_t'(λ), t = 0..steps: the iterates from 1 and their derivatives in λ."""
    eigenvalues = jnp.asarray(eigenvalues)
    one = jnp.ones_like(eigenvalues)
    return dargmin.trace(DIAGONAL, method, one, eigenvalues, one, steps=steps)


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: f"{case['method']}, L={case['L']}")
def test_residual_polynomials_equal_the_fifty_digit_reference(case):
    method = BY_NAME[case["method"]](case["mu"], case["L"])
    P, dP = polynomials(method, case["eigenvalues"], 60)
    for found, want in ((P, case["P"]), (dP, case["dP"])):
        scale = np.max(np.abs(want), axis=1, keepdims=True)
        assert_allclose(found[jnp.asarray(case["steps"])] / scale, want / scale, atol=1e-11)


@pytest.mark.parametrize(("mu", "L"), [(0.01, 1.0), (0.5, 7.0)])
def test_heavy_ball_with_a_corrected_start_is_the_mixed_chebyshev_polynomial(mu, L):
    eigenvalues = np.linspace(mu, L, 7)[1:-1]
    h = (2 / (np.sqrt(L) + np.sqrt(mu))) ** 2
    m = ((np.sqrt(L) - np.sqrt(mu)) / (np.sqrt(L) + np.sqrt(mu))) ** 2
    angle = np.arccos((1 + m - h * eigenvalues) / (2 * np.sqrt(m)))
    P, _ = polynomials(HeavyBall.tuned(mu, L), eigenvalues, 40)
    for t in (0, 1, 2, 9, 40):
        T, U = np.cos(t * angle), np.sin((t + 1) * angle) / np.sin(angle)
        want = m ** (t / 2) * (2 * m / (1 + m) * T + (1 - m) / (1 + m) * U)
        assert_allclose(P[t], want, atol=1e-12 * m ** (t / 2))


@pytest.mark.parametrize("kappa", [1e-4, 1e-6])
def test_chebyshev_keeps_its_coefficients_in_single_precision(kappa):
    # Eigenvalues near L excepted, where P' is so large that the rounding of λ alone shows.
    eigenvalues = np.float32(np.geomspace(kappa, 0.3, 40))
    steps = int(4 / np.sqrt(kappa))
    single, _ = polynomials(Chebyshev(kappa, 1.0), eigenvalues, steps)
    double, _ = polynomials(Chebyshev(kappa, 1.0), np.float64(eigenvalues), steps)
    assert single.dtype == jnp.float32
    # an error made at one step is felt for about 1/√κ of them
    assert np.max(np.abs(np.float64(single) - double)) < 2 * np.finfo(np.float32).eps / np.sqrt(
        kappa
    )


def trace(scenario, method, steps, x0=None):
    x0 = scenario.x0 if x0 is None else x0
    tangent = jnp.zeros_like(scenario.theta)
    return dargmin.trace(scenario.problem, method, x0, scenario.theta, tangent, steps=steps)[0]


def logistic_constants():
    theta = np.asarray(LOGISTIC.theta)
    steepest = np.linalg.eigvalsh(scenarios.X.T @ scenarios.X)[-1] / 4 / len(scenarios.Y)
    return np.exp(theta).min(), steepest + np.exp(theta).max()


def test_gradient_descent_contracts_on_a_strongly_convex_function():
    mu, L = logistic_constants()
    x0 = jnp.full(4, 5.0)
    x = np.asarray(trace(LOGISTIC, GradientDescent(2 / (L + mu)), 40, x0))
    error = np.linalg.norm(x - LOGISTIC.solution(np.asarray(LOGISTIC.theta)), axis=1)
    assert np.all(error[1:] <= (L - mu) / (L + mu) * error[:-1] + 1e-15)  # Polyak (1963)


@pytest.mark.parametrize("convex", [False, True], ids=["tuned", "convex"])
def test_nesterov_keeps_to_its_bound(convex):
    mu, L = logistic_constants()
    theta, x0 = np.asarray(LOGISTIC.theta), jnp.full(4, 5.0)
    f = jax.vmap(lambda x: LOGISTIC.problem.f(x, LOGISTIC.theta))
    solution = LOGISTIC.solution(theta)
    method = Nesterov.convex(1 / L) if convex else Nesterov.tuned(mu, L)
    gap = np.asarray(f(trace(LOGISTIC, method, 30, x0)) - f(jnp.asarray(solution)[None]))
    distance, t = np.sum((5.0 - solution) ** 2), np.arange(31)
    sublinear = 2 * L * distance / (t + 1) ** 2  # Nesterov (1983)
    linear = (1 - np.sqrt(mu / L)) ** t * (gap[0] + mu / 2 * distance)  # Nesterov (2004), 2.2.3
    assert np.all(gap <= (sublinear if convex else linear) * (1 + 1e-12))


def test_nesterov_restarts_and_converges_without_knowing_mu():
    problem = dargmin.Objective(DIAGONAL.f)
    eigenvalues = jnp.geomspace(1e-4, 1.0, 50)
    arguments = (problem, Nesterov.convex(), jnp.ones(50), eigenvalues)
    solution = dargmin.solve(*arguments, steps=5000, tol=1e-10)
    # (1 - √κ)^t from ‖∇f‖ = 3 takes 2400 steps; gradient descent would take 150,000
    assert solution.steps < 3000


@pytest.mark.parametrize("condition", [1e1, 1e4])
def test_conjugate_gradients_end_after_as_many_steps_as_there_are_eigenvalues(condition):
    rng = np.random.default_rng(0)
    eigenvalues = np.repeat(np.geomspace(1 / condition, 1, 4), 3)
    Q = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    H, E = jnp.asarray((Q * eigenvalues) @ Q.T), jnp.eye(12)
    b = jnp.asarray(rng.normal(size=12))
    problem = dargmin.Objective(lambda x, s: 0.5 * x @ ((H + s * E) @ x) - b @ x)
    xs, dxs = dargmin.trace(problem, ConjugateGradient(), jnp.zeros(12), 0.0, 1.0, steps=40)
    x = np.linalg.solve(H, b)
    slack = 1e-14 * condition**1.5  # rounding; the residual is computed anew, and does not drift
    assert np.linalg.norm(xs[4] - x) <= slack * np.linalg.norm(x)
    # and nothing spoils the iterate or its derivative when it runs on
    dx = -np.linalg.solve(H, x)
    for t in (8, 40):
        assert np.linalg.norm(xs[t] - x) <= 1e-14 * condition * np.linalg.norm(x)
        assert np.linalg.norm(dxs[t] - dx) <= 1e-13 * condition * np.linalg.norm(dx)


def steep(x, theta):
    """Σ √(1 + x²) + exp(θ) x²/1000 - x/2: plain Newton diverges from |x| > 1."""
    return jnp.sum(jnp.sqrt(1 + x**2) + 1e-3 * jnp.exp(theta) * x**2 - 0.5 * x)


@pytest.mark.parametrize(
    ("f", "x0", "theta"),
    [
        (LOGISTIC.problem.f, jnp.full(4, 50.0), LOGISTIC.theta),
        (steep, jnp.array([30.0, -3.0, 1.1]), jnp.array([0.0])),
    ],
    ids=["logistic", "steep"],
)
def test_newton_converges_from_far_downhill_and_quadratically(f, x0, theta):
    tangent = jnp.zeros_like(theta).at[0].set(1.0)
    xs, dxs = dargmin.trace(dargmin.Objective(f), NewtonCG(), x0, theta, tangent, steps=25)
    values, gradients, curvature = jax.jit(
        lambda xs: (
            jax.vmap(lambda x: f(x, theta))(xs),
            jax.vmap(lambda x: jax.grad(f)(x, theta))(xs),
            (jax.hessian(f)(xs[-1], theta), jax.jacfwd(jax.grad(f), 1)(xs[-1], theta)),
        )
    )(xs)
    norms = np.linalg.norm(gradients, axis=1)
    assert norms[-1] < 1e-14
    assert np.all(np.diff(values) <= 1e-15 * np.abs(values[:-1]))
    near = (norms[:-1] < 1e-1) & (norms[1:] > 1e-14)
    assert near.any() and np.all(norms[1:][near] < 5 * norms[:-1][near] ** 1.9)
    # superlinear: the derivative of the last step alone is that of the solution
    hessian, cross = curvature
    assert_allclose(dxs[-1], -np.linalg.solve(hessian, cross @ tangent), rtol=1e-9)


def two_loops(g, pairs, gamma):
    """H g by the textbook (Nocedal and Wright, 2006, algorithm 7.4)."""
    q, alphas = g.copy(), []
    for s, y in reversed(pairs):
        alphas.append(s @ q / (s @ y))
        q = q - alphas[-1] * y
    r = gamma * q
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        r = r + s * (alpha - y @ r / (s @ y))
    return r


@pytest.mark.parametrize(
    "memory", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(30, marks=pytest.mark.slow)]
)
def test_lbfgs_is_the_textbook_s(memory):
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[
        0
    ]  # so that nothing is scaled
    f = jax.jit(lambda x, theta: steep(turn @ x, theta))
    zero, one = jnp.zeros(1), jnp.ones(1)
    x = turn.T @ np.array([3.0, -2.0, 1.1, 0.2])
    arguments = dargmin.Objective(f), LBFGS(memory), jnp.asarray(x), zero, one
    xs, _ = dargmin.trace(*arguments, steps=12)
    f, gradient = (lambda x: steep(turn @ x, zero)), (lambda x: np.asarray(jax.grad(f)(x)))
    pairs, g = [], gradient(x)
    gamma = g @ g / (g @ np.asarray(jax.hessian(f)(x)) @ g)
    for found in xs[1:]:
        d, a = -two_loops(g, pairs[-memory:], gamma), 1.0
        while f(x + a * d) > f(x) + 1e-4 * a * (g @ d):
            a /= 2
        following = gradient(x + a * d)
        pairs.append((a * d, following - g))
        gamma = pairs[-1][0] @ pairs[-1][1] / (pairs[-1][1] @ pairs[-1][1])
        x, g = x + a * d, following
        assert_allclose(found, x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scenario", [RIDGE, LOGISTIC], ids=["ridge", "logistic"])
def test_lbfgs_converges_from_far_and_so_does_its_derivative(scenario):
    theta, tangent = scenario.theta, jnp.ones_like(scenario.theta)
    xs, dxs = dargmin.trace(scenario.problem, LBFGS(), jnp.full(4, 50.0), theta, tangent, steps=60)
    exact = np.asarray(theta)
    assert_allclose(xs[-1], scenario.solution(exact), rtol=1e-8, atol=1e-9)
    want = scenario.jacobian(exact) @ np.asarray(tangent)
    assert np.min(np.linalg.norm(dxs - want, axis=1)) <= 1e-3 * np.linalg.norm(want)


@pytest.mark.parametrize("x0", [np.zeros((0,)), np.zeros(()), {"a": np.zeros(2), "b": np.ones(())}])
def test_lbfgs_takes_any_pytree_and_stays_at_a_minimum(x0):
    f = lambda x, t: sum((jnp.sum((u - t) ** 2) for u in jax.tree.leaves(x)), start=0.0 * t)
    solution = dargmin.solve(dargmin.Objective(f), LBFGS(), x0, 2.0, steps=9, tol=1e-12)
    assert solution.ok
    for leaf in jax.tree.leaves(solution.x):
        assert_allclose(leaf, 2.0)


def test_restarted_fista_outruns_proximal_gradient_and_its_derivative_keeps_up():
    rng, d, l1, l2 = np.random.default_rng(1), 40, 0.01, np.exp(-8.0)
    X = rng.normal(size=(60, d)) * np.geomspace(0.05, 1, d)
    y = X @ np.where(np.arange(d) % 3 == 0, 2.0, 0.0) + 0.1
    problem = dargmin.Composite(
        lambda w, theta: 0.5 * jnp.mean((jnp.asarray(X) @ w - jnp.asarray(y)) ** 2),
        dargmin.prox.elastic_net(lambda theta: l1, jnp.exp),
    )
    run = lambda method: dargmin.trace(problem, method, jnp.zeros(d), -8.0, 1.0, steps=400)
    (fast, dfast), (plain, _) = run(ProximalGradient()), run(ProximalGradient(accelerate=False))
    # the exact solution on the support found, where the conditions of optimality confirm it
    support, signs = np.asarray(fast[-1] != 0), np.sign(fast[-1])
    H = X.T @ X / 60 + l2 * np.eye(d)
    inverse = np.linalg.inv(H[np.ix_(support, support)])
    w, dw = np.zeros(d), np.zeros(d)
    w[support] = inverse @ (X.T @ y / 60 - l1 * signs)[support]
    dw[support] = -l2 * inverse @ w[support]
    assert np.all(np.sign(w) == signs) and np.all(np.abs(H @ w - X.T @ y / 60) <= l1 + 1e-12)
    error = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)
    assert error(plain[-1], w) > 1e-3 and error(fast[-1], w) < 1e-10
    # without restart: 3e-4 and 3e-2
    assert error(dfast[-1], dw) < 1e-8


SPECTRA = {
    "uniform": lambda rng, d: rng.uniform(size=d),
    "clustered": lambda rng, d: 1 - 1e-3 * rng.uniform(size=d),
    "rank one": lambda rng, d: np.r_[1.0, np.zeros(d - 1)],
    "geometric": lambda rng, d: np.geomspace(1e-8, 1, d),
    "one above a cluster": lambda rng, d: np.r_[1.03, np.ones(d - 1)],
    "one above a bulk": lambda rng, d: np.r_[1.1, rng.uniform(size=d - 1)],
    "equal": lambda rng, d: np.ones(d),
}


@pytest.mark.parametrize(
    ("d", "dtype"), [(1, "f8"), (3, "f4"), (25, "f8"), (400, "f8"), (400, "f4")]
)
def test_the_largest_eigenvalue_is_over_rather_than_underestimated(d, dtype):
    rng = np.random.default_rng(2)
    # a random orthogonal basis changes nothing for a fixed start that is itself in general position
    spectra = [rng.permutation(make(rng, d)) for make in SPECTRA.values() for _ in range(8)]
    spectra = jnp.asarray(np.stack(spectra), dtype) * 37.0
    estimate = jax.jit(jax.vmap(lambda s: largest_eigenvalue(lambda v: s * v, s)))(spectra)
    ratio = np.asarray(estimate) / np.max(spectra, axis=1)
    assert np.all(ratio >= 1) and np.all(ratio <= 1.2)


FAR = jnp.full(4, 300.0)


@pytest.mark.parametrize(
    "method", [GradientDescent(), Nesterov.convex(), ProximalGradient()], ids=repr
)
def test_a_step_size_estimated_where_there_is_no_curvature_does_not_diverge(method):
    # at w = 300 the logistic loss is flat: L̂ sees the penalty only, a fraction of L
    theta = jnp.array([-6.0, -6.0])
    problem, solution = LOGISTIC.problem, LOGISTIC.solution(np.asarray(theta))
    if isinstance(method, ProximalGradient):
        problem = dargmin.Composite(problem.f, lambda v, theta, step: v)
    found = dargmin.solve(problem, method, FAR, theta, steps=20_000, tol=1e-9)
    assert_allclose(found.x, solution, rtol=0, atol=1e-6)


def test_the_estimated_step_size_survives_convergence():
    # At x0 = x* all that the iterates show is rounding; taken for curvature it would stop them,
    # and leave the unrolled derivative where it was.
    rng = np.random.default_rng(3)
    A = np.repeat(rng.normal(size=(10, 4)), 2, axis=0)
    b = np.tile([100.0, -100.0], 10)
    f = lambda w, theta: jnp.mean((jnp.asarray(A) @ w - b + theta) ** 2 / 2) + 1e-3 * jnp.sum(w**4)
    x = lambda theta: dargmin.solve(
        dargmin.Objective(f), GradientDescent(), jnp.full(4, 1e-9), theta, steps=400,
        mode=Unrolled(),
    ).x  # fmt: skip
    want = -np.linalg.solve(A.T @ A / 20, A.mean(axis=0))
    assert_allclose(jax.jacfwd(x)(0.0), want, rtol=1e-6)


def test_a_declared_smoothness_is_used():
    problem = dargmin.Objective(DIAGONAL.f, L=10.0)
    x = dargmin.solve(problem, GradientDescent(), jnp.ones(2), jnp.array([1.0, 2.0]), steps=1).x
    assert_allclose(x, [0.9, 0.8], rtol=1e-15)


def test_a_fixed_point_iteration_is_exactly_the_map():
    # x - (x - A) would lose A beside 1e17, and blur the zeros of a prox
    problem = dargmin.FixedPoint(lambda x, theta: theta * jnp.ones(2))
    x = dargmin.solve(problem, FixedPointIteration(), jnp.full(2, 1e17), 1.1, steps=1).x
    assert_array_equal(x, np.full(2, 1.1))
    solve = lambda method: (
        dargmin.solve(ELASTIC_NET.problem, method, jnp.ones(4), ELASTIC_NET.theta, steps=200).x
    )
    for method in (FixedPointIteration(), ProximalGradient()):
        assert_array_equal(solve(method) == 0, ELASTIC_NET.solution(np.array([-2.0, -1.0])) == 0)


@pytest.mark.parametrize(
    "transformation",
    [optax.sgd(0.2, momentum=0.5, nesterov=True), optax.adam(0.1), optax.adagrad(0.3)],
    ids=["sgd", "adam", "adagrad"],
)
def test_an_optax_transformation_does_what_it_does_at_home(transformation):
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        x, theta = LOGISTIC.x0, LOGISTIC.theta
        state = transformation.init(x)
        for _ in range(7):
            gradient = jax.grad(LOGISTIC.problem.f)(x, theta)
            updates, state = transformation.update(gradient, state, x)
            x = optax.apply_updates(x, updates)
        found = dargmin.solve(
            LOGISTIC.problem, FromOptax(transformation), LOGISTIC.x0, theta, steps=7
        )
    assert_allclose(found.x, x, rtol=1e-13)


def test_an_optax_line_search_runs_to_the_solution():
    # Its state begins with Python numbers and weak types, which a loop does not keep.
    with jax.numpy_dtype_promotion("standard"):
        found = dargmin.solve(
            RIDGE.problem, FromOptax(optax.lbfgs()), RIDGE.x0, RIDGE.theta, steps=100, tol=1e-10
        )
    assert_allclose(found.x, RIDGE.solution(np.asarray(RIDGE.theta)), rtol=1e-8)


@pytest.mark.parametrize(
    ("scenario", "solver", "run", "function"),
    [
        (LOGISTIC, optx.BFGS(1e-12, 1e-12), optx.minimise, LOGISTIC.problem.f),
        (LOGISTIC, optx.NonlinearCG(1e-12, 1e-12), optx.minimise, LOGISTIC.problem.f),
        (ROOT, optx.Newton(1e-12, 1e-12), optx.root_find, ROOT.problem.F),
        (
            FIXED_POINT,
            optx.FixedPointIteration(1e-12, 1e-12),
            optx.fixed_point,
            FIXED_POINT.problem.A,
        ),
    ],
    ids=["BFGS", "NonlinearCG", "Newton", "FixedPointIteration"],
)
def test_an_optimistix_solver_does_what_it_does_at_home(scenario, solver, run, function):
    x0, theta = scenario.x0, scenario.theta
    home = run(function, solver, x0, theta, max_steps=4, throw=False).value
    found = dargmin.solve(scenario.problem, FromOptimistix(solver), x0, theta, steps=4)
    assert np.max(np.abs(home - scenario.x0)) > 0.1
    assert_allclose(found.x, home, rtol=1e-12)


@pytest.mark.parametrize("make", [Chebyshev, HeavyBall.tuned, Nesterov.tuned])
def test_a_spectrum_may_be_given_in_integers(make):
    for found, want in zip(*(jax.tree.leaves(make(*s)) for s in ((1, 4), (1.0, 4.0))), strict=True):
        assert found == want and found.dtype == jnp.float64


def solving(method, scenario=RIDGE):
    return lambda: dargmin.solve(scenario.problem, method, scenario.x0, scenario.theta, steps=5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Chebyshev(10.0, 1.0), r"\(mu, L\) with 0 <= mu <= L, but mu=10.0 and L=1.0"),
        (lambda: HeavyBall.tuned(-1.0, 1.0), "0 <= mu <= L"),
        (lambda: Nesterov.tuned(0.1, np.inf), "0 <= mu <= L"),
        (lambda: jax.eval_shape(lambda: Chebyshev(2.0, 1.0)), "0 <= mu <= L, but mu=2.0"),
        (lambda: HeavyBall(0.1, 0.5, start="cold"), 'allowed are "corrected" and "plain"'),
        (lambda: FromOptax(0.1), r"such as optax.adam\(1e-2\), but got float"),
        (solving(ConjugateGradient(), LOGISTIC), r"Use NewtonCG\(\)"),
        (solving(NewtonCG(), ROOT), "this problem is Root"),
        (solving(LBFGS(), ROOT), "this problem is Root"),
        (lambda: LBFGS(0), "an integer memory >= 1"),
        (solving(ProximalGradient()), r"ProximalGradient runs on Composite\(f, prox\)"),
        (solving(FixedPointIteration()), "FixedPointIteration runs on FixedPoint"),
        (solving(GradientDescent(), FIXED_POINT), "Give the method a step_size"),
        (solving(FromOptimistix(optx.Newton(1e-3, 1e-3))), "minimiser such as optimistix.BFGS"),
        (solving(FromOptimistix(optx.BFGS(1e-3, 1e-3)), ELASTIC_NET), r"use ProximalGradient\(\)"),
        (lambda: LateStart(), "exactly one of start= and last="),
        (lambda: LateStart(start=3, last=3), "exactly one of start= and last="),
        (lambda: LateStart(last=0), "needs an integer last >= 1"),
        (lambda: LateStart(last=2.5), "needs an integer last >= 1"),
        (lambda: LateStart(start=-1), "needs an integer start >= 0"),
        (lambda: Unrolled("log"), 'allowed are None, "sqrt" and a number of steps'),
        (lambda: Unrolled(0), "a number of steps >= 1"),
        (lambda: Neumann(0), "an integer terms >= 1"),
        (lambda: Implicit(linear_solver="cg"), r"such as CG\(\)"),
        (lambda: GradientDescent(-0.1), "GradientDescent needs a positive step_size, but got -0.1"),
        (lambda: HeavyBall(np.nan, 0.5), "HeavyBall needs a positive step_size"),
        (lambda: ProximalGradient(jnp.array([0.1, 0.0])), "needs a positive step_size"),
    ],
)
def test_a_wrong_argument_is_named(call, message, monkeypatch):
    # without the type checks of the tests, as users run it
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        call()


def test_a_method_may_be_made_from_known_constants_inside_jit():
    mu, L = jnp.asarray(scenarios.MU), jnp.asarray(scenarios.L)
    x = lambda theta: dargmin.solve(RIDGE.problem, Chebyshev(mu, L), RIDGE.x0, theta, steps=60).x
    theta = RIDGE.theta
    assert_allclose(jax.jit(x)(theta), RIDGE.solution(np.asarray(theta)), rtol=0, atol=1e-9)
