"""Penalised linear models with one output: ridge and logistic regression."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dargmin.problems.base import Objective
from dargmin.problems.zoo.data import as_design_matrix, as_hyperparameters, as_signs, as_targets
from dargmin.problems.zoo.exact import extended, newton, solve
from dargmin.problems.zoo.instance import AbstractOracle, Instance
from dargmin.types import Parameters


def ridge(X: Any, y: Any) -> Instance:
    """f(w, θ) = ‖Xw - y‖² / 2n + ½ Σ_j e^{θ_j} w_j².

    θ is the logarithm of the penalty: a scalar, or one number for each feature. No intercept:
    centre the data, or append a column of ones. (In scikit-learn's `Ridge`, alpha = n e^θ.)

    Parameters
    ----------
    X : array, shape (n, d)
    y : array, shape (n,)

    Raises
    ------
    ValueError
        If the data have the wrong shape, are no real numbers, or not finite.
    """
    X = as_design_matrix(X)
    y = as_targets(y, X)
    return _instance(RidgeObjective(X, y), SQUARED)


def logistic(X: Any, y: Any) -> Instance:
    """f(w, θ) = (1/n) Σ_i log(1 + exp(-y_i x_iᵀw)) + ½ Σ_j e^{θ_j} w_j².

    θ as in `ridge`. (In scikit-learn's `LogisticRegression`, C = 1 / (n e^θ).)

    Parameters
    ----------
    X : array, shape (n, d)
    y : array, shape (n,)
        Labels of two classes: 0 and 1, or -1 and 1.

    Raises
    ------
    ValueError
        If the data have the wrong shape or labels, are no real numbers, or not finite.
    """
    X = as_design_matrix(X)
    y = as_signs(y, X)
    return _instance(LogisticObjective(X, y), LOGISTIC)


class RidgeObjective(eqx.Module):
    """‖Xw - y‖² / 2n + ½ Σ_j e^{θ_j} w_j²."""

    X: Float[Array, "n d"]
    y: Float[Array, " n"]

    def __call__(self, w: Float[Array, " d"], theta: Parameters) -> Float[Array, ""]:
        loss = 0.5 * jnp.mean(jnp.square(self.X @ w - self.y))
        return loss + 0.5 * jnp.sum(jnp.exp(theta) * jnp.square(w))


class LogisticObjective(eqx.Module):
    """(1/n) Σ_i log(1 + exp(-y_i x_iᵀw)) + ½ Σ_j e^{θ_j} w_j², with y_i = ±1."""

    X: Float[Array, "n d"]
    y: Float[Array, " n"]

    def __call__(self, w: Float[Array, " d"], theta: Parameters) -> Float[Array, ""]:
        loss = jnp.mean(jax.nn.softplus(-self.y * (self.X @ w)))
        return loss + 0.5 * jnp.sum(jnp.exp(theta) * jnp.square(w))


class Loss(NamedTuple):
    """ℓ(z, y), its first two derivatives in z, and bounds on the second."""

    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray, np.ndarray], np.ndarray]
    curvature: Callable[[np.ndarray, np.ndarray], np.ndarray]
    bounds: tuple[float, float]


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))


SQUARED = Loss(
    value=lambda z, y: (z - y) ** 2 / 2,
    slope=lambda z, y: z - y,
    curvature=lambda z, y: np.ones_like(z),
    bounds=(1.0, 1.0),
)
LOGISTIC = Loss(
    value=lambda z, y: np.logaddexp(0, -y * z),
    slope=lambda z, y: -y * _sigmoid(-y * z),
    curvature=lambda z, y: _sigmoid(z) * _sigmoid(-z),
    bounds=(0.0, 0.25),
)


class LinearModelOracle(AbstractOracle):
    """The minimiser of (1/n) Σ_i ℓ(x_iᵀw, y_i) + ½ Σ_j p_j w_j², with p = e^θ, by Newton's method.

    ∂w*/∂θ = -K⁻¹ diag(p w*), with K = XᵀCX / n + diag p and C = diag ℓ''(Xw*, y)."""

    X: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    loss: Loss = eqx.field(static=True)

    def solution(self, theta: Any) -> Float[np.ndarray, " d"]:
        return self._minimise(self._penalty(theta)).astype(np.float64)

    def jacobian(self, theta: Any) -> Float[np.ndarray, "..."]:
        p = self._penalty(theta)
        w, X, n = self._minimise(p), extended(self.X), self.y.size
        c = self.loss.curvature(X @ w, self.y) / n
        apply = lambda s: (X.T @ (c * (X @ s).T).T) + (p * s.T).T
        rhs = -np.diag(p * w) if np.ndim(theta) else -p * w
        return solve(self._hessian(w, p), apply, rhs).astype(np.float64)

    def spectrum(self, theta: Any) -> tuple[float, float]:
        """Exact for ridge; for logistic regression from 0 <= ℓ'' <= 1/4."""
        p, (low, high) = self._penalty(theta).astype(np.float64), self.loss.bounds
        values = lambda c: np.linalg.svd(
            np.vstack([np.sqrt(c / self.y.size) * self.X, np.diag(np.sqrt(p))]), compute_uv=False
        )
        return float(values(low)[-1] ** 2), float(values(high)[0] ** 2)

    def _penalty(self, theta: Any) -> np.ndarray:
        d = self.X.shape[1:]
        return np.broadcast_to(np.exp(as_hyperparameters(theta, (), d)), d)

    def _hessian(self, w: np.ndarray, p: np.ndarray) -> np.ndarray:
        c = self.loss.curvature(self.X @ w.astype(np.float64), self.y) / self.y.size
        return (self.X.T * c) @ self.X + np.diag(p.astype(np.float64))

    def _minimise(self, p: np.ndarray) -> np.ndarray:
        X, y, loss, n = extended(self.X), self.y, self.loss, self.y.size
        return newton(
            lambda w: np.sum(loss.value(X @ w, y)) / n + np.sum(p * w**2) / 2,
            lambda w: X.T @ loss.slope(X @ w, y) / n + p * w,
            lambda w: self._hessian(w, p),
            X.shape[1],
        )


def _instance(f: RidgeObjective | LogisticObjective, loss: Loss) -> Instance:
    X, y = (np.asarray(u, np.float64) for u in (f.X, f.y))
    x0 = jnp.zeros(f.X.shape[1], f.X.dtype)
    return Instance(Objective(f), x0, LinearModelOracle(X, y, loss))
