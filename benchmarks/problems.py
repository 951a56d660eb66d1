"""The problems on which the libraries are compared, each with its exact hypergradient.

All data are arguments of the compiled programs, not constants in them. The exact answers come from
NumPy: closed forms and Newton's method, to rounding, on the dense system of the optimality
conditions."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes


class Case(NamedTuple):
    """d φ(x*(θ), θ) / dθ is asked for, where x*(θ) minimises f (+ g, by `prox`) or is f's fixed
    point."""

    name: str
    kind: str  # "smooth", "composite" or "fixed point"
    f: Any  # (x, θ) -> scalar; for a fixed point (x, θ) -> x
    outer: Any  # φ(x, θ)
    x0: jax.Array
    theta: jax.Array
    truth: np.ndarray
    L: float  # of the smooth part: peers that need a step size get it for nothing
    condition: float
    penalty: str = ""  # "l1" or "elastic net"
    quadratic: bool = False
    sweep: str = ""  # what is varied, if this is a point of a sweep


class Ridge(eqx.Module):
    """½ mean (Xw - y)² + ½ Σ e^{(Gθ)_j} w_j²: every hyperparameter has a group of coordinates."""

    X: jax.Array
    y: jax.Array
    group: jax.Array

    def __call__(self, w: Any, theta: Any) -> Any:
        residual = self.X @ w - self.y
        return 0.5 * (jnp.mean(residual**2) + jnp.sum(jnp.exp(theta[self.group]) * w**2))


class Logistic(eqx.Module):
    """mean log(1 + e^{-y Xw}) + ½ Σ e^θⱼ wⱼ²."""

    X: jax.Array
    y: jax.Array

    def __call__(self, w: Any, theta: Any) -> Any:
        loss = jnp.mean(jax.nn.softplus(-self.y * (self.X @ w)))
        return loss + 0.5 * jnp.sum(jnp.exp(theta) * w**2)


class Softmax(eqx.Module):
    """mean σ(θᵢ) (logsumexp(xᵢW) - xᵢW_{yᵢ}) + ½ λ ‖W‖²: a weight for each datum."""

    X: jax.Array
    labels: jax.Array  # one-hot
    penalty: jax.Array

    def __call__(self, w: Any, theta: Any) -> Any:
        scores = self.X @ w.reshape(self.X.shape[1], -1)
        losses = jax.nn.logsumexp(scores, axis=1) - jnp.sum(self.labels * scores, axis=1)
        return jnp.mean(jax.nn.sigmoid(theta) * losses) + 0.5 * self.penalty * jnp.vdot(w, w)


class LeastSquares(eqx.Module):
    """½ mean (Xw - y)²."""

    X: jax.Array
    y: jax.Array

    def __call__(self, w: Any, theta: Any) -> Any:
        return 0.5 * jnp.mean((self.X @ w - self.y) ** 2)


class Layer(eqx.Module):
    """tanh(Z W(θ) + U), the equilibrium layer, for a batch of inputs; W = θ as a matrix."""

    U: jax.Array

    def __call__(self, z: Any, theta: Any) -> Any:
        h = self.U.shape[1]
        return jnp.tanh(z.reshape(self.U.shape) @ theta.reshape(h, h) + self.U).reshape(-1)


class Quartic(eqx.Module):
    """½ Σ e^θⱼ aⱼ xⱼ² + ¼ Σ xⱼ⁴ - bᵀx: no data matrix, a hyperparameter for each coordinate."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x: Any, theta: Any) -> Any:
        return jnp.sum(self.a * jnp.exp(theta) * x**2 / 2 + x**4 / 4 - self.b * x)


class Aim(eqx.Module):
    """½ mean (x - a)²."""

    a: jax.Array

    def __call__(self, x: Any, theta: Any) -> Any:
        return 0.5 * jnp.mean((x - self.a) ** 2)


