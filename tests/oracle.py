"""What the tests of the promise compare with: dense Newton steps and finite differences, float64.

Nothing here calls the library: the derivative of φ(x*(θ), θ) is a difference of φ at two minima,
each found by dense Newton steps from a point that is given."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def flat(tree: Any) -> np.ndarray:
    """All numbers of a pytree, in float64."""
    leaves = [np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def distance(value: Any, truth: Any) -> float:
    """‖value - truth‖ / ‖truth‖, with 0 / 0 = 0 (and 1e-9 / 0, which is rounding)."""
    gap, scale = np.linalg.norm(flat(value) - flat(truth)), np.linalg.norm(flat(truth))
    return float(gap / scale) if scale else (0.0 if gap <= 1e-9 else np.inf)


def wide(tree: Any) -> Any:
    """The same pytree, every floating array in float64."""
    inexact, rest = eqx.partition(tree, eqx.is_inexact_array_like)
    return eqx.combine(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), inexact), rest)


@eqx.filter_jit
def _expand(f: Any, x: Any, theta: Any) -> Any:
    return jax.grad(f)(x, theta), jax.hessian(f)(x, theta)


def minimum(f: Any, x: np.ndarray, theta: Any, rounds: int = 12) -> np.ndarray:
    """The minimum of f(., θ) near x, by dense Newton steps; it has to be one."""
    x = np.asarray(x, float)
    for _ in range(rounds):
        slope, hessian = map(np.asarray, _expand(f, jnp.asarray(x), theta))
        values, vectors = np.linalg.eigh(hessian)
        assert values[0] > -1e-9 * values[-1], "the oracle was led to a saddle"
        step = vectors @ ((vectors.T @ slope) / np.maximum(values, 1e-13 * values[-1]))
        x = x - step
        if np.linalg.norm(step) <= 1e-12 * (1 + np.linalg.norm(x)):
            break
    return x


def difference(f: Any, outer: Any, x: np.ndarray, theta: Any, step: float = 1e-4) -> np.ndarray:
    """d φ(x*(θ), θ) / dθ along each coordinate of θ, by central differences of fourth order.

    Every minimum is the one that continues x."""
    theta, gradient = np.asarray(theta, float), []
    for direction in np.eye(theta.size).reshape(theta.size, *theta.shape):
        at = []
        for k in (-2, -1, 1, 2):
            moved = jnp.asarray(theta + k * step * direction)
            at.append(float(outer(jnp.asarray(minimum(f, x, moved)), moved)))
        gradient.append((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step))
    return np.asarray(gradient).reshape(theta.shape)
