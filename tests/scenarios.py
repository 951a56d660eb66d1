"""Small problems of all four kinds, with their solutions and Jacobians in NumPy.

The oracles share no code with the library: closed forms, Newton's method by hand, and for the
elastic net a search through all supports and signs."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import dargmin
from dargmin import prox

RNG = np.random.default_rng(2026)
X = RNG.normal(size=(12, 4))
Y = RNG.normal(size=12)
LABELS = np.sign(Y)
GROUPS = np.array([0, 1, 0, 1])  # θ has two log-penalties, one for each group of coefficients
M = 0.5 * np.linalg.qr(RNG.normal(size=(4, 4)))[0]  # not symmetric, of norm ½
U, V = RNG.normal(size=(2, 4))


class Scenario(NamedTuple):
    """A problem with d = 4 and p = 2, where to start, and its oracle.

    `solution(theta)` has shape (4,), `jacobian(theta)` shape (4, 2)."""

    problem: Any
    solution: Callable
    jacobian: Callable
    x0: Any = jnp.array([0.3, -0.2, 0.1, 0.4])
    theta: Any = jnp.array([-0.7, 0.2])

    def second(self, theta, step=1e-3):
        """∂²x*, of shape (4, 2, 2), by five-point differences of the Jacobian: good to 1e-9."""
        weights = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
        columns = [
            sum(w * self.jacobian(theta + k * step * e) for k, w in weights.items()) / step
            for e in np.eye(2)
        ]
        return np.stack(columns, axis=-1)


class Ridge(eqx.Module):
    """½ mean (Xw - y)² + ½ Σ exp(θ_group) w²."""

    X: jax.Array
    y: jax.Array

    def __call__(self, w, theta):
        fit = 0.5 * jnp.mean((self.X @ w - self.y) ** 2)
        return fit + 0.5 * jnp.sum(jnp.exp(theta)[GROUPS] * w**2)


class Logistic(eqx.Module):
    """mean log(1 + exp(-y Xw)) + ½ Σ exp(θ_group) w²."""

    X: jax.Array
    y: jax.Array

    def __call__(self, w, theta):
        fit = jnp.mean(jax.nn.softplus(-self.y * (self.X @ w)))
        return fit + 0.5 * jnp.sum(jnp.exp(theta)[GROUPS] * w**2)


class LeastSquares(eqx.Module):
    X: jax.Array
    y: jax.Array

    def __call__(self, w, theta):
        return 0.5 * jnp.mean((self.X @ w - self.y) ** 2)


def penalty_change(theta, w):
    """∂_θ of the gradient of ½ Σ exp(θ_group) w²: one column for each group."""
    return np.stack([np.where(g == GROUPS, np.exp(theta[g]) * w, 0) for g in (0, 1)], axis=-1)


def ridge_matrix(theta):
    return X.T @ X / len(Y) + np.diag(np.exp(theta)[GROUPS])


def ridge_solution(theta, y=Y):
    return np.linalg.solve(ridge_matrix(theta), X.T @ y / len(Y))


def ridge_jacobian(theta):
    return -np.linalg.solve(ridge_matrix(theta), penalty_change(theta, ridge_solution(theta)))


def newton(residual, jacobian, x):
    for _ in range(50):
        x = x - np.linalg.solve(jacobian(x), residual(x))
    return x


def logistic_parts(theta):
    sigma = lambda w: 1 / (1 + np.exp(LABELS * (X @ w)))
    penalty = np.exp(theta)[GROUPS]
    gradient = lambda w: -X.T @ (LABELS * sigma(w)) / len(Y) + penalty * w
    curvature = lambda w: sigma(w) * (1 - sigma(w)) / len(Y)
    return gradient, lambda w: (X.T * curvature(w)) @ X + np.diag(penalty)


def logistic_solution(theta):
    return newton(*logistic_parts(theta), np.zeros(4))


def logistic_jacobian(theta):
    w = logistic_solution(theta)
    return -np.linalg.solve(logistic_parts(theta)[1](w), penalty_change(theta, w))


def contraction(x, theta):
    """A(x, θ) = tanh(Mx + θ₀u + θ₁²v)."""
    return jnp.tanh(jnp.asarray(M) @ x + theta[0] * jnp.asarray(U) + theta[1] ** 2 * jnp.asarray(V))


def contraction_solution(theta):
    x = np.zeros(4)
    for _ in range(200):
        x = np.tanh(M @ x + theta[0] * U + theta[1] ** 2 * V)
    return x


def contraction_jacobian(theta):
    slope = np.diag(1 - contraction_solution(theta) ** 2)
    inputs = np.stack([U, 2 * theta[1] * V], axis=-1)
    return np.linalg.solve(np.eye(4) - slope @ M, slope @ inputs)


def cubic(x, theta):
    """F(x, θ) = x + Mx + 0.3 x³ - θ₀u - exp(θ₁)v."""
    shift = theta[0] * jnp.asarray(U) + jnp.exp(theta[1]) * jnp.asarray(V)
    return x + jnp.asarray(M) @ x + 0.3 * x**3 - shift


def cubic_solution(theta):
    residual = lambda x: x + M @ x + 0.3 * x**3 - theta[0] * U - np.exp(theta[1]) * V
    return newton(residual, lambda x: np.eye(4) + M + np.diag(0.9 * x**2), np.zeros(4))


def cubic_jacobian(theta):
    jacobian = np.eye(4) + M + np.diag(0.9 * cubic_solution(theta) ** 2)
    return np.linalg.solve(jacobian, np.stack([U, np.exp(theta[1]) * V], axis=-1))


def elastic_net_on(support, signs, theta):
    """The stationary point with this support and these signs, and the Hessian on the support."""
    l1, l2 = np.exp(theta)
    H = (X.T @ X / len(Y) + l2 * np.eye(4))[np.ix_(support, support)]
    w = np.zeros(4)
    w[support] = np.linalg.solve(H, (X.T @ Y / len(Y))[support] - l1 * signs)
    return w, H


def elastic_net_support(theta):
    """The support and the signs at which the conditions of optimality hold."""
    l1, l2 = np.exp(theta)
    for pattern in itertools.product([-1, 0, 1], repeat=4):
        pattern = np.array(pattern)
        support = np.flatnonzero(pattern)
        w, _ = elastic_net_on(support, pattern[support], theta)
        gradient = X.T @ (X @ w - Y) / len(Y) + l2 * w
        if np.all(np.sign(w) == pattern) and np.all(np.abs(gradient[pattern == 0]) < l1):
            return support, pattern[support]
    raise AssertionError("no support satisfies the conditions of optimality")


def elastic_net_solution(theta):
    return elastic_net_on(*elastic_net_support(theta), theta)[0]


def elastic_net_jacobian(theta):
    support, signs = elastic_net_support(theta)
    w, H = elastic_net_on(support, signs, theta)
    change = np.stack([np.exp(theta[0]) * signs, np.exp(theta[1]) * w[support]], axis=-1)
    jacobian = np.zeros((4, 2))
    jacobian[support] = -np.linalg.solve(H, change)
    return jacobian


DATA = jnp.asarray(X), jnp.asarray(Y)
RIDGE = Scenario(dargmin.Objective(Ridge(*DATA)), ridge_solution, ridge_jacobian)
LOGISTIC = Scenario(
    dargmin.Objective(Logistic(DATA[0], jnp.asarray(LABELS))), logistic_solution, logistic_jacobian
)
FIXED_POINT = Scenario(dargmin.FixedPoint(contraction), contraction_solution, contraction_jacobian)
ROOT = Scenario(dargmin.Root(cubic), cubic_solution, cubic_jacobian)
ELASTIC_NET = Scenario(
    dargmin.Composite(
        LeastSquares(*DATA),
        prox.elastic_net(lambda theta: jnp.exp(theta[0]), lambda theta: jnp.exp(theta[1])),
    ),
    elastic_net_solution,
    elastic_net_jacobian,
    theta=jnp.array([-2.0, -1.0]),
)

RIDGE_EIGENVALUES = np.linalg.eigvalsh(ridge_matrix(np.asarray(RIDGE.theta)))
MU, L = RIDGE_EIGENVALUES[0], RIDGE_EIGENVALUES[-1]
