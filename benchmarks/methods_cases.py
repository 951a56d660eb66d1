"""The problems of methods.py: 24 quadratics in their eigenbasis, and 18 logistic regressions.

Quadratics are three vectors: the eigenvalues, a = dx_0 - dx* and c = dH (x_0 - x*). A method with
residual polynomials P_t has dx_t - dx* = P_t(Λ) a + P_t'(Λ) c there, if dH commutes with H."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.datasets import load_breast_cancer

import dargmin
from dargmin.problems import zoo

D = 400
CONDITIONS = (1e-2, 1e-4)  # κ = μ/L


def marchenko_pastur(kappa: float) -> np.ndarray:
    """Quantiles of the density ∝ √((L - λ)(λ - μ)) / λ, the edges included."""
    angle = np.linspace(0, np.pi, 100_001)
    lam = (1 + kappa) / 2 - (1 - kappa) / 2 * np.cos(angle)
    mass = np.cumsum(np.sin(angle) ** 2 / lam)
    return np.interp(np.linspace(0, 1, D), mass / mass[-1], lam)


SPECTRA: dict[str, Callable[[float], np.ndarray]] = {
    "Marchenko-Pastur": marchenko_pastur,
    "uniform": lambda kappa: np.linspace(kappa, 1, D),
    "log-uniform": lambda kappa: np.geomspace(kappa, 1, D),
    "power law": lambda kappa: np.sort(np.arange(1.0, D + 1) ** (np.log(kappa) / np.log(D))),
}

Target = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
TARGETS: dict[str, Target] = {
    "c = -Λa": lambda lam, g, h: (g, -lam * g),
    "c = Λg": lambda lam, g, h: (g, lam * h),
    "c = √(μL) g": lambda lam, g, h: (g, np.sqrt(lam[0] * lam[-1]) * h),
}
BEYOND: dict[str, Target] = {
    "x* white, c = -Λa": lambda lam, g, h: (h / lam, -h),
    "c = ‖Λ‖ g": lambda lam, g, h: (g, np.sqrt(np.mean(lam**2)) * h),
}


class Quadratic(NamedTuple):
    spectrum: str
    kappa: float
    target: str
    lam: np.ndarray
    a: np.ndarray
    c: np.ndarray

    @property
    def eta(self) -> float:
        """η = ‖c‖² / ‖a‖²."""
        return float(self.c @ self.c / (self.a @ self.a))


def quadratics(
    targets: dict[str, Target], conditions: tuple[float, ...]
) -> Iterator[list[Quadratic]]:
    """The families that share their eigenvalues, together."""
    rng = np.random.default_rng(0)
    for (name, spectrum), kappa in itertools.product(SPECTRA.items(), CONDITIONS):
        lam, (g, h) = spectrum(kappa), rng.normal(size=(2, D))
        if kappa in conditions:
            yield [Quadratic(name, kappa, t, lam, *targets[t](lam, g, h)) for t in targets]


class Logistic(eqx.Module):
    """(1/n) Σ_i e^{ω_i} log(1 + exp(-y_i x_iᵀw)) + ½ Σ_j e^{ρ_j} w_j², θ = (ρ, ω)."""

    X: Float[Array, "n d"]
    y: Float[Array, " n"]

    def __call__(self, w: Any, theta: Any) -> Any:
        penalty, weights = theta
        losses = jnp.exp(weights) * jax.nn.softplus(-self.y * (self.X @ w))
        return jnp.mean(losses) + 0.5 * jnp.sum(jnp.exp(penalty) * w**2)


class LogisticCase(NamedTuple):
    """One regularisation and one start; `tangents` and `derivatives` have an axis of three."""

    penalty: float
    start: str
    problem: dargmin.Objective
    x0: Array
    theta: Any
    tangents: Any
    derivatives: Array  # ∂x* θ̇
    nearby: Array  # the same at the penalty e^{1/2} e^ρ: what a previous outer step would know
    spectrum: tuple[float, float]


DIRECTIONS = ("scalar", "per feature", "data weights")


def logistic(penalties: tuple[float, ...]) -> Iterator[LogisticCase]:
    """breast_cancer, standardised, labels ±1."""
    X, labels = load_breast_cancer(return_X_y=True)
    X, y = (X - X.mean(0)) / X.std(0), 2.0 * labels - 1
    n, d = X.shape
    rng = np.random.default_rng(1)
    along = np.zeros((3, d)), np.zeros((3, n))
    along[0][0], along[0][1], along[1][2] = 1, rng.normal(size=d), rng.normal(size=n)
    far = 3 * rng.normal(size=d)
    problem = dargmin.Objective(Logistic(jnp.asarray(X), jnp.asarray(y)))
    for penalty, start in itertools.product(penalties, ("zero", "far")):
        x0 = np.zeros(d) if start == "zero" else far
        yield LogisticCase(
            penalty, start, problem, jnp.asarray(x0),
            theta=(jnp.full(d, penalty), jnp.zeros(n)),
            tangents=jax.tree.map(jnp.asarray, along),
            derivatives=jnp.asarray(exact_derivatives(X, y, penalty, *along)),
            nearby=jnp.asarray(exact_derivatives(X, y, penalty + 0.5, *along)),
            spectrum=zoo.logistic(X, y).spectrum(penalty),
        )  # fmt: skip


def exact_derivatives(
    X: np.ndarray, y: np.ndarray, penalty: float, along_penalty: np.ndarray, along_weights: Any
) -> np.ndarray:
    """-K⁻¹ ∂_θ∇f θ̇ at the solution, which the zoo has by Newton's method in extended precision."""
    instance, n = zoo.logistic(X, y), y.size
    w, p = instance.solution(penalty), np.exp(penalty)
    s = 1 / (1 + np.exp(y * (X @ w)))  # the slope of the loss is -y s, its curvature s (1 - s)
    K = (X.T * (s * (1 - s) / n)) @ X + p * np.eye(w.size)
    found = -np.linalg.solve(K, (p * w * along_penalty - (y * s * along_weights / n) @ X).T).T
    want = instance.jacobian(np.full(w.size, penalty)) @ along_penalty[1]
    assert np.linalg.norm(found[1] - want) < 1e-9 * np.linalg.norm(want)
    return found