def cases(quick: bool = False, scale: int = 1) -> dict[str, Callable[[], Case]]:
    """The problems of the table by name, the small ones only if `quick`; built when called. With a
    `scale`, those with a data matrix, of as many times the rows and the columns."""
    small = {
        "ridge diabetes": diabetes,
        "logistic breast_cancer": breast_cancer,
    }
    if quick:
        return small | {
            "ridge 200x50": lambda: ridge(200, 50, 1e2, "ridge 200x50"),
            "elastic net 50x100": lambda: sparse("elastic net", 50, 100),
        }
    if scale > 1:
        n, d = 2000 * scale, 500 * scale
        return {
            f"ridge x{scale}": lambda: ridge(n, d, 1e4, f"ridge {n}x{d}, condition 1e4"),
            f"logistic x{scale}": lambda: large_logistic(5000 * scale, 1000 * scale),
            f"elastic net x{scale}": lambda: sparse("elastic net", 500 * scale, 1000 * scale),
        }
    return {
        "ridge diabetes": diabetes,
        "ridge 1e2": lambda: ridge(2000, 500, 1e2, "ridge 2000x500, condition 1e2"),
        "ridge 1e4": lambda: ridge(2000, 500, 1e4, "ridge 2000x500, condition 1e4"),
        "logistic breast_cancer": breast_cancer,
        "logistic 5000x1000": large_logistic,
        "softmax": softmax,
        "elastic net": lambda: sparse("elastic net", 500, 1000),
        "lasso": lambda: sparse("l1", 500, 1000),
        "equilibrium": equilibrium,
    }


def sweeps() -> Iterator[Callable[[], Case]]:
    """How the cost grows: with the condition, with d, and with the number of hyperparameters."""
    for condition in (1e1, 1e2, 1e3, 1e4, 1e5, 1e6):
        yield lambda c=condition: ridge(400, 200, c, f"ridge 400x200, condition {c:.0e}")._replace(
            sweep="condition"
        )
    for d in (10**2, 10**3, 10**4, 10**5, 10**6):
        yield lambda d=d: quartic(d)._replace(sweep="d")
    for p in (1, 10, 100, 1000, 10_000):
        yield lambda p=p: many_penalties(p)._replace(sweep="hyperparameters")


def diabetes() -> Case:
    X, y = load_diabetes(return_X_y=True)
    X, y = _standard(X), _standard(y)
    return _ridge("ridge diabetes", X[::2], y[::2], X[1::2], y[1::2], np.array([-3.0]))


