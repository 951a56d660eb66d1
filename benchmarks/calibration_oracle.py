"""The true derivatives for calibration_promise.py: dense and in float64, many problems at a time.

A minimum of f is found by damped Newton steps, and ∂x* = -H⁺ ∂_θ∇f; a fixed point of T by iterating
it and then by Newton steps, and ∂x* = (1 - ∂ₓT)⁺ ∂_θT. Derivatives of f, T and F are JAX's; linear
algebra is NumPy's; nothing is dargmin's."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from calibration_families import Family

Array = np.ndarray


class Truth(NamedTuple):
    """x*, ∂x*, F(x*) and ∂F for a batch of problems; `condition` in the best units."""

    x: Array  # (B, d)
    jacobian: Array  # (B, d, p)
    features: Array  # (B, k)
    slopes: Array  # ∂F/∂x, (B, k, d)
    condition: Array  # (B,)
    valid: Array  # (B,): whether the solution was reached, and is a minimum

    def gradient(self, a: Array, q: Array, w: Array) -> Array:
        """d/dθ of ½ w ‖F(x*) - a‖² + qᵀF(x*), (B, p)."""
        pull = w[:, None] * (self.features - a) + q
        return np.einsum("bk,bkd,bdp->bp", pull, self.slopes, self.jacobian)


def truth(family: Family, data: tuple, x: Array, theta: Array) -> Truth:
    """The solutions near x: at the end of the way from there."""
    with np.errstate(all="ignore"):
        find = minima if family.f is not None else fixed_points
        x, jacobian, condition, valid = find(family, data, np.asarray(x, float), theta)
    features, slopes = map(np.asarray, programs(family)["features"](data, x))
    good = np.isfinite(jacobian).all((1, 2)) & np.isfinite(slopes).all((1, 2))
    return Truth(x, jacobian, features, slopes, condition, valid & good)


@cache
def programs(family: Family) -> dict[str, Any]:
    """The compiled parts, each over a batch: of f or T, and of the features."""

    def over(function: Any, *more: Any) -> Any:
        batched = jax.vmap(lambda data, *rest: function(*data, *rest))
        return jax.jit(batched)

    def features(*arguments: Any) -> Any:
        *data, x = arguments
        look = partial(family.features, *data)
        return jnp.ravel(look(x)), jax.jacfwd(look)(x)

    def moments(*arguments: Any) -> Any:
        *data, x, theta = arguments
        f = partial(family.f, *data)
        slope = jax.grad(f)
        mixed = jax.jacfwd(slope, 1)(x, theta)
        return f(x, theta), slope(x, theta), jax.jacfwd(slope)(x, theta), mixed

    def map_moments(*arguments: Any) -> Any:
        *data, x, theta = arguments
        T = partial(family.T, *data)
        return T(x, theta), *jax.jacfwd(T, (0, 1))(x, theta)

    def iterate(*arguments: Any) -> Any:
        *data, x, theta = arguments
        T = partial(family.T, *data)
        return jax.lax.fori_loop(0, 5000, lambda _, x: T(x, theta), x)

    if family.f is not None:
        own = {"value": over(family.f), "moments": over(moments)}
    else:
        own = {"moments": over(map_moments), "iterate": over(iterate)}
    return own | {"features": over(features)}


def minima(family: Family, data: tuple, x: Array, theta: Array, rounds: int = 400) -> Any:
    """Levenberg's steps: (H + s)δ = -∇f with the least s that f falls by, for each problem."""
    f = programs(family)
    shift = np.zeros(len(x))
    done = np.zeros(len(x), bool)
    for _ in range(rounds):
        value, slope, H, _ = map(np.asarray, f["moments"](data, x, theta))
        H = np.where(np.isfinite(H), H, 0.0)
        values, vectors = np.linalg.eigh(H)
        top = np.maximum(values[:, -1:], 1e-300)
        small = np.abs(values) <= family.cutoff * top
        curved = np.maximum(np.abs(values) + shift[:, None], 1e-300)
        pull = np.einsum("bji,bj->bi", vectors, slope)
        step = -np.einsum("bij,bj->bi", vectors, np.where(small, 0.0, pull / curved))
        after = np.asarray(f["value"](data, x + step, theta))
        tiny = np.linalg.norm(step, axis=1) <= 1e-6 * (1 + np.linalg.norm(x, axis=1))
        better = (after <= value) | (tiny & np.isfinite(after))
        x = np.where((better & ~done)[:, None], x + step, x)
        scale = 1e-15 * (1e-2 + np.linalg.norm(x, axis=1))
        done |= better & (np.linalg.norm(step, axis=1) <= scale)
        shift = np.where(better, shift / 10, np.maximum(10 * shift, 1e-3 * top[:, 0]))
        shift = np.where(shift < 1e-9 * top[:, 0], 0.0, shift)
        if done.all():
            break
    _, slope, H, mixed = map(np.asarray, f["moments"](data, x, theta))
    finite = np.isfinite(H).all((1, 2))
    H = np.where(finite[:, None, None], H, np.eye(x.shape[1]))
    minimum = np.linalg.eigvalsh(H)[:, 0] > -1e-8 * np.abs(H).max((1, 2))
    step, _ = solve(H, slope[:, :, None], family.cutoff)
    settled = np.linalg.norm(step[:, :, 0], axis=1) <= 1e-7 * (1e-2 + np.linalg.norm(x, axis=1))
    change, condition = solve(H, mixed, family.cutoff)
    return x, -change, condition, finite & minimum & settled


