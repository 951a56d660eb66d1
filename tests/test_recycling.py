"""The preconditioner made of pairs of conjugate gradients: L-BFGS by the textbook, and a saving."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import dargmin
from dargmin.linear import CG, LinearOptions, solve_linear
from dargmin.linear.recycling import Pairs

D = 12
PROBLEM = dargmin.Objective(lambda x, K: 0.5 * x @ (K @ x), quadratic=True)


def two_loops(directions, products, initial):
    """The inverse Hessian of L-BFGS, one update after the other (Nocedal and Wright, 2006)."""
    H = initial
    for p, y in zip(directions, products, strict=True):
        if np.any(p):
            V = np.eye(D) - np.outer(y, p) / (p @ y)
            H = V.T @ H @ V + np.outer(p, p) / (p @ y)
    return H


def matrix(rng, low=1e-3):
    Q = np.linalg.qr(rng.normal(size=(D, D)))[0]
    return (Q * np.geomspace(low, 1, D)) @ Q.T


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_preconditioner_is_the_inverse_hessian_of_lbfgs(diagonal):
    rng = np.random.default_rng(0)
    pairs, rows = Pairs.zeros(jnp.zeros(D), 5), []
    for step in range(7):  # seven pairs of different matrices: the first two are replaced
        p = rng.normal(size=D)
        y = matrix(rng) @ p
        pairs = pairs.put(jnp.asarray(step), p, y, jnp.asarray(p @ y), jnp.asarray(True))
        rows.append((p, y))
    unusable = pairs.put(jnp.asarray(7), p, -y, jnp.asarray(-p @ y), jnp.asarray(False))
    assert_allclose(unusable.directions, pairs.directions)
    pairs = pairs.in_order(jnp.asarray(7))
    h = rng.uniform(0.5, 2, size=D)
    apply = pairs.preconditioner(jnp.zeros(D), (lambda v: h * v) if diagonal else None)
    p, y = rows[-1]
    initial = np.diag(h) if diagonal else (p @ y) / (y @ y) * np.eye(D)
    want = two_loops(*zip(*rows[-5:], strict=True), initial)
    assert_allclose(jax.vmap(apply)(np.eye(D)), want, rtol=1e-9, atol=1e-9 * np.max(np.abs(want)))
    assert np.min(np.linalg.eigvalsh(want)) > 0


def test_recycled_pairs_save_products_and_change_nothing_else():
    rng = np.random.default_rng(1)
    K, b = matrix(rng), rng.normal(size=D)
    near = K + 1e-3 * matrix(rng)

    @jax.jit
    def solve(K, pairs):
        options = LinearOptions(CG(pairs=pairs))
        return solve_linear(PROBLEM, jnp.asarray(b), K, jnp.asarray(b), options=options)

    nothing = Pairs.zeros(jnp.zeros(D), D)
    first = solve(K, nothing)
    cold, warm = solve(near, nothing), solve(near, first.info.pairs)
    for found in (cold, warm):
        assert found.info.ok
        assert_allclose(found.value, np.linalg.solve(near, b), rtol=1e-6)
    assert 2 * int(warm.info.products) < int(cold.info.products)
