"""Families of random problems for calibration_promise.py: what each minimises, and from what data.

A family draws its data with NumPy, builds a dargmin problem from them, and says in its own words
what a solution is: an objective f, or a map T with x* = T(x*). calibration_oracle.py makes the
truth from f and T, and from nothing of the library."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp, softplus
from jax.scipy.linalg import solve_triangular
from jax.tree_util import Partial

from dargmin import Composite, FixedPoint, Objective, prox

Draw = tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]  # the data, x0, θ


def everything(*arguments: Any) -> Any:
    """F(x) = x."""
    return arguments[-1]


class Family(NamedTuple):
    """One kind of problem. `f` or `T` takes the data, x and θ; `features` the data and x."""

    name: str
    draw: Callable[[np.random.Generator], Draw]
    build: Callable[..., Any]
    f: Callable | None = None
    T: Callable | None = None
    features: Callable = everything  # F(x), what the outer functions look at
    many: bool = False  # many minima: the truth is at the one that was found
    cutoff: float = 1e-14  # below it (relative), an eigenvalue is zero


def smooth(name: str, f: Callable, draw: Callable, **more: Any) -> Family:
    return Family(name, draw, lambda *data: Objective(Partial(f, *data)), f=f, **more)


def composite(
    name: str, f: Callable, p: Callable, theirs: Callable, draw: Callable, **more: Any
) -> Family:
    """min f + g, with the prox `p(v, θ, h)` in our words and `theirs(data)` of the library."""

    def T(*arguments: Any) -> Any:
        *data, x, theta = arguments
        step = 1 / smoothness(*data)
        return p(x - step * jax.grad(f, len(data))(*data, x, theta), theta, step)

    build = lambda *data: Composite(Partial(f, *data), theirs(*data))
    return Family(name, draw, build, T=T, **more)


# ---- regressions ---------------------------------------------------------------------------------


def decay(w: Any, theta: Any) -> Any:
    return 0.5 * jnp.exp(theta[0]) * jnp.sum(w**2)


def poisson(X: Any, y: Any, w: Any, theta: Any) -> Any:
    return jnp.mean(jnp.exp(X @ w) - y * (X @ w)) + decay(w, theta)


def gamma(X: Any, y: Any, w: Any, theta: Any) -> Any:
    return jnp.mean(y * jnp.exp(-(X @ w)) + X @ w) + decay(w, theta)


def huber(X: Any, y: Any, w: Any, theta: Any) -> Any:
    r = X @ w - y
    inside = jnp.abs(r) < 1
    return jnp.mean(jnp.where(inside, 0.5 * r**2, jnp.abs(r) - 0.5)) + decay(w, theta)


def student(X: Any, y: Any, w: Any, theta: Any) -> Any:
    return jnp.mean(2 * jnp.log1p((X @ w - y) ** 2 / 3)) + decay(w, theta)


def ridge(X: Any, y: Any, w: Any, theta: Any) -> Any:
    return 0.5 * jnp.mean((X @ w - y) ** 2) + decay(w, theta)


def predictions(X: Any, y: Any, w: Any) -> Any:
    return X @ w


def regression(kind: str, n: int = 40, d: int = 8) -> Callable:
    def draw(rng: np.random.Generator) -> Draw:
        X = rng.normal(size=(n, d)) * np.geomspace(1, rng.choice([1, 0.3, 0.1]), d)
        signal = X @ rng.normal(size=d) / np.sqrt(d) * rng.choice([1.0, 2.0])
        if kind == "poisson":
            y = rng.poisson(np.exp(signal)).astype(float)
        elif kind == "gamma":
            y = np.exp(signal) * rng.gamma(2.0, 0.5, size=n)
        else:
            y = signal + rng.standard_t(3, size=n)
        if kind == "units":
            X = X * 10.0 ** rng.uniform(-3, 3, size=d)
        return (X, y), np.zeros(d), rng.uniform(-7, -2, size=1)

    return draw


def l1_pairs(X: Any, y: Any, x: Any, theta: Any) -> Any:
    """A logistic loss in which every column stands twice."""
    w = x[: X.shape[1]] + x[X.shape[1] :]
    return jnp.mean(softplus(-y * (X @ w)))


def pair_predictions(X: Any, y: Any, x: Any) -> Any:
    return X @ (x[: X.shape[1]] + x[X.shape[1] :])


def squared(X: Any, y: Any, w: Any, theta: Any) -> Any:
    return 0.5 * jnp.mean((X @ w - y) ** 2)


def smoothness(X: Any, y: Any) -> Any:
    """More than L of the losses with a prox: their columns are at most doubled."""
    return 2.1 * jnp.sum(X**2) / X.shape[0]


def sparse(
    n: int, d: int, penalty: float, labels: bool = False, columns: int = 1
) -> Callable[[np.random.Generator], Draw]:
    def draw(rng: np.random.Generator) -> Draw:
        X = rng.normal(size=(n, d)) + 0.5 * rng.normal(size=(n, 1))
        w = rng.normal(size=d) * (rng.uniform(size=d) < 0.6)
        y = X @ w + (rng.logistic(size=n) if labels else 0.5 * rng.normal(size=n))
        start = np.abs(rng.normal(size=columns * d)) * rng.choice([0, 0.1])
        data = X, np.sign(y) if labels else y
        return data, start, np.atleast_1d(penalty + rng.uniform(-0.5, 0.5))

    return draw


def soft(v: Any, weight: Any) -> Any:
    return jnp.sign(v) * jnp.maximum(jnp.abs(v) - weight, 0)


def groups(v: Any, theta: Any, step: Any) -> Any:
    blocks = v.reshape(-1, 2)
    norms = jnp.sqrt(jnp.maximum(jnp.sum(blocks**2, axis=1, keepdims=True), 1e-300))
    return (blocks * jnp.maximum(1 - step * jnp.exp(theta[0]) / norms, 0)).reshape(-1)


def on_simplex(v: Any, theta: Any, step: Any) -> Any:
    """By the level at which max(v - level, 0) sums to e^θ: one root, found from the sorted v."""
    ordered = jnp.sort(v)[::-1]
    levels = (jnp.cumsum(ordered) - jnp.exp(theta[0])) / jnp.arange(1, v.size + 1)
    return jnp.maximum(v - jnp.max(levels), 0)


def firm(v: Any, theta: Any, step: Any) -> Any:
    """The prox of the minimax concave penalty with γ = 6 (Zhang, 2010)."""
    weight = jnp.exp(theta[0]).astype(v.dtype)
    shrunk = soft(v, step * weight) / (1 - step / 6)
    return jnp.where(jnp.abs(v) <= 6 * weight, shrunk, v)


# ---- kernels -------------------------------------------------------------------------------------


def kernel(points: Any, jitter: Any, theta: Any) -> Any:
    far = (points[:, None] - points) * jnp.exp(-theta[0])
    return jnp.exp(theta[1] - 0.5 * far**2) + jitter * jnp.eye(points.size, dtype=points.dtype)


def whitened(points: Any, y: Any, jitter: Any, z: Any, theta: Any) -> Any:
    u = jnp.linalg.cholesky(kernel(points, jitter, theta)) @ z
    return 0.5 * z @ z + jnp.sum(softplus(-y * u))


def latent(points: Any, y: Any, jitter: Any, u: Any, theta: Any) -> Any:
    z = solve_triangular(jnp.linalg.cholesky(kernel(points, jitter, theta)), u, lower=True)
    return 0.5 * z @ z + jnp.sum(softplus(-y * u))


def kernel_ridge(points: Any, y: Any, jitter: Any, a: Any, theta: Any) -> Any:
    K = kernel(points, jitter, jnp.stack([theta[0], jnp.zeros_like(theta[0])]))
    return 0.5 * jnp.sum((K @ a - y) ** 2) + 0.5 * jnp.exp(theta[1]) * a @ (K @ a)


def process(regress: bool) -> Callable[[np.random.Generator], Draw]:
    def draw(rng: np.random.Generator) -> Draw:
        points = np.linspace(0, 3, 20) + 0.05 * rng.normal(size=20)
        y = np.sin(3 * points + rng.uniform(0, 6)) + 0.3 * rng.normal(size=20)
        theta = np.array([rng.uniform(-1.5, 0), rng.uniform(-2, 1)])
        return (points, y if regress else np.sign(y), np.array(1e-4)), np.zeros(20), theta

    return draw


# ---- many minima ---------------------------------------------------------------------------------


def network(inputs: Any, targets: Any, x: Any, theta: Any) -> Any:
    W, b, v, c = x[:8].reshape(2, 4), x[8:12], x[12:16], x[16]
    fit = jnp.tanh(inputs @ W + b) @ v + c
    return 0.5 * jnp.mean((fit - targets) ** 2) + decay(x, theta)


def draw_network(rng: np.random.Generator) -> Draw:
    inputs = rng.normal(size=(20, 2))
    targets = np.sin(2 * inputs[:, 0]) * inputs[:, 1]
    return (inputs, targets), rng.normal(size=17), rng.uniform(-7, -4, size=1)


def wells(C: Any, b: Any, x: Any, theta: Any) -> Any:
    return 0.25 * jnp.sum((x**2 - 1) ** 2) + 0.5 * x @ C @ x - theta[0] * (b @ x)


def draw_wells(rng: np.random.Generator) -> Draw:
    C = rng.normal(size=(8, 8))
    data = 0.1 * (C + C.T), rng.normal(size=8)
    return data, 0.3 * rng.normal(size=8), rng.uniform(0.05, 0.2, size=1)


def product(x: Any) -> Any:
    return x[:8].reshape(4, 2) @ x[8:].reshape(2, 4)


def factored(A: Any, B: Any, dA: Any, dB: Any, x: Any, theta: Any) -> Any:
    """½‖UV - (A + θ dA)(B + θ dB)‖²."""
    target = (A + theta[0] * dA) @ (B + theta[0] * dB)
    return 0.5 * jnp.sum((product(x) - target) ** 2)


def draw_factored(rng: np.random.Generator) -> Draw:
    A, dA = rng.normal(size=(2, 4, 2))
    B, dB = rng.normal(size=(2, 2, 4))
    x0 = np.concatenate([A.ravel(), B.ravel()]) + 1e-2 * rng.normal(size=16)
    return (A, B, dA, dB), x0, np.zeros(1)


def product_features(*arguments: Any) -> Any:
    return product(arguments[-1]).reshape(-1)


# ---- fixed points --------------------------------------------------------------------------------


def contraction(u: Any, b: Any, c: Any, low: Any, x: Any, theta: Any) -> Any:
    """(1 - λ) uuᵀx + b + θc, with b and c that hardly point along u."""
    return (1 - low) * u * (u @ x) + b + theta[0] * c


def hidden(d: int) -> Callable[[np.random.Generator], Draw]:
    def draw(rng: np.random.Generator) -> Draw:
        low = 10.0 ** rng.uniform(-4, -1)
        u, b, c = rng.normal(size=(3, d))
        u = u / np.linalg.norm(u)
        rest = lambda v: (v - (u @ v) * u) / np.linalg.norm(v) + low * rng.uniform(0.1, 1) * u
        return (u, rest(b), rest(c), np.array(low)), np.zeros(d), np.ones(1)

    return draw


def hidden_objective(u: Any, b: Any, c: Any, low: Any, x: Any, theta: Any) -> Any:
    return 0.5 * (x @ x - (1 - low) * (u @ x) ** 2) - (b + theta[0] * c) @ x


def shear(B: Any, c: Any, x: Any, theta: Any) -> Any:
    return jnp.exp(theta[0]) * (B @ x) + c


def draw_shear(rng: np.random.Generator) -> Draw:
    """A triangular map: its powers grow by a hundred before they fall."""
    B = 0.6 * np.eye(20) + np.triu(rng.normal(size=(20, 20)), 1) * rng.uniform(0.1, 0.3)
    return (B, rng.normal(size=20)), np.zeros(20), np.zeros(1)


SOFTNESS = 0.3


def sinkhorn(C: Any, f: Any, theta: Any) -> Any:
    cost = jnp.exp(theta[0]) * C
    return -SOFTNESS * logsumexp((second(cost, f) - cost) / SOFTNESS, axis=1)


def second(cost: Any, f: Any) -> Any:
    return -SOFTNESS * logsumexp((f[:, None] - cost) / SOFTNESS, axis=0)


def coupling(C: Any, f: Any) -> Any:
    """exp((f + g - C) / ε), the same for all f + constant."""
    return jnp.exp((f[:, None] + second(C, f) - C) / SOFTNESS).reshape(-1)


def draw_sinkhorn(rng: np.random.Generator) -> Draw:
    return (rng.uniform(size=(5, 5)),), np.zeros(5), np.zeros(1)


def barrier(c: Any, a: Any, x: Any, theta: Any) -> Any:
    logs = jnp.sum(jnp.log(x)) + jnp.log(1 - jnp.sum(x))
    return (c + theta[0] * a) @ x - jnp.exp(theta[1]) * logs


def draw_barrier(rng: np.random.Generator) -> Draw:
    theta = np.array([rng.uniform(-1, 1), rng.uniform(-7, -1)])
    return tuple(rng.normal(size=(2, 5))), np.full(5, 1 / 7), theta


def fixed(name: str, T: Callable, draw: Callable, **more: Any) -> Family:
    return Family(name, draw, lambda *data: FixedPoint(Partial(T, *data)), T=T, **more)


def exp_first(theta: Any) -> Any:
    return jnp.exp(theta[0])


LABELS = np.repeat(np.arange(4), 2)
UPPER = 0.4

FAMILIES = (
    smooth("Poisson regression", poisson, regression("poisson")),
    smooth("gamma regression", gamma, regression("gamma")),
    smooth("Huber regression", huber, regression("heavy")),
    smooth("Student-t regression", student, regression("heavy"), many=True),
    smooth("ridge in mixed units", ridge, regression("units"), features=predictions),
    smooth("kernel ridge", kernel_ridge, process(True)),
    smooth("Gaussian process, latent", latent, process(False)),
    smooth("Gaussian process, whitened", whitened, process(False)),
    smooth("log barrier", barrier, draw_barrier),
    smooth("hidden slow direction", hidden_objective, hidden(80)),
    smooth("network", network, draw_network, many=True),
    smooth("coupled wells", wells, draw_wells, many=True),
    smooth(
        "matrix factorisation", factored, draw_factored, features=product_features, many=True,
        cutoff=1e-7,
    ),
    fixed("slow contraction", contraction, hidden(80)),
    fixed("non-normal contraction", shear, draw_shear),
    fixed("Sinkhorn", sinkhorn, draw_sinkhorn, features=coupling, cutoff=1e-9),
    composite(
        "nonnegative ridge", ridge, lambda v, theta, h: jnp.maximum(v, 0),
        lambda X, y: prox.nonnegative(), sparse(30, 8, -2.0),
    ),
    composite(
        "box", squared, lambda v, theta, h: jnp.clip(v, -UPPER, jnp.exp(theta[0])),
        lambda X, y: prox.box(-UPPER, exp_first), sparse(30, 8, -1.0),
    ),
    composite(
        "simplex", squared, on_simplex, lambda X, y: prox.simplex(exp_first), sparse(30, 8, 0.5),
    ),
    composite(
        "group lasso", squared, groups, lambda X, y: prox.group_lasso(exp_first, LABELS),
        sparse(30, 8, -1.0),
    ),
    composite(
        "l1 logistic with tied columns", l1_pairs,
        lambda v, theta, h: soft(v, h * jnp.exp(theta[0])), lambda X, y: prox.l1(exp_first),
        sparse(40, 5, -3.0, labels=True, columns=2), features=pair_predictions, cutoff=1e-9,
    ),
    composite("MCP", squared, firm, lambda X, y: firm, sparse(40, 6, -1.5), many=True),
)  # fmt: skip
