"""‖Ax - b‖²/2 + u‖x‖²/2 in N dimensions, with all that the bounds of fixed points need."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dargmin.methods import GradientDescent
from dargmin.problems import Objective

__all__ = ["Tikhonov", "tikhonov"]

PENALTY = 0.01


class LeastSquares(eqx.Module):
    """‖Ax - b‖²/2 + u‖x‖²/2."""

    A: Any
    b: Any

    def __call__(self, x: Any, u: Any) -> Any:
        return 0.5 * jnp.sum((self.A @ x - self.b) ** 2) + 0.5 * u * jnp.sum(x**2)


class Tikhonov(NamedTuple):
    """One such problem, its answer, and the constants of the bounds; α = 2/(L+m) is M, too."""

    problem: Objective
    method: GradientDescent
    x0: Any
    solution: np.ndarray
    derivative: np.ndarray
    rate: float
    alpha: float
    e0: float
    delta0: float


def tikhonov(N: int, seed: int) -> Tikhonov:
    """A and b standard normal, u = 0.01, x_0 ten times as far out.

    x -> x - α(Hx - Aᵀb) contracts by ρ = (L - m)/(L + m). Its derivative in x does not depend on x,
    and -αx is that in u, so that the Lipschitz constant M is α."""
    rng = np.random.default_rng([N, seed])
    A, b = rng.normal(size=(N, N)), rng.normal(size=N)
    H = A.T @ A + PENALTY * np.eye(N)
    x = np.linalg.solve(H, A.T @ b)
    dx = -np.linalg.solve(H, x)
    m, L = np.linalg.eigvalsh(H)[[0, -1]]
    alpha, x0 = 2 / (L + m), 10 * rng.normal(size=N)
    f = LeastSquares(jnp.asarray(A), jnp.asarray(b))
    return Tikhonov(
        Objective(f), GradientDescent(alpha), jnp.asarray(x0), x, dx, float((L - m) / (L + m)),
        float(alpha), float(np.linalg.norm(x0 - x)), float(np.linalg.norm(dx)),
    )  # fmt: skip