def ridge(n: int, d: int, condition: float, name: str) -> Case:
    rng = np.random.default_rng(int(condition) + d)
    X = _with_spectrum(rng, n, d, np.geomspace(1, 1 / condition, d))
    w = rng.normal(size=d)
    y, V = X @ w + 0.1 * rng.normal(size=n), rng.normal(size=(n // 4, d)) / np.sqrt(d)
    return _ridge(name, X, y, V, V @ w, np.full(d, np.log(1e-2 / condition)))


def many_penalties(p: int) -> Case:
    rng = np.random.default_rng(p)
    n, d = 100, 10_000
    X = rng.normal(size=(n, d)) / np.sqrt(d / n)
    w, V = rng.normal(size=d) * (rng.uniform(size=d) < 0.1), rng.normal(size=(n, d)) / np.sqrt(d)
    return _ridge(f"ridge 100x10000, {p} penalties", X, X @ w, V, V @ w, np.full(p, -2.0))


def _ridge(name: str, X: Any, y: Any, V: Any, v: Any, theta: np.ndarray) -> Case:
    (n, d), p = X.shape, theta.size
    group = np.arange(d) * p // d
    penalty = np.exp(theta)[group]
    if d <= 2000:
        H = X.T @ X / n + np.diag(penalty)
        solve = lambda r: np.linalg.solve(H, r)
        values = np.linalg.eigvalsh(H)
    else:  # (D + XᵀX/n)⁻¹ through the n x n system
        inner = n * np.eye(n) + (X / penalty) @ X.T
        solve = lambda r: r / penalty - X.T @ np.linalg.solve(inner, X @ (r / penalty)) / penalty
        values = np.array([penalty.min(), np.linalg.norm(X, 2) ** 2 / n + penalty.max()])
    w = solve(X.T @ y / n)
    adjoint = solve(V.T @ (V @ w - v) / len(v))
    truth = np.bincount(group, -adjoint * penalty * w, p)
    f = Ridge(jnp.asarray(X), jnp.asarray(y), jnp.asarray(group))
    outer = LeastSquares(jnp.asarray(V), jnp.asarray(v))
    return Case(
        name, "smooth", f, outer, jnp.zeros(d), jnp.asarray(theta), truth, float(values[-1]),
        float(values[-1] / values[0]), quadratic=True,
    )  # fmt: skip


def breast_cancer() -> Case:
    X, y = load_breast_cancer(return_X_y=True)
    X, y = _standard(X), 2.0 * y - 1
    return _logistic("logistic breast_cancer", X[::2], y[::2], X[1::2], y[1::2], -5.0)


def large_logistic(n: int = 5000, d: int = 1000) -> Case:
    rng = np.random.default_rng(5)
    X = rng.normal(size=(n + 1000, d)) * np.geomspace(1, 0.1, d)
    y = np.sign(X @ rng.normal(size=d) + 3 * rng.logistic(size=len(X)))
    return _logistic(f"logistic {n}x{d}", X[:n], y[:n], X[n:], y[n:], -6.0)


def _logistic(name: str, X: Any, y: Any, V: Any, v: Any, log_penalty: float) -> Case:
    (n, d), penalty = X.shape, np.exp(log_penalty)
    w = np.zeros(d)
    curvature = lambda m: 1 / ((1 + np.exp(m)) * (1 + np.exp(-m)))
    for _ in range(60):
        margin = y * (X @ w)
        gradient = -X.T @ (y / (1 + np.exp(margin))) / n + penalty * w
        H = (X.T * curvature(margin)) @ X / n + penalty * np.eye(d)
        step = np.linalg.solve(H, gradient)
        w = w - step / max(1, np.linalg.norm(step) / 2)
        if np.linalg.norm(step) < 1e-13 * np.linalg.norm(w):
            break
    assert np.linalg.norm(step) < 1e-10 * np.linalg.norm(w)
    cotangent = -V.T @ (v / (1 + np.exp(v * (V @ w)))) / len(v)
    truth = -np.linalg.solve(H, cotangent) * penalty * w
    values = np.linalg.eigvalsh(H)
    L = np.linalg.norm(X, 2) ** 2 / (4 * n) + penalty
    f = Logistic(jnp.asarray(X), jnp.asarray(y))
    outer = _Validation(jnp.asarray(V), jnp.asarray(v))
    theta = jnp.full(d, log_penalty)
    return Case(
        name, "smooth", f, outer, jnp.zeros(d), theta, truth, float(L), values[-1] / values[0]
    )


class _Validation(eqx.Module):
    """mean log(1 + e^{-y Xw})."""

    X: jax.Array
    y: jax.Array

    def __call__(self, w: Any, theta: Any) -> Any:
        return jnp.mean(jax.nn.softplus(-self.y * (self.X @ w)))


class _SoftmaxValidation(eqx.Module):
    """mean (logsumexp(xᵢW) - xᵢW_{yᵢ})."""

    X: jax.Array
    labels: jax.Array

    def __call__(self, w: Any, theta: Any) -> Any:
        scores = self.X @ w.reshape(self.X.shape[1], -1)
        return jnp.mean(jax.nn.logsumexp(scores, axis=1) - jnp.sum(self.labels * scores, axis=1))


def softmax() -> Case:
    """W lies in the span of the rows of X: the truth is found there, in n·k coordinates, by
    conjugate gradients on the Newton systems of the exact problem, to 1e-13."""
    rng = np.random.default_rng(7)
    n, d, k, penalty = 1000, 5000, 10, 1e-4
    X = rng.normal(size=(n + 200, d)) * np.geomspace(1, 0.1, d)
    X *= 3 / np.linalg.norm(X, axis=1).mean()
    teacher = rng.normal(size=(d, k))
    labels = np.eye(k)[np.argmax(X @ teacher + 0.3 * rng.gumbel(size=(n + 200, k)), axis=1)]
    A, Y, V, T = X[:n], labels[:n], X[n:], labels[n:]
    theta = rng.normal(size=n)
    weight = 1 / (1 + np.exp(-theta)) / n

    def probabilities(Z: np.ndarray) -> np.ndarray:
        E = np.exp(Z - Z.max(axis=1, keepdims=True))
        return E / E.sum(axis=1, keepdims=True)

    gram = A @ A.T  # W = Aᵀ C has the scores A W = gram C

    def product(P: np.ndarray, S: np.ndarray) -> np.ndarray:
        """The Hessian of the losses, on scores."""
        PS = P * S
        return weight[:, None] * (PS - P * PS.sum(axis=1, keepdims=True))

    def solve(P: np.ndarray, R: np.ndarray) -> np.ndarray:
        """C with λ C + B(P) gram C = R: K⁻¹ AᵀR = AᵀC."""
        C, r = np.zeros_like(R), R.copy()
        p, rho = r.copy(), np.sum(r * (gram @ r))
        first = np.sqrt(rho)
        for _ in range(3000):  # conjugate gradients in the inner product of W = AᵀC
            q = penalty * p + product(P, gram @ p)
            a = rho / np.sum(p * (gram @ q))
            C, r = C + a * p, r - a * q
            following = np.sum(r * (gram @ r))
            if np.sqrt(following) < 1e-14 * first:
                break
            p, rho = r + following / rho * p, following
        return C

    C = np.zeros((n, k))
    for _ in range(30):
        P = probabilities(gram @ C)
        G = weight[:, None] * (P - Y) + penalty * C
        step = solve(P, G)
        C = C - step
        if np.linalg.norm(step) < 1e-14 * np.linalg.norm(C):
            break
    W, P = A.T @ C, probabilities(gram @ C)
    c = V.T @ (probabilities(V @ W) - T) / len(V)
    # K = λ + Aᵀ B A, so that K⁻¹ c = (c - Aᵀ D) / λ with λ D + B gram D = B A c
    D = solve(P, product(P, A @ c))
    adjoint = (c - A.T @ D) / penalty
    slope = weight * (1 - 1 / (1 + np.exp(-theta)))
    truth = -slope * np.sum((P - Y) * (A @ adjoint), axis=1)
    L = np.linalg.norm(A, 2) ** 2 * weight.max() / 2 + penalty
    f = Softmax(jnp.asarray(A), jnp.asarray(Y), jnp.asarray(penalty))
    outer = _SoftmaxValidation(jnp.asarray(V), jnp.asarray(T))
    return Case(
        "softmax 50000 parameters", "smooth", f, outer, jnp.zeros(d * k), jnp.asarray(theta), truth,
        float(L), float(L / penalty),
    )  # fmt: skip


def sparse(penalty: str, n: int, d: int) -> Case:
    """Coordinate descent finds the support; the derivative is a dense solve on it."""
    rng = np.random.default_rng(11)
    X = rng.normal(size=(n + n // 2, d)) @ _correlate(d, 0.3)
    w_true = rng.normal(size=d) * (rng.uniform(size=d) < 0.05)
    y = X @ w_true + 0.5 * rng.normal(size=len(X))
    X, V, y, v = X[:n], X[n:], y[:n], y[n:]
    l1 = 0.05 * np.max(np.abs(X.T @ y)) / n
    l2 = 1e-2 if penalty == "elastic net" else 0.0
    H, b = X.T @ X / n, X.T @ y / n
    w = np.zeros(d)
    for _ in range(3000):
        before = w.copy()
        for j in range(d):
            u = b[j] - H[j] @ w + H[j, j] * w[j]
            w[j] = np.sign(u) * max(abs(u) - l1, 0) / (H[j, j] + l2)
        if np.max(np.abs(w - before)) < 1e-9:
            break
    S = np.flatnonzero(w)
    K, s = H[np.ix_(S, S)] + l2 * np.eye(S.size), np.sign(w[S])
    w[S] = np.linalg.solve(K, b[S] - l1 * s)
    slack = np.abs(b - H @ w - l2 * w)
    assert np.all(np.sign(w[S]) == s) and np.all(np.delete(slack, S) < l1)
    adjoint = np.linalg.solve(K, V[:, S].T @ (V @ w - v) / len(v))
    truth, theta = [-l1 * adjoint @ s], [np.log(l1)]
    if l2:
        truth, theta = [*truth, -l2 * adjoint @ w[S]], [*theta, np.log(l2)]
    values = np.linalg.eigvalsh(K)
    return Case(
        f"{'lasso' if penalty == 'l1' else penalty} {n}x{d}", "composite",
        LeastSquares(jnp.asarray(X), jnp.asarray(y)),
        LeastSquares(jnp.asarray(V), jnp.asarray(v)), jnp.zeros(d), jnp.asarray(theta),
        np.array(truth), float(np.linalg.norm(H, 2)), values[-1] / values[0], penalty=penalty,
    )  # fmt: skip


def equilibrium() -> Case:
    rng = np.random.default_rng(13)
    batch, h = 32, 100
    W = rng.normal(size=(h, h))
    W *= 0.95 / np.linalg.norm(W, 2)
    U = 0.3 * rng.normal(size=(batch, h))
    aim, z = rng.normal(size=(batch, h)), np.zeros((batch, h))
    for _ in range(5000):
        z = np.tanh(z @ W + U)
    slope = 1 - z**2
    truth = np.zeros((h, h))
    for i in range(batch):  # (I - diag(s) Wᵀ)ᵀ λ = (z - a) / size
        K = np.eye(h) - slope[i][:, None] * W.T
        adjoint = np.linalg.solve(K.T, (z[i] - aim[i]) / z.size)
        truth += np.outer(z[i], adjoint * slope[i])
    return Case(
        "equilibrium layer, 10000 weights", "fixed point", Layer(jnp.asarray(U)),
        Aim(jnp.asarray(aim.ravel())), jnp.zeros(batch * h), jnp.asarray(W.ravel()), truth.ravel(),
        1.0, float(np.linalg.cond(np.eye(h) - slope[0][:, None] * W.T)),
    )  # fmt: skip


def quartic(d: int) -> Case:
    rng = np.random.default_rng(d)
    a, b, aim = rng.uniform(0.1, 1, d), rng.normal(size=d), rng.normal(size=d)
    x = np.zeros(d)
    for _ in range(60):
        x = x - (a * x + x**3 - b) / (a + 3 * x**2)
    truth = -(x - aim) / d / (a + 3 * x**2) * a * x
    f = Quartic(jnp.asarray(a), jnp.asarray(b))
    h = a + 3 * x**2
    return Case(
        f"quartic, d = {d}", "smooth", f, Aim(jnp.asarray(aim)), jnp.zeros(d), jnp.zeros(d), truth,
        float(h.max()), float(h.max() / h.min()),
    )  # fmt: skip


def _standard(a: np.ndarray) -> np.ndarray:
    return (a - a.mean(axis=0)) / a.std(axis=0)


def _with_spectrum(rng: np.random.Generator, n: int, d: int, values: np.ndarray) -> np.ndarray:
    """X with these eigenvalues of XᵀX / n."""
    left = np.linalg.qr(rng.normal(size=(n, d)))[0]
    right = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return np.sqrt(n) * (left * np.sqrt(values)) @ right.T


def _correlate(d: int, rho: float) -> np.ndarray:
    """A factor of the matrix ρ^|i-j|."""
    index = np.arange(d)
    return np.linalg.cholesky(rho ** np.abs(index[:, None] - index)).T
