"""dargmin's modes as Optimistix adjoints: Optimistix's values, the derivative of the mode."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from dargmin.interop.optimistix import Implicit, LateStart, Neumann, Unrolled

THETA = jnp.array([0.1, 0.2, 0.3])
CURVATURE = jnp.array([0.5, 1.0, 2.0])
Y0 = jnp.ones(3)


def objective(y, theta):
    """Strictly convex for small theta, not quadratic, and theta moves the Hessian."""
    return 0.5 * jnp.sum(jnp.exp(theta) * CURVATURE * y**2) + jnp.sum(jnp.sin(y) * theta)


def contraction(y, theta):
    return 0.5 * jnp.cos(jnp.roll(y, 1) + theta)


def equations(y, theta):
    return jnp.exp(theta) * y + y**3 - 1.0


def residuals(y, theta):
    return jnp.concatenate([y - jnp.sin(theta), 0.3 * y**2 - 1.0])


MOMENTUM = optx.OptaxMinimiser(optax.sgd(0.2, momentum=0.5), rtol=1e-4, atol=1e-4)
DESCENT = optx.GradientDescent(0.2, rtol=1e-5, atol=1e-5)
PICARD = optx.FixedPointIteration(rtol=1e-8, atol=1e-8)
NEWTON = optx.Newton(rtol=1e-10, atol=1e-10)
SOLVES = {
    "OptaxMinimiser": (optx.minimise, objective, MOMENTUM),
    "BFGS": (optx.minimise, objective, optx.BFGS(rtol=1e-8, atol=1e-8)),
    "GradientDescent": (optx.minimise, objective, DESCENT),
    "fixed_point": (optx.fixed_point, contraction, PICARD),
    "root_find": (optx.root_find, equations, NEWTON),
    "fixed_point by a root finder": (optx.fixed_point, contraction, NEWTON),
    "least_squares": (optx.least_squares, residuals, optx.GaussNewton(rtol=1e-8, atol=1e-8)),
}


def assert_jacobian(function, argument, expected, rtol=1e-12, atol=1e-14):
    """In forward and in reverse mode, each along one direction that meets every entry."""
    tangent, cotangent = jnp.linspace(-1.0, 0.7, argument.size), jnp.array([0.3, -0.5, 0.9])

    @jax.jit
    def products(argument):
        _, pullback = jax.vjp(function, argument)
        return jax.jvp(function, (argument,), (tangent,))[1], pullback(cotangent)[0]

    forward, reverse = products(argument)
    assert_allclose(forward, expected @ tangent, rtol=rtol, atol=atol)
    assert_allclose(reverse, cotangent @ expected, rtol=rtol, atol=atol)


def solution(theta, adjoint, name="OptaxMinimiser", y0=Y0, max_steps=200):
    solve, fn, solver = SOLVES[name]
    return solve(fn, solver, y0, theta, adjoint=adjoint, max_steps=max_steps)


def steps_taken(name="OptaxMinimiser"):
    return int(solution(THETA, optx.ImplicitAdjoint(), name).stats["num_steps"])


def repeat(step, state, count):
    return jax.lax.scan(lambda state, _: (step(state), None), state, length=count)[0]


def momentum_by_hand(theta, steps, start=None, y0=Y0):
    """What MOMENTUM does; the state after `start` steps is a constant, if `start` is given."""

    def step(state):
        y, m = state
        m = jax.grad(objective)(y, theta) + 0.5 * m
        return y - 0.2 * m, m

    state = y0, jnp.zeros(3)
    if start is None:
        return repeat(step, state, steps)[0]
    return repeat(step, jax.lax.stop_gradient(repeat(step, state, start)), steps - start)[0]


@pytest.mark.parametrize(
    ("name", "adjoint"),
    [
        ("OptaxMinimiser", Unrolled("sqrt")),
        ("BFGS", Unrolled()),
        ("BFGS", LateStart(last=3)),
        ("BFGS", Implicit()),
        ("fixed_point", LateStart(start=4)),
        ("fixed_point", Neumann(3)),
        ("root_find", LateStart(last=1)),
    ],
)
def test_the_solution_is_that_of_optimistix(name, adjoint):
    ours = solution(THETA, adjoint, name)
    theirs = solution(THETA, optx.ImplicitAdjoint(), name)
    assert_allclose(ours.value, theirs.value, rtol=1e-13)
    assert ours.stats["num_steps"] == theirs.stats["num_steps"]
    assert bool(ours.result == optx.RESULTS.successful)


# --- LateStart and Unrolled


@pytest.mark.parametrize(("last", "max_steps"), [(7, None), (150, 200)])
def test_late_start_from_the_end_is_the_truncated_loop(last, max_steps):
    steps = steps_taken()
    assert 7 < steps < 150  # the tolerance stops the solver early
    expected = jax.jacfwd(momentum_by_hand)(THETA, steps, max(steps - last, 0))
    y = lambda theta: solution(theta, LateStart(last=last), max_steps=max_steps).value
    assert_jacobian(y, THETA, expected)


@pytest.mark.parametrize("adjoint", [LateStart(start=5, checkpoint="sqrt")])
def test_late_start_from_step_k_is_the_truncated_loop(adjoint):
    expected = jax.jacfwd(momentum_by_hand)(THETA, steps_taken(), 5)
    assert_jacobian(lambda theta: solution(theta, adjoint).value, THETA, expected)


@pytest.mark.parametrize("checkpoint", [None, 7])
def test_unrolled_differentiates_every_step_and_the_start(checkpoint):
    steps = steps_taken()
    by_hand = lambda both: momentum_by_hand(both[:3], steps, None, both[3:])
    y = lambda both: solution(both[:3], Unrolled(checkpoint), y0=both[3:]).value
    both = jnp.concatenate([THETA, Y0])
    assert_jacobian(y, both, jax.jacfwd(by_hand)(both))


@pytest.mark.parametrize("adjoint", [Unrolled("sqrt"), LateStart(last=7)], ids=["all", "last"])
def test_second_derivatives_are_those_of_the_loop(adjoint):
    steps = steps_taken()
    start = None if isinstance(adjoint, Unrolled) else steps - 7
    by_hand = lambda theta: momentum_by_hand(theta, steps, start) @ CURVATURE
    expected = jax.hessian(by_hand)(THETA)
    slope = jax.grad(lambda theta: solution(theta, adjoint).value @ CURVATURE)
    assert_jacobian(slope, THETA, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("adjoint", "updates"), [(LateStart(last=6), 6), (LateStart(start=199), 1)]
)
def test_updates_count_where_a_step_only_goes_to_what_was_proposed(adjoint, updates):
    descend = lambda theta: lambda y: y - 0.2 * jax.grad(objective)(y, theta)
    before = steps_taken("GradientDescent") - 1 - updates  # its first step only evaluates at y0

    def by_hand(theta):
        y = jax.lax.stop_gradient(repeat(descend(theta), Y0, before))
        return repeat(descend(theta), y, updates)

    y = lambda theta: solution(theta, adjoint, "GradientDescent").value
    assert_jacobian(y, THETA, jax.jacfwd(by_hand)(THETA))


def test_late_start_through_a_fixed_point_iteration_is_the_truncated_loop():
    steps = steps_taken("fixed_point")

    def by_hand(theta):
        advance = lambda y: contraction(y, theta)
        return repeat(advance, jax.lax.stop_gradient(repeat(advance, Y0, steps - 4)), 4)

    y = lambda theta: solution(theta, LateStart(last=4), "fixed_point").value
    assert_jacobian(y, THETA, jax.jacfwd(by_hand)(THETA))


def test_one_step_of_newton_is_the_implicit_derivative():
    y = lambda theta: solution(theta, LateStart(last=1), "root_find").value
    slope = np.exp(THETA) + 3 * y(THETA) ** 2
    # Newton's last step is smaller than 1e-8, and the error of the derivative of that order
    assert_jacobian(y, THETA, np.diag(-np.exp(THETA) * y(THETA) / slope), 1e-8, 1e-12)


def test_unrolled_bfgs_approaches_the_implicit_derivative():
    bfgs = optx.BFGS(rtol=1e-8, atol=1e-8)
    fn = lambda y, theta: 0.5 * jnp.sum(jnp.exp(theta) * CURVATURE * y**2) - jnp.sum(y)
    y = lambda t: optx.minimise(fn, bfgs, Y0, t, adjoint=Unrolled(), max_steps=40).value
    # quasi-Newton derivatives converge late, and only so far: this is no test of rounding
    assert_jacobian(y, THETA, np.diag(-np.exp(-THETA) / CURVATURE), 1e-3, 1e-3)


@pytest.mark.parametrize("adjoint", [Unrolled("sqrt"), LateStart(last=5)], ids=["all", "last"])
def test_lanes_of_a_batch_stop_and_start_each_for_itself(adjoint):
    thetas = jnp.stack([THETA, -2 * THETA, 5 * THETA])

    def weighted(theta):
        found = solution(theta, adjoint)
        return found.value @ CURVATURE, found.stats["num_steps"]

    gradient = jax.grad(weighted, has_aux=True)
    both = jax.jit(lambda t: (jax.vmap(gradient)(t), jax.lax.map(gradient, t)))
    (batched, steps), (expected, _) = both(thetas)
    assert len(set(steps.tolist())) == 3
    assert_allclose(batched, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adjoint", [Unrolled("sqrt"), LateStart(last=8)], ids=["all", "last"])
def test_a_step_that_is_singular_after_the_stop_spoils_nothing(adjoint):
    """y0 -> y0/2 -> 0 at theta = 1, where the next gradient would be 0/0."""
    rates = optax.sgd(lambda count: jnp.where(count == 0, 0.5, 1.0))
    solver = optx.OptaxMinimiser(rates, rtol=1e-6, atol=1e-6)
    y0 = jnp.asarray(2.0**-30)

    def y(theta):
        fn = lambda y, theta: 0.5 * theta * jnp.sqrt(y**2) ** 2
        return optx.minimise(fn, solver, y0, theta, adjoint=adjoint, max_steps=16).value

    theta, exact = jnp.ones(2), -0.5 * y0  # d/dθ of y0 (1 - θ/2) (1 - θ)
    slope = jax.value_and_grad(y)
    both = jax.jit(lambda t: (slope(t[0]), jax.vmap(slope)(t)))
    (value, alone), (values, batched) = both(theta)
    assert_array_equal([value, *values], np.zeros(3))
    assert_allclose([alone, *batched], 3 * [exact], rtol=1e-14)


def test_a_learning_rate_is_a_constant_unless_asked_for():
    def y(rate, adjoint):
        solver = optx.GradientDescent(rate, rtol=1e-5, atol=1e-5)
        return jnp.sum(optx.minimise(objective, solver, Y0, THETA, adjoint=adjoint).value)

    rate = jnp.asarray(0.2)
    slope = jax.jit(jax.grad(y), static_argnums=1)
    assert slope(rate, Unrolled()) == slope(rate, LateStart(last=5)) == 0
    assert slope(rate, Unrolled(hyperparameters=True)) != 0


@pytest.mark.parametrize("adjoint", [Unrolled(), Unrolled("sqrt")], ids=["plain", "sqrt"])
def test_data_is_not_stacked_step_by_step(adjoint):
    data = jnp.ones((500, 40)) / 100

    def loss(theta, data):
        fn = lambda y, args: 0.5 * jnp.sum((args[1] @ y - 1.0) ** 2) + args[0] * jnp.sum(y**2)
        solver = optx.OptaxMinimiser(optax.sgd(0.1), rtol=1e-9, atol=1e-9)
        y0 = jnp.zeros(40)
        found = optx.minimise(fn, solver, y0, (theta, data), adjoint=adjoint, throw=False)
        return jnp.sum(found.value**2)

    program = jax.jit(jax.grad(loss)).lower(jnp.asarray(0.3), data).compile()
    kept = 256 * (40 * 4 + 500 * 2) * 8  # a few states and predictions a step
    assert program.memory_analysis().temp_size_in_bytes < kept + 4 * data.nbytes


# --- Implicit and Neumann


def ridge(y, theta):
    """Its minimum is y_i = sin(θ_i) exp(-θ_i) / h_i."""
    quadratic = 0.5 * jnp.sum(CURVATURE * jnp.exp(theta["scale"]) * y["w"] ** 2)
    linear = theta["factor"] * jnp.sum(jnp.sin(theta["scale"]) * y["w"])
    return quadratic - linear, {"count": jnp.asarray(3)}


def ridge_solution(scale, adjoint, solver):
    theta = {"scale": scale, "factor": 1.0, "unused": None, "number": 2}
    options = dict(has_aux=True, adjoint=adjoint, max_steps=500)
    return optx.minimise(ridge, solver, {"w": Y0}, theta, **options).value["w"]


PRECISE = {
    "BFGS": optx.BFGS(rtol=1e-10, atol=1e-10),
    "GradientDescent": optx.GradientDescent(0.3, rtol=1e-12, atol=1e-12),
}


@pytest.mark.parametrize("solver", PRECISE)
def test_implicit_is_the_closed_form(solver):
    expected = np.diag((np.cos(THETA) - np.sin(THETA)) * np.exp(-THETA) / CURVATURE)
    y = lambda theta: ridge_solution(theta, Implicit(), PRECISE[solver])
    assert_jacobian(y, THETA, expected, 1e-7, 1e-12)  # BFGS leaves y_N about 1e-10 off


@pytest.mark.parametrize("adjoint", [Implicit(), Neumann(300)], ids=["implicit", "neumann"])
def test_second_derivatives_at_the_solution_are_the_closed_form(adjoint):
    expected = np.diag(-2 * np.cos(THETA) * np.exp(-THETA) / CURVATURE)
    slope = jax.grad(
        lambda theta: jnp.sum(ridge_solution(theta, adjoint, PRECISE["GradientDescent"]))
    )
    assert_jacobian(slope, THETA, expected, 1e-9, 1e-12)


def test_polish_squares_the_error_and_leaves_the_value():
    cubic = lambda y, t: 0.25 * y**4 + 0.5 * y**2 - t * y
    loose = optx.GradientDescent(0.1, rtol=4e-3, atol=4e-3)  # some per cent off, not half
    y = lambda t, adjoint: optx.minimise(cubic, loose, jnp.asarray(1.0), t, adjoint=adjoint).value
    theta = jnp.asarray(0.5)
    root = np.roots([1, 0, 1, -0.5])[-1].real
    value_and_grad = jax.jit(jax.value_and_grad(y))
    plain = value_and_grad(theta, Implicit())
    polished = value_and_grad(theta, Implicit(polish=True))
    error, polished_error = (abs(d - 1 / (1 + 3 * root**2)) for _, d in (plain, polished))
    assert plain[0] == polished[0]
    assert 1e-2 < error < 1
    assert polished_error < error**2


COUPLING = jnp.array([[0.3, 0.4, 0.0], [0.0, 0.2, -0.5], [0.1, 0.0, 0.4]])  # not symmetric


def test_neumann_is_the_truncated_series_of_the_fixed_point_map():
    affine = lambda y, theta: COUPLING @ y + jnp.sin(theta)
    y = lambda t: optx.fixed_point(affine, PICARD, Y0, t, adjoint=Neumann(4)).value
    series = sum(np.linalg.matrix_power(COUPLING, k) for k in range(4))
    assert_jacobian(y, THETA, series * np.cos(THETA))


@pytest.mark.parametrize("name", ["fixed_point", "fixed_point by a root finder"])
def test_implicit_solves_a_system_that_is_not_symmetric(name):
    y = lambda theta: solution(theta, Implicit(), name).value
    slopes = np.diag(-0.5 * np.sin(np.roll(y(THETA), 1) + THETA))
    exact = np.linalg.solve(np.eye(3) - slopes @ np.roll(np.eye(3), 1, axis=0), slopes)
    assert_jacobian(y, THETA, exact, 1e-7, 1e-12)  # y_N is 1e-8 off


def test_implicit_of_least_squares_has_the_whole_hessian():
    y = lambda theta: solution(theta, Implicit(), "least_squares").value
    hessian = 1 + 0.6 * (0.3 * y(THETA) ** 2 - 1) + 0.36 * y(THETA) ** 2
    assert_jacobian(y, THETA, np.diag(np.cos(THETA) / hessian), 1e-7, 1e-12)


@pytest.mark.parametrize("adjoint", [Implicit(), LateStart(last=3)], ids=["implicit", "last"])
def test_what_fn_closes_over_is_a_parameter_and_the_start_is_not(adjoint):
    def closing(theta, y0):
        fn = lambda y, _: objective(y, theta)
        return optx.minimise(fn, MOMENTUM, y0, adjoint=adjoint).value @ CURVATURE

    if isinstance(adjoint, Implicit):
        y = solution(THETA, adjoint).value
        hessian = np.exp(THETA) * CURVATURE - np.sin(y) * THETA
        expected = -CURVATURE * (np.exp(THETA) * CURVATURE * y + np.cos(y)) / hessian
    else:
        steps = steps_taken()
        expected = CURVATURE @ jax.jacfwd(momentum_by_hand)(THETA, steps, steps - 3)
    in_theta, in_y0 = jax.jit(jax.grad(closing, argnums=(0, 1)))(THETA, Y0)
    assert_allclose(in_theta, expected, rtol=1e-10)
    assert_array_equal(in_y0, np.zeros(3))


@pytest.mark.parametrize("build", [lambda: LateStart(last=3), Implicit])
def test_nothing_is_traced_again_on_the_second_call(build):
    traces = itertools.count()

    def counted(y, theta):
        next(traces)
        return objective(y, theta)

    run = lambda: optx.minimise(counted, MOMENTUM, Y0, THETA, adjoint=build())
    run()
    before = next(traces)
    run()
    assert next(traces) == before + 1


# --- errors


def test_a_linear_solve_that_fails_raises():
    flat = lambda y, theta: 0.5 * y[0] ** 2 + theta * y[1]  # without a minimum unless theta = 0
    y = lambda t: optx.minimise(flat, DESCENT, jnp.ones(2), t, adjoint=Implicit()).value[1]
    theta = jnp.asarray(0.0)
    for derivative in (jax.jacfwd, jax.grad):
        with pytest.raises(Exception, match="inconsistent"):
            jax.block_until_ready(jax.jit(derivative(y))(theta))


class RejectAfter(optx.AbstractSearch):
    """A constant learning rate, but from some step on every proposal is rejected."""

    steps: int

    def init(self, y, f_info_struct):
        return jnp.asarray(0)

    def step(self, first_step, y, y_eval, f_info, f_eval_info, state):
        return jnp.asarray(0.2), state < self.steps, optx.RESULTS.successful, state + 1


class Rejecting(optx.AbstractGradientDescent):
    rtol: float
    atol: float
    norm: object
    descent: optx.SteepestDescent
    search: RejectAfter


def test_late_start_that_sees_only_rejected_trials_raises_instead_of_zero():
    solver = Rejecting(1e-9, 1e-9, optx.max_norm, optx.SteepestDescent(), RejectAfter(10))
    options = dict(max_steps=14, throw=False)

    def y(theta, last):
        adjoint = LateStart(last=last)
        return jnp.sum(
            optx.minimise(objective, solver, Y0, theta, adjoint=adjoint, **options).value
        )

    assert np.isfinite(y(THETA, 3))  # the value is there in any case
    with pytest.raises(Exception, match="rejected every step"):
        jax.block_until_ready(jax.jit(jax.grad(y), static_argnums=1)(THETA, 3))
    assert np.all(jax.jit(jax.grad(y), static_argnums=1)(THETA, 6) != 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LateStart(), "exactly one of start= and last="),
        (lambda: LateStart(start=1, last=1), "exactly one of start= and last="),
        (lambda: LateStart(last=0), "last >= 1"),
        (lambda: LateStart(start=-1), "start >= 0"),
        (lambda: Unrolled("log"), "checkpoint='log'"),
        (lambda: Neumann(0), "terms >= 1"),
    ],
)
def test_what_makes_no_mode_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("adjoint", "max_steps", "message"),
    [
        (Unrolled(), None, "Give max_steps, or use LateStart"),
        (LateStart(start=3), None, "LateStart.last=n. works without"),
        (LateStart(start=50), 50, "start=50. needs start < max_steps, but max_steps=50"),
        (LateStart(last=51), 50, "last=51. needs 1 <= last <= max_steps, but max_steps=50"),
    ],
)
def test_a_bound_that_does_not_fit_is_refused(adjoint, max_steps, message):
    with pytest.raises(ValueError, match=message):
        solution(THETA, adjoint, max_steps=max_steps)


@pytest.mark.parametrize("adjoint", [Unrolled(), LateStart(last=2)])
def test_solvers_that_only_compare_are_refused(adjoint):
    simplex = optx.NelderMead(rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="NelderMead, which only compares values"):
        optx.minimise(objective, simplex, Y0, THETA, adjoint=adjoint)


def test_late_start_refuses_to_keep_the_best():
    best = optx.BestSoFarMinimiser(DESCENT)
    with pytest.raises(ValueError, match="best point may lie before the start"):
        optx.minimise(objective, best, Y0, THETA, adjoint=LateStart(last=2))


def test_a_root_finder_needs_a_step_size_for_neumann():
    with pytest.raises(ValueError, match="step_size"):
        jax.jacrev(lambda t: solution(t, Neumann(5), "root_find").value)(THETA)


# --- what Optimistix does not document


def test_optimistix_hands_its_adjoints_the_inputs_that_are_expected():
    seen = []

    class Probe(optx.AbstractAdjoint):
        def apply(self, primal_fn, rewrite_fn, inputs, tags):
            seen.append(inputs)
            return Implicit().apply(primal_fn, rewrite_fn, inputs, tags)

    optx.minimise(objective, MOMENTUM, Y0, THETA, adjoint=Probe())
    fn, solver, y0, args, *_ = seen[0]
    assert isinstance(solver, optx.OptaxMinimiser) and y0.shape == args.shape == (3,)
    value, aux = jax.eval_shape(lambda: fn(Y0, THETA))
    assert value.shape == () and aux is None


def test_other_inputs_are_refused_with_the_version_that_works():
    with pytest.raises(RuntimeError, match=r"optimistix>=0\.1,<0\.2"):
        Implicit().apply(jnp.asarray, jnp.asarray, (objective, None, Y0, THETA), frozenset())
