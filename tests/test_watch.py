"""What fails under differentiation says so, in one sentence of ours; late starts know θ."""

import jax
import jax.numpy as jnp
import optax
import pytest
from numpy.testing import assert_allclose

import dargmin
from dargmin import DargminError, Implicit, LateStart, Neumann, Status, Unrolled
from dargmin.methods import LBFGS, FromOptax, GradientDescent, NewtonCG


def bowl(x, theta):
    return 0.5 * (x[0] ** 2 + 10 * x[1] ** 2) - theta * jnp.sum(x)


def valley(x, theta):
    return 0.5 * (x[0] - x[1]) ** 2 + (theta - 1) * x[0]


def softplus(x, theta):
    return jnp.sum(jnp.logaddexp(0.0, -x)) + 0.5 * theta * jnp.sum((x - jnp.arange(2.0)) ** 2)


BOWL, VALLEY = dargmin.Objective(bowl), dargmin.Objective(valley)
SOFT = dargmin.Objective(softplus)
MINIMUM = jnp.array([1.0, 0.1])  # of the bowl, at theta = 1


def last_iterate(theta, method, mode, steps, throw=True):
    return dargmin.solve(SOFT, method, jnp.zeros(2), theta, steps=steps, mode=mode, throw=throw).x


@pytest.mark.parametrize("method", [NewtonCG(), LBFGS()], ids=["NewtonCG", "LBFGS"])
def test_one_step_differentiation_knows_that_carried_gradients_depend_on_theta(method):
    exact = jax.jacfwd(last_iterate)(1.0, NewtonCG(), Implicit(), 20)
    one_step = jax.jacrev(last_iterate)(1.0, method, LateStart(last=1), 8)
    # Newton's step is exact; the inverse Hessian of L-BFGS is known to a tenth or so
    assert_allclose(one_step, exact, rtol=1e-6 if isinstance(method, NewtonCG) else 0.3)
    assert jnp.all(
        last_iterate(1.0, method, LateStart(last=1), 8) == last_iterate(1.0, method, Unrolled(), 8)
    )


def test_unrolled_lbfgs_is_the_derivative_of_the_algorithm():
    x = lambda theta: last_iterate(theta, LBFGS(), Unrolled(), 2)
    differences = (x(1 + 1e-5) - x(1 - 1e-5)) / 2e-5  # of second order: 1e-10 and rounding
    assert_allclose(jax.jacfwd(x)(1.0), differences, rtol=1e-7)


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_a_neumann_series_that_grows_raises_or_is_nan(derivative):
    mode = Neumann(terms=200, step_size=0.25)  # 1 - 10/4 = -1.5
    attached = lambda theta, throw: dargmin.attach(BOWL, MINIMUM, theta, mode, throw)
    with pytest.raises(DargminError, match="do not contract"):
        derivative(attached)(1.0, True)
    assert jnp.all(jnp.isnan(derivative(attached)(1.0, False)))
    good = Neumann(terms=400, step_size=0.1)
    found = derivative(lambda theta: dargmin.attach(BOWL, MINIMUM, theta, good))(1.0)
    assert_allclose(found, MINIMUM, rtol=1e-10)


@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_a_point_that_solves_nothing_has_no_derivative_and_a_loose_one_has(derivative):
    attached = lambda theta, at: dargmin.attach(BOWL, at, theta)
    with pytest.raises(DargminError, match="solves nothing"):
        derivative(attached)(1.0, 1.5 * MINIMUM)
    assert_allclose(derivative(attached)(1.0, 1.02 * MINIMUM), MINIMUM, rtol=1e-10)


def test_a_failed_adjoint_raises_our_error_and_says_why_even_through_a_closure():
    at = jnp.ones(2)
    with pytest.raises(DargminError, match="singular and inconsistent"):
        jax.grad(lambda theta: jnp.sum(dargmin.attach(VALLEY, at, theta)))(1.0)
    with pytest.raises(DargminError, match="singular and inconsistent"):
        jax.jvp(lambda theta: dargmin.attach(VALLEY, at, theta), (1.0,), (1.0,))

    def closing_over(theta):
        problem = dargmin.Objective(lambda x, _: valley(x, theta))
        return jnp.sum(dargmin.attach(problem, at, None))

    with pytest.raises(DargminError, match="singular and inconsistent"):
        jax.grad(closing_over)(1.0)


def test_an_unrolled_derivative_that_is_nan_raises():
    problem = dargmin.Objective(lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2))
    # Like Adam, it takes the square root of a first gradient that is zero.
    update = lambda g, state, x: (-0.1 * g / (jnp.sqrt(g**2) + 1e-8), state)
    method = FromOptax(optax.GradientTransformation(lambda x: optax.EmptyState(), update))  # pyright: ignore

    def x(theta, throw):
        mode = Unrolled()
        return dargmin.solve(problem, method, 1.0, theta, steps=3, mode=mode, throw=throw).x

    with pytest.raises(DargminError, match="Adam"):
        jax.grad(x)(1.0, True)
    assert jnp.isnan(jax.grad(x)(1.0, False))


def test_a_linear_objective_is_unbounded_and_a_line_search_ends_where_f_is_finite():
    linear = dargmin.Objective(lambda x, theta: -theta * x)
    found = dargmin.solve(linear, GradientDescent(0.1), 0.0, 1.0, steps=30, throw=False)
    assert found.status == Status.unbounded
    # From -30 the Newton step is 1e13 long, where exp overflows.
    problem = dargmin.Objective(lambda x, theta: jnp.exp(x) - theta * x)
    assert_allclose(dargmin.solve(problem, NewtonCG(), -30.0, 2.0, steps=40).x, jnp.log(2.0))


def test_the_auxiliary_data_at_the_last_iterate_is_on_the_solution():
    problem = dargmin.FixedPoint(lambda x, theta: (0.5 * x + theta, x - theta), has_aux=True)
    found = dargmin.solve(problem, dargmin.FixedPointIteration(), 0.0, 1.0, steps=60)
    assert_allclose(found.aux, found.x - 1)


def test_the_precision_of_x_decides():
    x0 = jnp.zeros(2, jnp.float32)
    x = lambda theta: dargmin.solve(BOWL, NewtonCG(), x0, theta, steps=5).x
    assert x(jnp.asarray(1.0, jnp.float64)).dtype == jnp.float32
    assert jax.jacrev(x)(jnp.asarray(1.0, jnp.float64)).dtype == jnp.float64
