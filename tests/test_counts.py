"""What a derivative costs, in counts that are the same on every machine: it may not grow.

The bounds are what is counted today. Where a change lowers a count, lower the bound too; where it
raises one, say why it is worth it. `python -m benchmarks` measures the times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dargmin
from dargmin import Implicit
from dargmin.linear import CG
from dargmin.problems import zoo

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 12)) * np.geomspace(1, 0.1, 12)
Y = X @ RNG.normal(size=12) + 0.1 * RNG.normal(size=40)


def outer(x, theta):
    return 0.5 * jnp.sum((x - 1) ** 2)


@pytest.mark.parametrize(
    ("make", "theta", "mode", "gradients", "products", "factorisations"),
    [
        # one factor: Newton's step is the solution, and 12 of the products form the matrix; one
        # gradient and two products more show what rounding does
        (lambda: zoo.ridge(X, Y), -4.0, None, 4, 18, 1),
        (lambda: zoo.ridge(X, Y), -4.0, Implicit(CG()), 5, 46, 0),  # 12 for a second opinion
        (lambda: zoo.logistic(X, (Y > 0).astype(int)), -4.0, None, 7, 77, 5),
        (lambda: zoo.logistic(X, (Y > 0).astype(int)), -4.0, Implicit(CG()), 10, 42, 0),
        # singular off the support: every dense solve takes two factorisations
        (lambda: zoo.elastic_net(X, Y), np.array([-3.0, -4.0]), None, 19, 40, 6),
    ],
    ids=["ridge", "ridge by CG", "logistic", "logistic by CG", "elastic net"],
)
def test_gradients_and_products_do_not_grow(make, theta, mode, gradients, products, factorisations):
    instance = make()
    h = dargmin.hypergradient(outer, instance.problem, instance.x0, theta, mode=mode)
    assert h.ok
    assert h.cost.gradients <= gradients, h.cost
    assert h.cost.products <= products, h.cost
    assert h.cost.factorisations <= factorisations, h.cost


def test_nothing_d_by_d_is_kept():
    d = 100_000
    problem = dargmin.Objective(lambda x, t: jnp.sum(jnp.exp(t) * x**2 / 2 + x**4 / 4 - x))
    phi = lambda x, t: 0.5 * jnp.sum((x - 1) ** 2)

    @jax.jit
    def gradient(x0, theta, rtol):
        return dargmin.hypergradient(phi, problem, x0, theta, rtol=rtol, throw=False).gradient

    floats = jax.ShapeDtypeStruct((d,), float)
    compiled = gradient.lower(floats, floats, jax.ShapeDtypeStruct((), float)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 41 * d * 8


def test_nothing_is_compiled_anew_for_other_numbers():
    traces = []

    def f(x, theta):
        traces.append(None)
        return jnp.sum(jnp.cosh(x - theta))

    problem, phi = dargmin.Objective(f), lambda x, theta: jnp.sum(x**2)
    at = lambda theta, rtol: dargmin.hypergradient(phi, problem, np.zeros(3), theta, rtol=rtol)
    at(np.ones(3), 1e-3)
    before = len(traces)
    assert before > 0
    np.testing.assert_allclose(at(np.full(3, 2.0), 1e-7).gradient, 4 * np.ones(3), rtol=3e-7)
    assert len(traces) == before
