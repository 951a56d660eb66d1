"""certify: its estimate is the true error, on every kind of problem, or it says why not."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scenarios import ELASTIC_NET, FIXED_POINT, LOGISTIC, RIDGE, ROOT, ridge_jacobian

from dargmin import Composite, DargminError, Objective, Status, certify, prox
from dargmin.problems import zoo

SCENARIOS = {
    "ridge": RIDGE,
    "logistic": LOGISTIC,
    "fixed point": FIXED_POINT,
    "root": ROOT,
    "elastic net": ELASTIC_NET,
}
TANGENT = np.array([0.6, -1.1])
COTANGENT = np.array([1.0, -0.5, 0.25, 2.0])


def outer(x, theta):
    return 0.5 * jnp.sum((x - 1) ** 2) + jnp.sum(theta**2)


# What each form says of a Jacobian J taken at x: the derivative that it certifies.
FORMS = {
    "tangent": lambda x, J, theta: J @ TANGENT,
    "cotangent": lambda x, J, theta: COTANGENT @ J,
    "outer": lambda x, J, theta: (x - 1) @ J + 2 * theta,
}


def arguments(form, claim):
    return {
        "tangent": dict(tangent=TANGENT, jvp=claim),
        "cotangent": dict(cotangent=COTANGENT, vjp=claim),
        "outer": dict(outer=outer, gradient=claim),
    }[form]


def distance(value, truth):
    """The relative error of `value`."""
    return np.linalg.norm(value - truth) / np.linalg.norm(truth)


def implicit_jacobian(problem, x, theta):
    """-(∂ₓF)⁻¹ ∂_θF at any x, dense."""
    in_x, in_theta = jax.jit(jax.jacobian(problem.residual, (0, 1)))(x, theta)
    return -np.linalg.solve(in_x, in_theta)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_the_estimate_is_the_true_error(scenario, form):
    problem, theta = scenario.problem, np.asarray(scenario.theta)
    if isinstance(problem, Composite):  # its residual has a step size, which certify would estimate
        problem = dataclasses.replace(problem, step_size=jnp.asarray(0.2))
    solution, jacobian = scenario.solution(theta), scenario.jacobian(theta)
    truth = FORMS[form](solution, jacobian, theta)
    near, far = solution + 1e-3 * COTANGENT, np.asarray(scenario.x0)
    cases = {
        "scaled": (solution, 1.3 * jacobian),
        "off by 1e-6": (solution, jacobian * (1 + 1e-6)),
        "of the wrong sign": (near, -jacobian),
        "implicit, nearby": (near, implicit_jacobian(problem, near, theta)),
        "implicit, far away": (far, implicit_jacobian(problem, far, theta)),
        "zero, far away": (far, 0 * jacobian),
    }
    for name, (x, J) in cases.items():
        claim = FORMS[form](x, J, theta)
        certificate = certify(problem, x, theta, **arguments(form, claim))
        assert certificate.ok, (name, Status[certificate.status])
        # the estimate is second-order accurate; near and far are 1e-3 and 0.1 to 1 away
        true = distance(claim, truth)
        assert_allclose(certificate.error, true, rtol=0.02, atol=1e-13, err_msg=name)
        assert_allclose(certificate.scale, np.linalg.norm(truth), rtol=1e-2, err_msg=name)
        assert_allclose(certificate.absolute_error, true * np.linalg.norm(truth), rtol=0.5)
        assert_allclose(certificate.inner_error, np.linalg.norm(x - solution), rtol=0.2, atol=1e-13)
        assert_allclose(certificate.residual, np.linalg.norm(problem.residual(x, theta)))
    exact = certify(problem, solution, theta, **arguments(form, truth))
    # never exactly zero: rounding is part of the estimate
    assert exact.ok and 0 < exact.error < 1e-12


def test_only_the_outer_form_sees_the_error_of_the_outer_gradient():
    theta = np.asarray(RIDGE.theta)
    x, J = RIDGE.solution(theta) + 0.5, RIDGE.jacobian(theta)  # J is right, x is not
    error = {
        form: certify(RIDGE.problem, x, theta, **arguments(form, claim(x, J, theta))).error
        for form, claim in FORMS.items()
    }
    assert error["tangent"] < 1e-12 and error["cotangent"] < 1e-9
    true = distance(FORMS["outer"](x, J, theta), FORMS["outer"](RIDGE.solution(theta), J, theta))
    assert true > 0.01
    assert_allclose(error["outer"], true, rtol=1e-6)


def test_a_batch_under_jit_and_vmap_is_what_each_of_it_is():
    theta = np.asarray(LOGISTIC.theta)
    solution, jacobian = LOGISTIC.solution(theta), LOGISTIC.jacobian(theta)
    factors = np.array([1.0, 1.1, np.nan, 3.0])
    xs = solution + np.array([[0.0], [1e-4], [0.0], [0.2]])
    claims = factors[:, None] * (jacobian @ TANGENT)

    @eqx.filter_jit
    def certify_all(problem, xs, claims):
        one = lambda x, claim: certify(problem, x, theta, tangent=TANGENT, jvp=claim)
        return jax.vmap(one)(xs, claims)

    batch = certify_all(LOGISTIC.problem, jnp.asarray(xs), jnp.asarray(claims))
    assert batch.ok.tolist() == [True, True, False, True]
    assert_allclose(batch.error[1::2], [0.1, 2.0], rtol=1e-6)
    assert batch.error[0] < 1e-12 and batch.error[2] == np.inf
    for i in (1, 3):
        alone = certify(LOGISTIC.problem, xs[i], theta, tangent=TANGENT, jvp=claims[i])
        assert_allclose(batch.error[i], alone.error, rtol=1e-9)
    with pytest.raises(DargminError, match="NaN"):
        batch.raise_if_failed()


def test_pytrees_with_integers_and_none_and_an_error_for_each_leaf():
    # x = (2a θ₁, [θ₁, θ₂³]) in closed form, with a an integer that rides along in theta
    def f(x, theta):
        scale, aims = x["scale"], jnp.stack([theta["one"], theta["two"][0] ** 3])
        target = 2 * theta["count"] * theta["one"]
        return 0.5 * (scale - target) ** 2 + jnp.sum((x["pair"] - aims) ** 2)

    theta = {"one": 1.5, "two": jnp.array([2.0]), "count": 3, "none": None}
    x = {"scale": 9.0, "pair": np.array([1.5, 8.0])}
    outer = lambda x, theta: x["scale"] + jnp.sum(x["pair"])
    # the truth is 6 + 1 = 7 and 3·2² = 12
    claim = {"one": 7.7, "two": np.array([9.0]), "count": None, "none": None}
    certificate = certify(Objective(f), x, theta, outer=outer, gradient=claim, per_leaf=True)
    assert certificate.ok
    assert_allclose(certificate.error["one"], 0.1)
    assert_allclose(certificate.error["two"], 0.25)
    assert_allclose(certificate.scale["two"], 12.0)
    assert certificate.error["count"] is None
    tangent = {"one": 1.0, "two": np.array([1.0]), "count": None, "none": None}
    jvp = {"scale": 6.0, "pair": np.array([1.0, 15.0])}
    certificate = certify(Objective(f), x, theta, tangent=tangent, jvp=jvp)
    assert_allclose(certificate.error, 3 / np.sqrt(6**2 + 1 + 12**2))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (dict(), "got none"),
        (dict(tangent=TANGENT), "incomplete"),
        (dict(jvp=COTANGENT), "incomplete"),
        (dict(outer=outer, jvp=COTANGENT), "pick one"),
        (dict(tangent=TANGENT, jvp=COTANGENT, outer=outer, gradient=TANGENT), "pick one"),
        (dict(tangent=COTANGENT, jvp=COTANGENT), r"tangent.*\(4,\).*\(2,\)"),
        (dict(tangent=TANGENT, jvp=TANGENT), r"jvp.*\(2,\).*\(4,\)"),
        (dict(cotangent=(COTANGENT,), vjp=TANGENT), "cotangent.*structure"),
        (dict(outer=outer, gradient={"theta": TANGENT}), "gradient.*structure"),
    ],
)
def test_what_does_not_fit_is_named(pair, message):
    with pytest.raises(ValueError, match=message):
        certify(RIDGE.problem, RIDGE.x0, RIDGE.theta, **pair)


def test_nan_is_not_certified():
    theta, nan = np.asarray(RIDGE.theta), np.full(4, np.nan)
    x, jvp = RIDGE.solution(theta), RIDGE.jacobian(theta) @ TANGENT
    pairs = [
        (nan, dict(tangent=TANGENT, jvp=jvp)),
        (x, dict(tangent=TANGENT, jvp=nan)),
        (x, dict(cotangent=COTANGENT, vjp=nan[:2])),
        (x, dict(outer=outer, gradient=np.array([np.inf, 1.0]))),
    ]
    for x, pair in pairs:
        certificate = certify(RIDGE.problem, x, theta, **pair)
        assert certificate.status == Status.nonfinite
        assert certificate.error == np.inf


def test_rtol_and_atol_decide_what_is_ok():
    theta = np.asarray(RIDGE.theta)
    x, jvp = RIDGE.solution(theta), RIDGE.jacobian(theta) @ TANGENT

    def at(rtol, atol):
        return certify(
            RIDGE.problem, x, theta, tangent=TANGENT, jvp=1.1 * jvp, rtol=rtol, atol=atol
        )

    scale = np.linalg.norm(jvp)
    assert at(0.11, 0.0).ok and at(0.0, 0.11 * scale).ok and at(0.06, 0.06 * scale).ok
    missed = at(0.09, 0.0)
    assert missed.status == Status.accuracy_not_reached
    assert_allclose(missed.error, 0.1, rtol=1e-9)
    with pytest.raises(DargminError, match=r"not reached.*error: 0.09999") as caught:
        missed.raise_if_failed()
    assert caught.value.result is missed


def test_zero_is_right_where_the_truth_is_zero():
    problem = Objective(lambda x, theta: 0.5 * jnp.sum(x**2) + theta)
    at = lambda jvp: certify(problem, np.zeros(3), 1.0, tangent=1.0, jvp=jvp)
    right, wrong = at(np.zeros(3)), at(np.array([0.0, 2.0, 0.0]))
    assert right.ok and right.error == 0 and right.absolute_error == 0
    assert wrong.error == np.inf
    assert_allclose(wrong.absolute_error, 2.0)


def test_single_precision_says_what_it_costs():
    single = lambda t: jax.tree.map(lambda u: u.astype(jnp.float32), t)
    problem, theta = single(RIDGE.problem), single(RIDGE.theta)
    wide = np.asarray(theta, float)
    x, jvp = RIDGE.solution(wide), ridge_jacobian(wide) @ TANGENT
    at = lambda factor: certify(
        problem, x.astype(np.float32), theta, tangent=TANGENT, jvp=factor * jvp
    )
    right, wrong = at(1), at(1.01)
    assert right.error.dtype == jnp.float32
    # at a condition number below 10, ε √d = 2.4e-7 dominates
    assert right.ok and 1e-7 < right.error < 2e-6
    assert_allclose(wrong.error, 0.01, rtol=1e-3)


def test_a_singular_problem_has_a_derivative_of_minimum_norm_or_none():
    a = jnp.array([3.0, 4.0, 0.0])
    problem = Objective(lambda x, theta: 0.5 * (jnp.vdot(a, x) - theta) ** 2)
    x, minimal = 2 * a / 25, a / 25  # at θ = 2
    right = certify(problem, x, 2.0, tangent=1.0, jvp=minimal)
    assert right.ok and right.error < 1e-7
    assert_allclose(certify(problem, x, 2.0, tangent=1.0, jvp=1.5 * minimal).error, 0.5, rtol=1e-6)
    # aᵀx is determined by θ, x₃ is not
    determined = certify(problem, x, 2.0, cotangent=2 * a, vjp=2.0)
    assert determined.ok and determined.error < 1e-7
    undetermined = certify(problem, x, 2.0, cotangent=jnp.array([0.0, 0.0, 1.0]), vjp=0.0)
    assert undetermined.status == Status.inconsistent
    assert undetermined.error == np.inf


# The minimiser of ½‖x - θ‖² + g(x) is the prox at θ, which makes it easy to sit on a kink.
KINKS = {
    "l1": (prox.l1(1.0), [1.0, 3.0, 0.2, -2.0]),
    "elastic net": (prox.elastic_net(1.0, 0.5), [1.0, 3.0, 0.2, -2.0]),
    "box": (prox.box(-1.0, 2.0), [0.5, 2.0, -3.0, 5.0]),
    "nonnegative": (prox.nonnegative(), [0.0, 1.0, -2.0, 0.5]),
    "group": (prox.group_lasso(1.0, np.array([0, 0, 1, 1])), [0.6, 0.8, 3.0, 4.0]),
}


def half_squared_distance(x, theta):
    return 0.5 * jnp.sum((x - theta) ** 2)


@pytest.mark.parametrize(("penalty", "kink"), KINKS.values(), ids=KINKS)
def test_on_a_kink_and_beside_it_the_derivative_is_flagged_and_away_from_it_not(penalty, kink):
    problem = Composite(half_squared_distance, penalty, step_size=1.0)
    direction = np.array([1.0, 0.7, -0.9, 0.4])

    def at(theta):
        x = penalty(theta, theta, 1.0)
        jvp = jax.jvp(lambda v: penalty(v, theta, 1.0), (theta,), (direction,))[1]
        return certify(problem, x, theta, tangent=direction, jvp=jvp)

    kink = np.asarray(kink)
    beside = [kink + s * 1e-15 * direction for s in (-1, 1)]
    for theta in (kink, *beside):
        assert at(theta).status == Status.weakly_active
        assert np.isfinite(at(theta).error)  # a one-sided derivative is certified as such
    for size in (1e-6, 1e-3, 0.1):
        for sign in (-1, 1):
            away = at(kink + sign * size * direction)
            assert away.ok, (sign * size, Status[away.status])
            # just outside its kink a group has ∂prox = 1e-6 along the sphere: condition 1e6
            assert away.error < 1e-9


def test_the_knot_where_the_first_coefficient_enters_is_flagged():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 5)), rng.normal(size=12)
    instance = zoo.lasso(X, y)
    knot = np.log(np.max(np.abs(X.T @ y)) / 12)

    def at(theta, jvp):
        x = np.zeros(5) if theta >= knot else instance.solution(theta)
        return certify(instance.problem, x, theta, tangent=1.0, jvp=jvp)

    assert at(knot, np.zeros(5)).status == Status.weakly_active
    assert at(knot + 1e-3, np.zeros(5)).ok
    below = at(knot - 1e-3, instance.jacobian(knot - 1e-3))
    assert below.ok and below.error < 1e-12


def test_nothing_is_compiled_anew_for_other_numbers():
    traces = []

    def f(x, theta):
        traces.append(None)
        return 0.5 * jnp.sum((x - theta) ** 2)

    problem = Objective(f, quadratic=True)
    at = lambda x, jvp: certify(problem, x, 2 * x, tangent=np.ones(3), jvp=jvp, rtol=jvp[0])
    at(np.ones(3), np.ones(3))
    before = len(traces)
    assert before > 0
    at(np.zeros(3), np.full(3, 0.5))
    assert len(traces) == before
