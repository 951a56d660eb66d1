"""What reverse mode keeps: the temporaries that XLA sets aside, known without running anything."""

import equinox as eqx
import jax
import jax.numpy as jnp
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
