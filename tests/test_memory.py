"""What derivatives keep: the temporaries that XLA sets aside, known without running anything."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dargmin
from dargmin import GradientDescent, Implicit, LateStart, Nesterov, Neumann, Unrolled

MB = 1e6


class Diagonal(eqx.Module):
    """½ Σ exp(θ) a x² - b·x."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x, theta):
        return 0.5 * jnp.sum(jnp.exp(theta) * self.a * x**2) - self.b @ x


class LeastSquares(eqx.Module):
    """½ mean (Xw - y)² + ½ Σ exp(θ) w²."""

    X: jax.Array
    y: jax.Array

    def __call__(self, w, theta):
        return 0.5 * jnp.mean((self.X @ w - self.y) ** 2) + 0.5 * jnp.sum(jnp.exp(theta) * w**2)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, float)


def temporaries(f, mode, d, *, method=None, steps=300, tol=None):
    """Bytes that the gradient of ½‖x_T‖² in θ needs beside its arguments and its result."""

    def value(theta, f, x0):
        method_ = GradientDescent(0.1) if method is None else method
        problem = dargmin.Objective(f)
        x = dargmin.solve(
            problem, method_, x0, theta, steps=steps, tol=tol, mode=mode, throw=False
        ).x
        return 0.5 * x @ x

    compiled = jax.jit(jax.grad(value)).lower(floats(d), f, floats(d)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("tol", [None, 1e-6], ids=["", "tol"])
def test_square_root_checkpoints_keep_few_states(tol):
    d, steps = 100_000, 300
    f = Diagonal(floats(d), floats(d))
    assert temporaries(f, Unrolled("sqrt"), d, tol=tol) <= 0.15 * d * steps * 8 + 20 * MB
    # twice the states for twice the state: it is √T that counts
    used = temporaries(f, Unrolled("sqrt"), d, method=Nesterov(0.1, 0.5), tol=tol)
    assert used <= 0.15 * 2 * d * steps * 8 + 20 * MB


@pytest.mark.parametrize(
    ("mode", "tol", "states", "copies"),
    [
        (Unrolled(), None, 320, 0),
        (Unrolled(), 1e-6, 320, 0),
        (Unrolled("sqrt"), None, 60, 0),
        (Unrolled("sqrt"), 1e-6, 60, 1),  # handed into the branch that skips a finished segment
        (LateStart(last=20), 1e-6, 60, 0),
        (LateStart(start=200), 1e-6, 140, 0),
        (Neumann(50), 1e-6, 40, 0),
        (Implicit(), 1e-6, 40, 0),
    ],
    ids=str,
)
def test_data_are_never_stacked_step_by_step(mode, tol, states, copies):
    n, d = 200, 10_000
    f = LeastSquares(floats(n, d), floats(n))
    # a copy of the data at each of the 300 steps would take 300 · 16 MB, at each segment 17 · 16
    assert temporaries(f, mode, d, tol=tol) <= (states + copies * n) * d * 8


@pytest.mark.slow
def test_a_million_unknowns_take_a_few_vectors_and_no_matrix():
    n, d = 30, 1_000_000

    def gradient(f, theta, x0):
        outer = lambda w, theta: 0.5 * w @ w
        result = dargmin.hypergradient(outer, dargmin.Objective(f), x0, theta, throw=False)
        return result.gradient, result.certificate.error, result.ok

    f = LeastSquares(floats(n, d), floats(n))
    program = jax.jit(gradient).lower(f, floats(d), floats(d)).compile()
    # 16 vectors when this was written; a second copy of the data alone would be 30
    assert program.memory_analysis().temp_size_in_bytes <= 20 * d * 8
    random = np.random.default_rng(0)
    X, y, penalties = random.uniform(-1, 1, (n, d)), random.normal(size=n), random.uniform(1, 2, d)
    value, error, ok = program(LeastSquares(X, y), np.log(penalties), np.zeros(d))
    # (D + XᵀX/n)⁻¹ = D⁻¹ - D⁻¹Xᵀ (nI + XD⁻¹Xᵀ)⁻¹ XD⁻¹ with D = diag(exp θ)
    small = n * np.eye(n) + (X / penalties) @ X.T
    inverse = lambda b: (b - X.T @ np.linalg.solve(small, X @ (b / penalties))) / penalties
    w = inverse(X.T @ y / n)
    exact = -penalties * w * inverse(w)
    assert ok
    assert np.linalg.norm(value - exact) <= error * np.linalg.norm(exact)
    assert error <= 1e-3