def solve(H: Array, b: Array, cutoff: float) -> tuple[Array, Array]:
    """H⁺b of a symmetric H in units in which its diagonal is 1, unless directions are left out
    (the shortest answer knows no units); and the condition number in these units."""
    whole = np.linalg.eigvalsh(H)[:, 0] > 1e-7 * np.abs(H).max((1, 2))
    diagonal = np.maximum(np.abs(np.einsum("bii->bi", H)), 1e-300)
    free = cutoff < 1e-10
    units = np.where((whole | free)[:, None], 1 / np.sqrt(diagonal), 1.0)
    values, vectors = np.linalg.eigh(H * units[:, :, None] * units[:, None, :])
    kept = np.abs(values) > cutoff * np.abs(values).max(1, keepdims=True)
    inverse = np.where(kept, 1 / np.where(kept, values, 1), 0)
    answer = np.einsum(
        "bij,bj,bkj,bkp->bip", vectors, inverse, vectors, units[:, :, None] * b, optimize=True
    )
    smallest = np.min(np.where(kept, np.abs(values), np.inf), axis=1)
    return units[:, :, None] * answer, np.abs(values).max(1) / smallest


def fixed_points(family: Family, data: tuple, x: Array, theta: Array) -> Any:
    """T iterated 5,000 times, and six Newton steps where they help."""
    f = programs(family)
    x = np.asarray(f["iterate"](data, x, theta))
    eye = np.eye(x.shape[1])
    for _ in range(6):
        image, slopes, _ = map(np.asarray, f["moments"](data, x, theta))
        inverse = np.linalg.pinv(np.nan_to_num(eye - slopes), rcond=max(family.cutoff, 1e-13))
        moved = x - np.einsum("bij,bj->bi", inverse, x - image)
        again = np.asarray(f["moments"](data, moved, theta)[0])
        better = np.linalg.norm(moved - again, axis=1) < np.linalg.norm(x - image, axis=1)
        x = np.where(better[:, None], moved, x)
    image, slopes, mixed = map(np.asarray, f["moments"](data, x, theta))
    settled = np.linalg.norm(x - image, axis=1) <= 1e-11 * (1e-2 + np.linalg.norm(x, axis=1))
    K = np.nan_to_num(eye - slopes)
    jacobian = np.linalg.pinv(K, rcond=max(family.cutoff, 1e-13)) @ mixed
    values = np.linalg.svd(K, compute_uv=False)
    kept = np.where(values > max(family.cutoff, 1e-13) * values[:, :1], values, np.inf)
    return x, jacobian, values[:, 0] / kept.min(1), settled
