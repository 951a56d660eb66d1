"""Proximal operators against their definition, an independent solver and finite differences."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from dargmin import prox
from dargmin.problems.base import Composite

STEP = 0.7
GROUPS = np.array([0, 1, 0, 2, 2, 1])
MEMBERS = [[0, 2], [1, 5], [3, 4]]  # of the groups
V = jnp.array([1.7, -0.2, -2.4, 0.3, 0.1, 0.9])  # no coordinate within 0.01 of a kink
THETA = {"a": jnp.array(-0.3), "b": jnp.array([0.2, 0.1, -0.4, 0.5, -0.1, 0.3])}


class Case(NamedTuple):
    """An operator whose parameters depend on θ, and its penalty and constraints in NumPy."""

    operator: eqx.Module
    penalty: object = lambda x, theta: 0.0
    bounds: object = lambda theta: None
    total: object = None

    def objective(self, x, v, theta):
        return 0.5 * np.sum((x - v) ** 2) + STEP * self.penalty(x, theta)


def group_penalty(x, theta):
    return sum(np.exp(theta["b"][j]) * np.linalg.norm(x[G]) for j, G in enumerate(MEMBERS))


CASES = {
    "l1": Case(
        prox.l1(lambda theta: jnp.exp(theta["b"])),
        lambda x, theta: np.sum(np.exp(theta["b"]) * abs(x)),
    ),
    "elastic_net": Case(
        prox.elastic_net(lambda theta: jnp.exp(theta["a"]), lambda theta: jnp.exp(theta["b"])),
        lambda x, theta: np.sum(np.exp(theta["a"]) * abs(x) + 0.5 * np.exp(theta["b"]) * x**2),
    ),
    "group_lasso": Case(
        prox.group_lasso(lambda theta: jnp.exp(theta["b"][:3]), GROUPS), group_penalty
    ),
    "nonnegative": Case(prox.nonnegative(), bounds=lambda theta: [(0, np.inf)] * 6),
    "box": Case(
        prox.box(lambda theta: theta["b"] - 0.5, lambda theta: 1 + theta["a"]),
        bounds=lambda theta: [(b - 0.5, 1 + theta["a"]) for b in theta["b"]],
    ),
    "simplex": Case(
        prox.simplex(lambda theta: jnp.exp(theta["a"])),
        bounds=lambda theta: [(0, np.inf)] * 6,
        total=lambda theta: np.exp(theta["a"]),
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@eqx.filter_jit
def run(operator, v, theta=None, step=STEP):
    return operator(v, theta, step)


def numpy_theta():
    return jax.tree.map(np.asarray, THETA)


def random_points(seed=0):
    return np.random.default_rng(seed).normal(scale=2.0, size=(50, 6))


@eqx.filter_jit
def _apply(operator, points):
    return jax.vmap(lambda v: operator(v, THETA, STEP))(points)


def apply(case, points):
    """Apply the operator of the case to each row."""
    return np.asarray(_apply(case.operator, points))


def feasible(case, y, theta):
    """Some point that satisfies the constraints of the case."""
    if case.total is not None:
        return case.total(theta) * abs(y) / np.sum(abs(y))
    bounds = case.bounds(theta)
    return y if bounds is None else np.clip(y, *np.array(bounds).T)


@every_case
def test_the_result_beats_every_other_point_by_half_its_squared_distance(case):
    # what it means to be the minimiser of a 1-strongly convex function
    theta, rng, points = numpy_theta(), np.random.default_rng(1), random_points()
    for v, x in zip(points, apply(case, points), strict=True):
        assert_allclose(feasible(case, x, theta), x, atol=1e-14)
        y = feasible(case, rng.normal(size=6) * rng.integers(0, 2, size=6) + 1e-3, theta)
        for t in (1.0, 1e-3, 1e-6):  # a small t sees a small error in the optimality conditions
            near = x + t * (y - x)
            gain = case.objective(near, v, theta) - case.objective(x, v, theta)
            assert gain >= 0.5 * t**2 * np.sum((y - x) ** 2) - 1e-14


@every_case
def test_a_general_solver_finds_the_same_point_and_no_better_one(case):
    theta, points, constraints = numpy_theta(), random_points(seed=2), []
    if case.total is not None:
        constraints = [{"type": "eq", "fun": lambda x: np.sum(x) - case.total(theta)}]
    for v, x in zip(points[:5], apply(case, points)[:5], strict=True):
        found = minimize(
            case.objective,
            feasible(case, v, theta),
            (v, theta),
            method="SLSQP",
            bounds=case.bounds(theta),
            constraints=constraints,
            options={"ftol": 1e-15, "maxiter": 500},
        )
        # its equality constraint holds to 1e-12 or so, and it stops early about a kink
        assert case.objective(x, v, theta) <= found.fun + 1e-10
        assert_allclose(x, found.x, atol=5e-3)


@every_case
def test_the_operator_is_firmly_nonexpansive(case):
    v, w = random_points(seed=3), random_points(seed=4)
    moved = apply(case, v) - apply(case, w)
    assert np.all(np.sum(moved**2, 1) <= np.sum(moved * (v - w), 1) + 1e-12)


def test_moreau_decomposes_a_vector_into_the_prox_and_that_of_the_conjugate():
    # v = prox_{hg}(v) + h prox_{g*/h}(v/h), where g* is the indicator of a dual ball
    weight = jnp.array([0.5, 1.0, 0.0, 2.0, 0.3, 0.9])
    ball = run(prox.box(-weight, weight), V / STEP)
    assert_allclose(run(prox.l1(weight), V) + STEP * ball, V)
    cone = prox.nonnegative()
    assert_allclose(run(cone, V) - run(cone, -V), V)
    norms = np.array([np.linalg.norm(np.asarray(V)[G]) for G in MEMBERS])
    projected = np.asarray(V) * np.minimum(1, STEP * 0.8 / norms)[GROUPS]
    assert_allclose(run(prox.group_lasso(0.8, GROUPS), V) + projected, V)


def together(z):
    """v and θ from one array of 13, so that mixed derivatives are seen too."""
    return z[:6], {"a": z[6], "b": z[7:]}


Z = jnp.concatenate([V, THETA["a"][None], THETA["b"]])


def central_difference(function, h=1e-5):
    """The Jacobian of a function at Z; half an ulp over h is 1e-11, and the rest is h²."""
    shifts = h * jnp.eye(Z.size)
    up, down = (jax.vmap(function)(Z + s) for s in (shifts, -shifts))
    return jnp.moveaxis(up - down, 0, -1) / (2 * h)


@every_case
def test_first_and_second_derivatives_are_those_of_finite_differences(case):
    def operator(z):
        return case.operator(*together(z), STEP)

    def scalar(z):
        return jnp.sum(jnp.cos(operator(z)))

    @jax.jit
    def derivatives(z):
        first = jax.jacfwd(operator)(z), jax.jacrev(operator)(z)
        second = jax.jacfwd(jax.jacrev(scalar))(z), jax.jacrev(jax.jacfwd(scalar))(z)
        expected = central_difference(operator), central_difference(jax.grad(scalar))
        return [(first, expected[0]), (second, expected[1])]

    for pair, expected in derivatives(Z):
        for got in pair:
            assert_allclose(got, expected, atol=1e-9)


@every_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_nothing_is_nan_at_zero_or_near_it(case, dtype):
    @jax.jit
    @jax.vmap
    def derivatives(scale):
        def function(z):
            return case.operator(*together(z), STEP)

        z = (Z * jnp.where(jnp.arange(Z.size) < 6, scale.astype(Z.dtype), 1)).astype(dtype)
        return function(z), jax.jacrev(function)(z), jax.jacfwd(jax.jacrev(function))(z)

    # 1e-30, 1e-170: the squares are zero; 1e-15, 1e-110: the second derivative of √ overflows
    scales = jnp.array([0.0, 1e-15, 1e-30, 1e-110, 1e-170, 1e-320]).astype(dtype)
    for leaf in derivatives(scales):
        assert leaf.dtype == dtype and jnp.all(jnp.isfinite(leaf))


@pytest.mark.parametrize(
    "operator",
    [
        prox.l1(jnp.zeros(6)),
        prox.elastic_net(0.0, 0.0),
        prox.group_lasso(0.0, GROUPS),
        prox.box(-jnp.inf, jnp.inf),
    ],
    ids=lambda operator: type(operator).__name__,
)
@pytest.mark.parametrize("v", [jnp.zeros(6), V])
def test_without_a_penalty_the_operator_and_its_derivative_are_the_identity(operator, v):
    assert_allclose(run(operator, v), v)
    assert_allclose(jax.jacfwd(lambda v: run(operator, v))(v), np.eye(6))


def test_equal_bounds_pin_a_coordinate():
    def pinned(v, bound):
        return prox.box(lambda b: b, lambda b: b)(v, bound, STEP)

    for v in (-1.0, 0.4, 2.0):  # below, on and above the bound
        value, slopes = jax.value_and_grad(pinned, (0, 1))(v, 0.4)
        assert (value, *slopes) == (0.4, 0.0, 1.0)


TREE = {"m": V[:4].reshape(2, 2), "s": (V[4], V[5])}


def flat(x):
    return jnp.concatenate([x["m"].ravel(), jnp.stack(x["s"])])


def labels(values):
    return {"m": values[:4].reshape(2, 2), "s": (values[4], values[5])}


@pytest.mark.parametrize(
    ("operator", "on_array"),
    [
        (prox.l1(0.4), prox.l1(0.4)),
        (
            prox.l1({"m": jnp.array([0.1, 0.2]), "s": 0.3}),  # a prefix of x; rows broadcast
            prox.l1(jnp.array([0.1, 0.2, 0.1, 0.2, 0.3, 0.3])),
        ),
        (prox.elastic_net(0.4, labels(V**2)), prox.elastic_net(0.4, V**2)),
        (prox.group_lasso(0.4, labels(GROUPS)), prox.group_lasso(0.4, GROUPS)),
        (prox.nonnegative(), prox.nonnegative()),
        (prox.box(labels(V - 1), 0.8), prox.box(V - 1, 0.8)),
        (prox.simplex(2.0), prox.simplex(2.0)),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_a_pytree_gives_what_its_coordinates_give_in_one_array(operator, on_array):
    x = run(operator, TREE)
    assert jax.tree.structure(x) == jax.tree.structure(TREE)
    assert_allclose(flat(x), run(on_array, flat(TREE)), rtol=1e-15)


def test_the_rows_of_a_matrix_are_groups_by_broadcasting():
    v = V.reshape(3, 2)
    rows = run(prox.group_lasso(1.0, jnp.arange(3)[:, None]), v)
    one_by_one = run(prox.group_lasso(1.0, np.repeat([0, 1, 2], 2)), v.ravel())
    assert_allclose(rows.ravel(), one_by_one)


@every_case
def test_float32_stays_float32_whatever_the_parameters_are(case):
    got = run(case.operator, V.astype(jnp.float32), THETA, jnp.asarray(STEP))
    assert got.dtype == jnp.float32
    assert_allclose(got, run(case.operator, V, THETA), atol=5e-7)


@pytest.mark.parametrize(
    "operator",
    [prox.elastic_net(0.1, 0.2), prox.group_lasso(0.4, labels(GROUPS)), prox.simplex()],
    ids=lambda operator: type(operator).__name__,
)
def test_each_leaf_keeps_its_dtype(operator):
    mixed = TREE | {"m": TREE["m"].astype(jnp.float32)}
    x = run(operator, mixed)
    assert (x["m"].dtype, x["s"][0].dtype) == (jnp.float32, jnp.float64)
    assert_allclose(x["m"], run(operator, TREE)["m"], atol=5e-7)


def test_the_simplex_projection_keeps_its_total_beside_large_entries():
    for dtype, big in ((jnp.float32, 1e6), (jnp.float64, 1e14)):
        x = run(prox.simplex(3.0), jnp.asarray([big, big, -big, 0.0], dtype))
        assert_allclose(x, [1.5, 1.5, 0.0, 0.0])


@every_case
def test_vmap_gives_what_row_by_row_gives(case):
    points = random_points()
    one_by_one = [run(case.operator, jnp.asarray(v), THETA) for v in points]
    assert_allclose(apply(case, points), np.stack(one_by_one), rtol=1e-14, atol=1e-15)


def test_constants_are_leaves_that_are_mapped_over_and_differentiated():
    weights = jnp.array([0.1, 1.0, 2.0])
    mapped = eqx.filter_vmap(lambda w: prox.l1(w)(V, None, STEP))(weights)
    operators = eqx.filter_vmap(prox.l1)(weights)
    assert_allclose(eqx.filter_vmap(lambda p: p(V, None, STEP))(operators), mapped)
    slope = eqx.filter_grad(lambda p: jnp.sum(p(V, None, STEP)))(prox.l1(0.5)).weight.value
    signs = np.sign(V) * (np.abs(V) > STEP * 0.5)
    assert_allclose(slope, -STEP * np.sum(signs))


def test_another_constant_does_not_compile_again():
    traces = []

    @eqx.filter_jit
    def compiled(operator, v):
        traces.append(operator)
        return operator(v, None, STEP)

    for weight in (0.1, 0.2):
        assert_allclose(compiled(prox.l1(weight), V), prox.l1(weight)(V, None, STEP))
    assert len(traces) == 1


def test_a_function_of_theta_may_be_a_module_with_leaves_of_its_own():
    class Scaled(eqx.Module):
        scale: jax.Array

        def __call__(self, theta):
            return self.scale * theta

    def total(scale):
        return jnp.sum(prox.l1(Scaled(scale))(jnp.abs(V) + 1, 0.5, STEP))

    assert_allclose(jax.grad(total)(jnp.array(0.3)), -6 * 0.5 * STEP)


def test_what_a_function_of_theta_closes_over_is_differentiated():
    def residual(scale):
        problem = Composite(lambda x, theta: 0.0, prox.l1(lambda theta: scale * theta), STEP)
        return jnp.sum(problem.convert_closures(V, 0.5).residual(jnp.abs(V) + 1, 0.5))

    assert_allclose(jax.grad(residual)(jnp.array(0.3)), 6 * 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: prox.l1(-1.0), "finite weights >= 0"),
        (lambda: prox.l1(jnp.array([1.0, jnp.nan])), "finite weights >= 0"),
        (lambda: prox.l1({"m": 1.0, "s": -1}), "finite weights >= 0"),
        (lambda: prox.l1("strong"), "holds a str"),
        (lambda: prox.l1(1j), "holds a complex"),
        (lambda: prox.elastic_net(1.0, -1.0), r"elastic_net\(l2\)"),
        (lambda: prox.group_lasso(-1.0, GROUPS), "finite weights >= 0"),
        (lambda: prox.group_lasso(1.0, [0.5, 1.0]), "integer labels"),
        (lambda: prox.group_lasso(1.0, np.array([0, -1])), "integer labels"),
        (lambda: prox.group_lasso(1.0, np.zeros(0, int)), "integer labels"),
        (lambda: prox.group_lasso(jnp.ones(2), GROUPS), "each of the 3 groups"),
        (lambda: prox.group_lasso({"m": 1.0}, GROUPS), "each of the 3 groups"),
        (lambda: jax.jit(lambda g: prox.group_lasso(1.0, g)(V, None, 1.0))(GROUPS), "before trac"),
        (lambda: prox.box(1.0, 0.0), "lower <= upper"),
        (lambda: prox.box(jnp.zeros(2), jnp.array([1.0, -1.0])), "lower <= upper"),
        (lambda: prox.box(lambda theta: theta, jnp.nan), "NaN"),
        (lambda: prox.box({"m": 0.0}, {"s": 1.0}), "do not fit together"),
        (lambda: prox.box(jnp.zeros(2), jnp.ones(3)), "do not fit together"),
        (lambda: prox.simplex(0.0), "positive finite number"),
        (lambda: prox.simplex(jnp.ones(2)), "positive finite number"),
        (lambda: prox.simplex()(jnp.zeros(0), None, 1.0), "must not be empty"),
        (lambda: prox.l1(jnp.ones(5))(V, None, 1.0), "does not broadcast"),
        (lambda: prox.l1(jnp.ones((2, 6)))(V, None, 1.0), "does not broadcast"),
        (lambda: prox.l1([1.0] * 6)(V, None, 1.0), "a list is a pytree"),
        (lambda: prox.simplex(lambda theta: theta)(V, jnp.ones(2), 1.0), "must be a scalar"),
    ],
)
def test_bad_input_is_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "operator",
    [
        prox.l1(lambda theta: theta),
        prox.elastic_net(0.1, lambda theta: theta),
        prox.group_lasso(lambda theta: theta, GROUPS),
        prox.box(0.0, lambda theta: theta),
        prox.simplex(lambda theta: theta),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_a_parameter_that_turns_out_negative_gives_nan_and_no_finite_wrong_number(operator):
    x = eqx.filter_jit(lambda theta: operator(V, theta, STEP))
    assert jnp.all(jnp.isfinite(x(jnp.array(0.5))))
    assert jnp.all(jnp.isnan(x(jnp.array(-0.5))))
