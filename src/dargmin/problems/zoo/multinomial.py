"""Multinomial logistic regression with a weight for each sample."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dargmin.problems.base import Objective
from dargmin.problems.zoo.data import as_design_matrix, as_hyperparameters, as_one_hot
from dargmin.problems.zoo.exact import extended, newton, solve
from dargmin.problems.zoo.instance import AbstractOracle, Instance
from dargmin.types import Parameters


def multinomial_logistic(X: Any, y: Any, classes: int, *, penalty: float = 1e-2) -> Instance:
    """f(W, θ) = (1/n) Σ_i e^{θ_i} (log Σ_c exp(x_iᵀW_c) - x_iᵀW_{y_i}) + ½ λ ‖W‖².

    θ is the logarithm of the samples' weights: one number for each, or a scalar for all of them.
    At θ = 0 this is plain multinomial logistic regression. (In scikit-learn's
    `LogisticRegression`, C = 1 / (n λ) and sample_weight = e^θ.)

    Parameters
    ----------
    X : array, shape (n, d)
    y : array, shape (n,)
        Labels 0, ..., classes - 1.
    classes : int, >= 2
        Number of columns of W, which has shape (d, classes).
    penalty : float, > 0
        λ, fixed: without it, W is determined up to the same constant in each class only.

    Raises
    ------
    ValueError
        If the data have the wrong shape or labels, are no real numbers, or not finite, or the
        penalty is not positive.
    """
    X = as_design_matrix(X)
    Y = as_one_hot(y, classes, X)
    if not 0 < penalty < np.inf:
        raise ValueError(f"penalty is {penalty}, but must be positive and finite, such as 1e-2.")
    f = MultinomialObjective(X, Y, jnp.asarray(penalty, X.dtype))
    seen = (np.asarray(u, np.float64) for u in (f.X, f.Y, f.penalty))
    return Instance(
        Objective(f), jnp.zeros((X.shape[1], classes), X.dtype), MultinomialOracle(*seen)
    )


class MultinomialObjective(eqx.Module):
    """(1/n) Σ_i e^{θ_i} (log Σ_c exp(x_iᵀW_c) - x_iᵀW y_i) + ½ λ ‖W‖², with one-hot y_i."""

    X: Float[Array, "n d"]
    Y: Float[Array, "n classes"]
    penalty: Float[Array, ""]  # λ

    def __call__(self, W: Float[Array, "d classes"], theta: Parameters) -> Float[Array, ""]:
        logits = self.X @ W
        losses = jax.nn.logsumexp(logits, axis=1) - jnp.sum(self.Y * logits, axis=1)
        return jnp.mean(jnp.exp(theta) * losses) + 0.5 * self.penalty * jnp.sum(jnp.square(W))


class MultinomialOracle(AbstractOracle):
    """W* by Newton's method; ∂W*/∂θ_i = -K⁻¹ (ω_i / n) x_i ⊗ (p_i - y_i), with ω = e^θ.

    K = (1/n) Σ_i ω_i x_i x_iᵀ ⊗ (diag p_i - p_i p_iᵀ) + λI, with p_i the probabilities at W*."""

    X: Float[np.ndarray, "n d"]
    Y: Float[np.ndarray, "n classes"]
    penalty: Float[np.ndarray, ""]

    def solution(self, theta: Any) -> Float[np.ndarray, "d classes"]:
        return self._minimise(self._weights(theta)).astype(np.float64)

    def jacobian(self, theta: Any) -> Float[np.ndarray, "..."]:
        weights = self._weights(theta)
        W, X = self._minimise(weights), extended(self.X)
        P = _softmax(X @ W)

        def apply(s: np.ndarray) -> np.ndarray:
            Z = np.tensordot(X, s.reshape(*W.shape, -1), 1)  # (n, classes, m)
            Z = P[:, :, None] * (Z - np.sum(P[:, :, None] * Z, axis=1, keepdims=True))
            product = np.tensordot(X.T, weights[:, None, None] * Z, 1)
            return product.reshape(s.shape) + self.penalty * s

        rhs = np.einsum("n,nd,nc->dcn", -weights, X, P - self.Y).reshape(W.size, -1)
        rhs = rhs if np.ndim(theta) else np.sum(rhs, axis=1)
        jacobian = solve(self._hessian(W, weights), apply, rhs).astype(np.float64)
        return jacobian.reshape(*W.shape, *np.shape(theta))

    def spectrum(self, theta: Any) -> tuple[float, float]:
        """Bounds from 0 ⪯ diag p - ppᵀ ⪯ ½I   (Böhning, 1992)."""
        weights, penalty = self._weights(theta).astype(np.float64), float(self.penalty)
        largest = np.linalg.norm(np.sqrt(weights)[:, None] * self.X, 2)
        return penalty, float(largest**2 / 2 + penalty)

    def _weights(self, theta: Any) -> np.ndarray:
        """ω / n."""
        n = self.Y.shape[0]
        return np.broadcast_to(np.exp(as_hyperparameters(theta, (), (n,))), (n,)) / n

    def _hessian(self, W: np.ndarray, weights: np.ndarray) -> np.ndarray:
        X, weights = self.X, weights.astype(np.float64)
        P, classes = _softmax(X @ W.astype(np.float64)), range(W.shape[1])
        block = lambda a, b: (X.T * (weights * P[:, a] * ((a == b) - P[:, b]))) @ X
        H = np.array([[block(a, b) for b in classes] for a in classes])  # (classes, classes, d, d)
        return H.transpose(2, 0, 3, 1).reshape(W.size, W.size) + self.penalty * np.eye(W.size)

    def _minimise(self, weights: np.ndarray) -> np.ndarray:
        X, Y, penalty = extended(self.X), self.Y, self.penalty
        shape = X.shape[1], Y.shape[1]

        def value(w: np.ndarray) -> np.floating:
            Z = X @ w.reshape(shape)
            losses = np.logaddexp.reduce(Z, axis=1) - np.sum(Y * Z, axis=1)
            return np.sum(weights * losses) + penalty * np.sum(w**2) / 2

        def gradient(w: np.ndarray) -> np.ndarray:
            slopes = weights[:, None] * (_softmax(X @ w.reshape(shape)) - Y)
            return (X.T @ slopes).ravel() + penalty * w

        hessian = lambda w: self._hessian(w.reshape(shape), weights)
        return newton(value, gradient, hessian, shape[0] * shape[1]).reshape(shape)


def _softmax(Z: np.ndarray) -> np.ndarray:
    return np.exp(Z - np.logaddexp.reduce(Z, axis=1)[:, None])
