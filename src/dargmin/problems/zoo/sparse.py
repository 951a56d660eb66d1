"""Lasso and elastic net."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dargmin import prox
from dargmin.problems.base import Composite
from dargmin.problems.zoo.active_set import minimise, sensitivity
from dargmin.problems.zoo.data import as_design_matrix, as_hyperparameters, as_targets
from dargmin.problems.zoo.instance import AbstractOracle, Instance
from dargmin.types import Parameters


def lasso(X: Any, y: Any) -> Instance:
    """‖Xw - y‖² / 2n + Σ_j e^{θ_j} |w_j|.

    θ is the logarithm of the penalty: a scalar, or one number for each feature. (In scikit-learn's
    `Lasso`, alpha = e^θ, and fit_intercept=False.) The problem comes with the step size 1/L.

    Parameters
    ----------
    X : array, shape (n, d)
    y : array, shape (n,)

    Raises
    ------
    ValueError
        If the data have the wrong shape, are no real numbers, or not finite, or X is zero.
    """
    return _instance(X, y, prox.l1(jnp.exp), LassoOracle)


def elastic_net(X: Any, y: Any) -> Instance:
    """‖Xw - y‖² / 2n + Σ_j e^{θ_1j} |w_j| + ½ Σ_j e^{θ_2j} w_j².

    θ holds the logarithms of the two penalties, and has shape (2,), or (2, d) with one pair for
    each feature. (In scikit-learn's `ElasticNet`, e^θ_1 = alpha l1_ratio, e^θ_2 = alpha (1 -
    l1_ratio).) Both penalties are in the prox; the problem comes with the step size 1/L.

    Parameters and Raises are those of `lasso`.
    """
    return _instance(X, y, prox.elastic_net(_exp_of_first, _exp_of_second), ElasticNetOracle)


class LeastSquares(eqx.Module):
    """‖Xw - y‖² / 2n."""

    X: Float[Array, "n d"]
    y: Float[Array, " n"]

    def __call__(self, w: Float[Array, " d"], theta: Parameters) -> Float[Array, ""]:
        return 0.5 * jnp.mean(jnp.square(self.X @ w - self.y))


class LassoOracle(AbstractOracle):
    """w* by an active-set method; on its support S, ∂w*/∂θ = -K⁻¹ diag(e^θ sign w*).

    K = XᵀX / n restricted to S."""

    X: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]

    def solution(self, theta: Any) -> Float[np.ndarray, " d"]:
        l1 = self._weight(theta)
        return minimise(self.X, self.y, l1, np.zeros_like(l1)).astype(np.float64)

    def jacobian(self, theta: Any) -> Float[np.ndarray, "..."]:
        l1 = self._weight(theta)
        w = minimise(self.X, self.y, l1, np.zeros_like(l1))
        forces = np.diag(l1 * np.sign(w)) if np.ndim(theta) else (l1 * np.sign(w))[:, None]
        columns = sensitivity(self.X, self.y, l1, np.zeros_like(l1), w, forces)
        return columns.reshape(*w.shape, *np.shape(theta))

    def spectrum(self, theta: Any) -> tuple[float, float]:
        """Exact for the smooth part; it does not depend on θ."""
        return _spectrum(self.X)

    def _weight(self, theta: Any) -> np.ndarray:
        d = self.X.shape[1:]
        return np.broadcast_to(np.exp(as_hyperparameters(theta, (), d)), d)


class ElasticNetOracle(AbstractOracle):
    """w* by an active-set method; on its support S, K ∂w* = -[diag(e^θ_1 sign w*), diag(e^θ_2 w*)].

    K = XᵀX / n + diag e^θ_2 restricted to S."""

    X: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]

    def solution(self, theta: Any) -> Float[np.ndarray, " d"]:
        return minimise(self.X, self.y, *self._weights(theta)).astype(np.float64)

    def jacobian(self, theta: Any) -> Float[np.ndarray, "..."]:
        l1, l2 = self._weights(theta)
        w = minimise(self.X, self.y, l1, l2)
        forces = np.stack([l1 * np.sign(w), l2 * w], axis=1)  # (d, 2)
        if np.ndim(theta) == 2:
            forces = (np.eye(w.size)[:, None, :] * forces[:, :, None]).reshape(w.size, -1)
        columns = sensitivity(self.X, self.y, l1, l2, w, forces)
        return columns.reshape(*w.shape, *np.shape(theta))

    def spectrum(self, theta: Any) -> tuple[float, float]:
        """Exact for the smooth part; it does not depend on θ."""
        return _spectrum(self.X)

    def _weights(self, theta: Any) -> tuple[np.ndarray, np.ndarray]:
        d = self.X.shape[1]
        first, second = np.exp(as_hyperparameters(theta, (2,), (2, d)))
        return np.broadcast_to(first, (d,)), np.broadcast_to(second, (d,))


def _exp_of_first(theta: Any) -> Float[Array, "..."]:
    return jnp.exp(theta[0])


def _exp_of_second(theta: Any) -> Float[Array, "..."]:
    return jnp.exp(theta[1])


def _spectrum(X: np.ndarray) -> tuple[float, float]:
    squares = np.linalg.svd(X, compute_uv=False) ** 2 / X.shape[0]
    return float(squares[-1]) if X.shape[0] >= X.shape[1] else 0.0, float(squares[0])


def _instance(X: Any, y: Any, operator: Callable, oracle: type) -> Instance:
    X = as_design_matrix(X)
    y = as_targets(y, X)
    seen = [np.asarray(u, np.float64) for u in (X, y)]
    _, L = _spectrum(seen[0])
    if L == 0:
        raise ValueError("X is zero: there is nothing to fit, and no step size. Check the data.")
    problem = Composite(LeastSquares(X, y), operator, jnp.asarray(1 / L, X.dtype))
    return Instance(problem, jnp.zeros(X.shape[1], X.dtype), oracle(*seen))
