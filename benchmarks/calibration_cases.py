"""Random problems with exact answers, for calibration.py.

Every derivative that is estimated there is compared with what stands here: closed forms and dense
solves in NumPy, float64 or wider, on the data as rounded to the precision under test."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import dargmin
from dargmin.methods import AbstractMethod
from dargmin.problems import AbstractProblem, zoo

PARAMETERS = 3  # θ is in ℝ³, unless said otherwise
SPECTRA = ("uniform", "log", "clustered", "Marchenko-Pastur")
CONDITIONS = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)


class Case(NamedTuple):
    """A problem at one θ, how to walk to its solution, and the exact answer."""

    family: str
    name: str
    problem: AbstractProblem
    x0: Array
    theta: Array
    methods: dict[str, AbstractMethod]
    steps: int
    solution: np.ndarray
    jacobian: np.ndarray  # (d, p)
    condition: float  # of ∂ₓF at the solution, or of its restriction to the support

    @property
    def rounding(self) -> float:
        """ε κ √d, below which relative errors are noise."""
        return float(np.finfo(self.x0.dtype).eps * self.condition * self.x0.size**0.5)


class DenseQuadratic(eqx.Module):
    """½ xᵀ(H + Σ_j θ_j E_j) x - (b + Bθ)ᵀx."""

    H: Float[Array, "d d"]
    E: Float[Array, "p d d"]
    b: Float[Array, " d"]
    B: Float[Array, "d p"]

    def __call__(self, x: Array, theta: Array) -> Array:
        curved = self.H @ x + jnp.tensordot(theta, self.E, 1) @ x
        return 0.5 * jnp.vdot(x, curved) - jnp.vdot(x, self.b + self.B @ theta)


class ReflectedQuadratic(eqx.Module):
    """½ xᵀ(R diag(h) R + Σ_j θ_j S diag(e_j) S) x - (b + Bθ)ᵀx with two reflections R and S:
    large, dense, not commuting, and cheap."""

    h: Float[Array, " d"]
    e: Float[Array, "p d"]
    b: Float[Array, " d"]
    B: Float[Array, "d p"]
    r: Float[Array, " d"]
    s: Float[Array, " d"]

    def __call__(self, x: Array, theta: Array) -> Array:
        Rx, Sx = _reflect(self.r, x), _reflect(self.s, x)
        curved = jnp.vdot(Rx, self.h * Rx) + jnp.vdot(Sx, (theta @ self.e) * Sx)
        return 0.5 * curved - jnp.vdot(x, self.b + self.B @ theta)


class Directions(eqx.Module):
    """A function of (x, θ₀ + Dτ): the derivative in p directions of a longer θ."""

    function: Any
    theta: Array
    D: Array

    def __call__(self, x: Array, tau: Array) -> Array:
        return self.function(x, self.theta + self.D @ tau)


class AffineMap(eqx.Module):
    """(B + Σ_j θ_j E_j) x + c + Cθ."""

    B: Float[Array, "d d"]
    E: Float[Array, "p d d"]
    c: Float[Array, " d"]
    C: Float[Array, "d p"]

    def __call__(self, x: Array, theta: Array) -> Array:
        return self.B @ x + jnp.tensordot(theta, self.E, 1) @ x + self.c + self.C @ theta


class Layer(eqx.Module):
    """tanh(Wx + c + Cθ), a deep equilibrium network in small."""

    W: Float[Array, "d d"]
    c: Float[Array, " d"]
    C: Float[Array, "d p"]

    def __call__(self, x: Array, theta: Array) -> Array:
        return jnp.tanh(self.W @ x + self.c + self.C @ theta)


class Outer(eqx.Module):
    """φ(x, θ) = ½‖x - a‖² + ½ w ‖θ - 1‖²."""

    a: Array
    w: Array

    def __call__(self, x: Array, theta: Array) -> Array:
        distances = jnp.sum(jnp.square(x - self.a)), jnp.sum(jnp.square(theta - 1))
        return 0.5 * (distances[0] + self.w * distances[1])


def spectrum(kind: str, condition: float, d: int, rng: np.random.Generator) -> np.ndarray:
    """d eigenvalues from 1 / condition to 1."""
    low = 1 / condition
    if kind == "uniform":
        values = rng.uniform(low, 1, d)
    elif kind == "log":
        values = low ** rng.uniform(0, 1, d)
    elif kind == "clustered":
        centres = np.geomspace(low, 1, 4)
        values = np.clip(rng.choice(centres, d) * rng.uniform(0.9, 1.1, d), low, 1)
    else:  # Marchenko-Pastur of ratio 1: the quarter circle law, squared; plus a ridge
        values = rng.uniform(0, 1, d) * np.cos(2 * np.pi * rng.uniform(0, 1, d)) ** 2
        values = low + (1 - low) * values
    values[:2] = low, 1
    return values


def cases(dtype: Any, quick: bool) -> Iterator[Case]:
    """All problems in one precision; the same random numbers on every run."""
    conditions = CONDITIONS[::3] if quick else CONDITIONS
    for i, condition in enumerate(conditions):
        for j, kind in enumerate(SPECTRA):
            for seed in range(1 if quick else 2):
                yield dense_quadratic(kind, condition, np.random.default_rng([i, j, seed]), dtype)
            yield large_quadratic(kind, condition, np.random.default_rng([i, j, 9]), dtype)
    for seed in range(3 if quick else 18):
        yield logistic(seed, dtype)
        yield elastic_net(seed, dtype)
    for rho in (0.9, 0.999) if quick else (0.5, 0.9, 0.99, 0.999):
        for seed in range(1 if quick else 4):
            yield affine(rho, seed, dtype)
            yield layer(rho, seed, dtype)


def dense_quadratic(kind: str, condition: float, rng: np.random.Generator, dtype: Any) -> Case:
    d, p = 40, PARAMETERS
    values = spectrum(kind, condition, d, rng)
    Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    power = lambda a: (Q * values**a) @ Q.T
    # A change of H between "as large anywhere" (a = 0) and "in proportion to H" (a = 1/2), and a
    # solution between "as large anywhere" and "large where H is": the curse needs the latter.
    a, smooth = rng.choice([0, 0.25, 0.5]), rng.choice([1, 2])
    E = np.stack([power(a) @ _symmetric(rng, d) @ power(a) for _ in range(p)])
    b = power(smooth) @ rng.normal(size=d)
    f = DenseQuadratic(*_arrays(dtype, power(1), E, b, power(smooth) @ rng.normal(size=(d, p))))
    H, E, b, B = _wide(f.H, f.E, f.b, f.B)
    H = (H + H.T) / 2  # what the gradient of a quadratic form sees
    x = np.linalg.solve(H, b)
    jacobian = np.linalg.solve(H, B - np.einsum("jkl,l->kj", (E + E.transpose(0, 2, 1)) / 2, x))
    return _smooth("quadratic", f"{kind} {condition:.0e}", f, rng, dtype, 3000, x, jacobian, H)


def large_quadratic(kind: str, condition: float, rng: np.random.Generator, dtype: Any) -> Case:
    d, p = 2500, PARAMETERS
    h = spectrum(kind, condition, d, rng)
    r, s, z = rng.normal(size=(3, d))
    e = rng.normal(size=(p, d)) * np.sqrt(h)
    b, B = _reflect(r, h * z), rng.normal(size=(d, p)) * np.sqrt(h)[:, None]
    f = ReflectedQuadratic(*_arrays(dtype, h, e, b, B, r, s))
    h, e, b, B, r, s = _wide(f.h, f.e, f.b, f.B, f.r, f.s)
    inverse = lambda v: _reflect(r, _reflect(r, v) / h)
    x = inverse(b)
    columns = [inverse(B[:, j] - _reflect(s, e[j] * _reflect(s, x))) for j in range(p)]
    return _smooth(
        "large quadratic", f"{kind} {condition:.0e}", f, rng, dtype, 600, x, np.stack(columns, 1), h
    )


def logistic(seed: int, dtype: Any) -> Case:
    rng = np.random.default_rng([10, seed])
    n, d = 120, 30
    X = rng.normal(size=(n, d)) * np.geomspace(1, rng.choice([1, 0.1, 0.01]), d)
    labels = (X @ rng.normal(size=d) * 2 + rng.logistic(size=n) > 0).astype(int)
    base = zoo.logistic(X.astype(dtype), labels)
    theta0, D = rng.uniform(-9, -3) * np.ones(d), rng.normal(size=(d, PARAMETERS))
    f = Directions(base.problem.f, *_arrays(dtype, theta0, D))
    theta0, D = _wide(f.theta, f.D)
    x, jacobian = base.solution(theta0), base.jacobian(theta0) @ D
    c = np.exp(-np.logaddexp(0, X @ x) - np.logaddexp(0, -X @ x)) / n
    H = (X.T * c) @ X + np.diag(np.exp(theta0))
    name = f"penalty {np.exp(theta0[0]):.0e}"
    case = _smooth("logistic", name, f, rng, dtype, 3000, x, jacobian, H)
    return case._replace(methods=_methods(*base.spectrum(theta0), dtype))


def elastic_net(seed: int, dtype: Any) -> Case:
    rng = np.random.default_rng([11, seed])
    n, d = 50, 80
    X = rng.normal(size=(n, d)) @ np.linalg.cholesky(0.5 * np.eye(d) + 0.5).T
    y = X @ (rng.normal(size=d) * (rng.uniform(size=d) < 0.1)) + 0.5 * rng.normal(size=n)
    X, y = X.astype(dtype), y.astype(dtype)
    largest = np.max(np.abs(X.T @ y)) / n
    theta = np.log([largest * rng.choice([0.3, 0.1, 0.03]), 10.0 ** rng.uniform(-4, -1)])
    theta = np.asarray(theta, dtype)
    instance = zoo.elastic_net(X, y)
    x, jacobian = instance.solution(theta), instance.jacobian(theta)
    S = np.nonzero(x)[0]
    H = X[:, S].astype(float).T @ X[:, S] / n + np.exp(float(theta[1])) * np.eye(S.size)
    method = {"FISTA": dargmin.ProximalGradient()}
    name = f"{S.size} of {d}"
    x0 = jnp.asarray(rng.normal(size=d) * rng.choice([0, 1]), dtype)
    return Case(
        "elastic net", name, instance.problem, x0, jnp.asarray(theta), method, 3000, x, jacobian,
        float(np.linalg.cond(H)),
    )  # fmt: skip


def affine(rho: float, seed: int, dtype: Any) -> Case:
    rng = np.random.default_rng([12, seed, int(1e3 * rho)])
    d, p = 80, PARAMETERS
    B = rng.normal(size=(d, d))
    B *= rho / np.max(np.abs(np.linalg.eigvals(B)))
    E = rng.normal(size=(p, d, d)) / np.sqrt(d)
    A = AffineMap(*_arrays(dtype, B, E, rng.normal(size=d), rng.normal(size=(d, p))))
    B, E, c, C = _wide(A.B, A.E, A.c, A.C)
    K = np.eye(d) - B
    x = np.linalg.solve(K, c)
    jacobian = np.linalg.solve(K, np.einsum("jkl,l->kj", E, x) + C)
    return _fixed_point("affine map", f"rho {rho}", A, rng, dtype, x, jacobian, K)


def layer(rho: float, seed: int, dtype: Any) -> Case:
    rng = np.random.default_rng([13, seed, int(1e3 * rho)])
    d, p = 30, PARAMETERS
    W = rng.normal(size=(d, d))
    W *= rho / np.linalg.norm(W, 2)  # a contraction, the tanh being one
    size = rng.choice([0.01, 0.1, 1])  # a small c leaves tanh, and the contraction, at its steepest
    A = Layer(*_arrays(dtype, W, size * rng.normal(size=d), rng.normal(size=(d, p))))
    W, c, C = _wide(A.W, A.c, A.C)
    x = np.zeros(d)
    for _ in range(3000):
        x = np.tanh(W @ x + c)
    for _ in range(20):
        slope = 1 - np.tanh(W @ x + c) ** 2
        x = x - np.linalg.solve(np.eye(d) - slope[:, None] * W, x - np.tanh(W @ x + c))
    slope = 1 - np.tanh(W @ x + c) ** 2
    K = np.eye(d) - slope[:, None] * W
    jacobian = np.linalg.solve(K, slope[:, None] * C)
    return _fixed_point("tanh layer", f"rho {rho}", A, rng, dtype, x, jacobian, K)


def _smooth(
    family: str, name: str, f: Any, rng: Any, dtype: Any, steps: int, x: np.ndarray,
    jacobian: np.ndarray, hessian: np.ndarray,
) -> Case:  # fmt: skip
    """An Objective with the Hessian (or its eigenvalues) at its solution."""
    values = np.linalg.eigvalsh(hessian) if hessian.ndim == 2 else hessian
    mu, L = float(np.min(values)), float(np.max(values))
    x0 = jnp.asarray(rng.normal(size=x.size) * rng.choice([0, 1]), dtype)
    return Case(
        family, name, dargmin.Objective(f), x0, jnp.zeros(jacobian.shape[1], dtype),
        _methods(mu, L, dtype), steps, x, jacobian, L / mu,
    )  # fmt: skip


def _fixed_point(
    family: str, name: str, A: Any, rng: Any, dtype: Any, x: np.ndarray, jacobian: np.ndarray,
    K: np.ndarray,
) -> Case:  # fmt: skip
    method = {"fixed-point iteration": dargmin.FixedPointIteration()}
    x0 = jnp.asarray(rng.normal(size=x.size) * rng.choice([0, 1]), dtype)
    return Case(
        family, name, dargmin.FixedPoint(A), x0, jnp.zeros(jacobian.shape[1], dtype), method, 3000,
        x, jacobian, float(np.linalg.cond(K)),
    )  # fmt: skip


def _methods(mu: float, L: float, dtype: Any) -> dict[str, AbstractMethod]:
    low, high = np.asarray(mu, dtype), np.asarray(L * 1.0001, dtype)
    return {
        "gradient descent": dargmin.GradientDescent(2 / (low + high)),
        "heavy ball": dargmin.HeavyBall.tuned(low, high, start="plain"),
        "Chebyshev": dargmin.Chebyshev(low, high),
    }


def _symmetric(rng: np.random.Generator, d: int) -> np.ndarray:
    S = rng.normal(size=(d, d)) / np.sqrt(d)
    return (S + S.T) / 2


def _reflect(u: Any, v: Any) -> Any:
    return v - u * (2 * (u @ v) / (u @ u))


def _arrays(dtype: Any, *arrays: np.ndarray) -> list[Array]:
    return [jnp.asarray(array, dtype) for array in arrays]


def _wide(*arrays: Array) -> list[np.ndarray]:
    return [np.asarray(array, np.float64) for array in arrays]
