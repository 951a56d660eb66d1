"""What results print: their numbers, what a status means, and nothing that fails under `jit`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dargmin
from dargmin import show
from dargmin.bilevel import minimize
from dargmin.status import Status

PROBLEM = dargmin.Objective(lambda x, theta: 0.5 * jnp.sum((x - theta) ** 2 + x**2))
X0, THETA = jnp.zeros(3), jnp.asarray([2.0, 4.0, 6.0])


def outer(x, theta):
    return jnp.sum(x)


def solve(theta, steps=60):
    return dargmin.solve(PROBLEM, dargmin.GradientDescent(0.4), X0, theta, steps=steps)


def sensitivity(theta):
    return dargmin.sensitivity(PROBLEM, X0, theta, theta, throw=False)


def hypergradient(theta):
    return dargmin.hypergradient(outer, PROBLEM, X0, theta, throw=False)


def certify(theta):
    return dargmin.certify(PROBLEM, theta / 2, theta, outer=outer, gradient=0.5 * jnp.ones(3))


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (solve, ("Solution: ok", "[1., 2., 3.]", "steps     60")),
        (sensitivity, ("Sensitivity: ok", "[1., 2., 3.]", "of the tangent, estimated")),
        (hypergradient, ("Hypergradient: ok", "[0.5, 0.5, 0.5]", "value     6", "products")),
        (certify, ("Certificate: ok", "of the derivative, estimated", "residual")),
    ],
)
def test_a_result_prints_its_numbers_and_under_jit_their_shapes(make, shown):
    text = repr(make(THETA))
    assert all(part in text for part in shown) and text.count("\n") < 8 and "f64[" not in text
    traced = []
    jax.jit(lambda theta: traced.append(str(make(theta))))(THETA)
    assert "not known before run time" in traced[0] and "float64[" in traced[0]


def test_an_outer_solution_and_a_diagnosis_print_a_page_at_most():
    found = minimize(
        lambda x, theta: jnp.sum((x - 1) ** 2), PROBLEM, X0, THETA, optimizer="lbfgs", steps=3,
        throw=False,
    )  # fmt: skip
    text = repr(found)
    assert text.startswith("BilevelSolution: ") and "gradient norm" in text and "rows" in text
    method = dargmin.GradientDescent(0.4)
    d = dargmin.diagnose(PROBLEM, method, X0, THETA, steps=9, remedies=False)
    assert repr(d) == str(d) and "GradientDescent, 9 steps" in repr(d)


def test_large_arrays_are_shown_by_shape_and_norm_and_batches_by_how_many_failed():
    assert show.numbers(jnp.ones((3, 3))) == "shape (3, 3), norm 3"
    assert show.numbers({"a": 1.5, "b": jnp.arange(2)}) == "['a'] 1.5; ['b'] [0, 1]"
    bad = jnp.asarray([False, True, True])
    status = jax.vmap(lambda b: Status.where(b, Status.nonfinite, Status.ok))(bad)
    assert show.in_words(status) == "2 of 3: Infinite or NaN values appeared"
    shapes = jax.eval_shape(lambda theta: {"x": jnp.sin(theta)}, np.ones(3))
    assert show.numbers(shapes) == "['x'] float64[3]"
