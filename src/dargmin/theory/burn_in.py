"""How long, and how far, an unrolled derivative gets worse before it gets better.

The error bounds of unrolling have the form E_t = r^{t-1} (α + tβ), t >= 1: given A and C, gradient
descent has α = rA, β = hC; a fixed point has α = ρΔ_0, β = M e_0."""

import math
from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from dargmin.methods import AbstractMethod, Chebyshev, GradientDescent, HeavyBall
from dargmin.polynomials.checks import (
    as_reals,
    check_finite,
    check_not_negative,
    check_positive_spectrum,
    check_rate,
    holds,
)


class BurnIn(NamedTuple):
    """Where a trace E_0, ..., E_T peaks, how high, and from which step on it stays below E_0."""

    peak: Int[Array, "*batch"]  # the first t with E_t = max E
    height: Float[Array, "*batch"]  # max E / E_0
    length: Int[Array, "*batch"]  # the first t with E_s <= E_0 for all s >= t; T + 1 if none


def burn_in(errors: ArrayLike) -> BurnIn:
    """Measure the burn-in of a trace. A NaN or inf counts as above E_0.

    Where E_0 itself is one, nothing can be compared with it: the height is NaN, the length T + 1.

    Parameters
    ----------
    errors : array, shape (T + 1, *batch)
        E_0, ..., E_T.

    Returns
    -------
    BurnIn
        Of arrays of shape (*batch,).

    Raises
    ------
    ValueError
        If there is no E_0, or an error is negative."""
    (errors,) = as_reals(errors)
    if errors.ndim == 0 or errors.shape[0] == 0:
        raise ValueError(
            f"burn_in needs a trace E_0, ..., E_T along the first axis, but got {errors.shape}."
        )
    if not holds(~(errors < 0)):
        raise ValueError("burn_in needs errors, that is norms, but a value is negative.")
    known = jnp.isfinite(errors[0])
    errors = jnp.where(jnp.isnan(errors), jnp.inf, errors)
    above = errors > errors[0] * (1 + 8 * jnp.finfo(errors.dtype).eps)  # rounding is no burn-in
    t = jnp.arange(1, errors.shape[0] + 1).reshape(-1, *(1,) * (errors.ndim - 1))
    length = jnp.where(known, jnp.max(jnp.where(above, t, 0), axis=0), errors.shape[0])
    peak = jnp.argmax(errors, axis=0)
    height = jnp.max(errors, axis=0)
    # a trace that is zero throughout has no burn-in
    relative = jnp.where(height == errors[0], 1, height / errors[0])
    return BurnIn(peak, jnp.where(known, relative, jnp.nan), length)


def largest_monotone_step(L: ArrayLike) -> Float[Array, "*batch"]:
    """√2/L: with G = 0, the worst-case error of gradient descent never rises iff h <= √2/L.

    G = 0 where ∇f(x_0, θ) does not depend on θ: x_0 = 0 and θ a penalty, for instance.

    Parameters
    ----------
    L : array, shape (*batch,), > 0
        Largest eigenvalue of the Hessian.

    Raises
    ------
    ValueError
        If L <= 0."""
    (L,) = as_reals(L)
    if not holds(L > 0):
        raise ValueError(f"L={L}, but the largest eigenvalue of a Hessian must be positive here.")
    return jnp.sqrt(2.0) / L


def peak_index(rate: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Int[Array, "*batch"]:
    """t = max(1, ⌈r/(1 - r) - α/β⌉: where r^{t-1} (α + tβ), t >= 1, is largest.

    Parameters
    ----------
    rate : array, shape (*batch,), in [0, 1)
        r.
    alpha, beta : arrays, shape (*batch,), α + β >= 0, β >= 0

    Raises
    ------
    ValueError
        If a rate lies outside [0, 1), β < 0 or α + β < 0."""
    rate, alpha, beta = _bound(rate, alpha, beta)
    growing = beta > 0
    index = rate / (1 - rate) - alpha / jnp.where(growing, beta, 1)
    return jnp.where(growing, jnp.maximum(1, jnp.ceil(index)), 1).astype(int)


def peak_height(rate: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> Float[Array, "*batch"]:
    """max over t = 1, 2, ... of r^{t-1} (α + tβ); parameters and errors as in `peak_index`.

    At most β / (r |ln r|) exp(-1 + |ln r| α/β), its value where t need not be whole."""
    rate, alpha, beta = _bound(rate, alpha, beta)
    t = peak_index(rate, alpha, beta).astype(rate.dtype)
    return rate ** (t - 1) * (alpha + t * beta)


def burn_in_length(
    rate: ArrayLike, alpha: ArrayLike, beta: ArrayLike, initial: ArrayLike
) -> Int[Array, "*batch"]:
    """The first t from which on r^{t-1} (α + tβ) <= E_0.

    t = -α/β + w/|ln r| rounded up, w = -W_{-1}(-e^{-1-u}) with Lambert's W, that is the larger root
    of w - ln w = 1 + u, where e^{-1-u} = (E_0/β) |ln r| r^{1 + α/β}.

    Parameters
    ----------
    rate, alpha, beta : arrays, shape (*batch,)
        As in `peak_index`.
    initial : array, shape (*batch,), > 0
        E_0.

    Returns
    -------
    array of integers, shape (*batch,)
        0 where the bound never exceeds E_0.

    Raises
    ------
    ValueError
        As `peak_index`, or if E_0 <= 0.

    References
    ----------
    Corless, Gonnet, Hare, Jeffrey, Knuth (1996), On the Lambert W function; Chatzigeorgiou (2013),
    arXiv:1601.04895, for where Newton's method starts."""
    rate, alpha, beta = _bound(rate, alpha, beta)
    (initial,) = as_reals(initial)
    if not holds(initial > 0):
        raise ValueError(f"initial={initial}, but E_0 must be positive: no error stays below 0.")
    return _burn_in_length(rate, alpha, beta, initial)


@jax.jit
def _burn_in_length(rate: Array, alpha: Array, beta: Array, initial: Array) -> Int[Array, "*batch"]:
    r, b = jnp.where(rate > 0, rate, 0.5), jnp.where(beta > 0, beta, 1)
    decay, ln_initial = -jnp.log(r), jnp.log(initial)
    u = -1 - jnp.log(decay) - ln_initial + jnp.log(b) + decay * (1 + alpha / b)
    root = _lower_lambert(jnp.maximum(u, 0)) / decay - alpha / b
    # without growth r^{t-1} α falls from t = 1 on; at r = 0 only E_1 is not zero
    fallen = 1 + (jnp.log(jnp.maximum(alpha, jnp.finfo(alpha.dtype).tiny)) - ln_initial) / decay
    root = jnp.where(rate > 0, jnp.where(beta > 0, root, fallen), 2)
    # E_t <= E_0 from `root` on; one whole step before it, E_t > E_0, or there is no burn-in
    last = jnp.maximum(jnp.ceil(root) - 1, 1)
    ln_last = jnp.log(alpha + last * beta) - jnp.where(last > 1, (last - 1) * decay, 0)
    return jnp.where(ln_last > ln_initial, last + 1, 0).astype(int)


def _lower_lambert(u: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """-W_{-1}(-e^{-1-u}) for u >= 0, by Newton's method on w - ln w = 1 + u.

    The function is convex and rises beyond w = 1, so that from above the root no step passes it.
    In u nothing underflows, as e^{-1-u} would."""

    def newton(_: Any, w: Array) -> Array:
        slope = 1 - 1 / w
        step = (w - jnp.log(w) - 1 - u) / jnp.where(slope > 0, slope, 1)
        return jnp.maximum(w - jnp.maximum(step, 0), 1)

    # from w_0 < w + u/3 eight steps are enough for full precision
    return jax.lax.fori_loop(0, 12, newton, 1 + jnp.sqrt(2 * u) + u)


@singledispatch
def unrolled_peak(
    method: AbstractMethod, mu: ArrayLike, L: ArrayLike
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Where max_t E_t / E_0 is, and what, for G = 0: exact for `GradientDescent`, of any h; else to
    leading order in κ = μ/L, for the tuned method:

        Chebyshev               t = 1.03/√κ    0.532/κ
        heavy ball, corrected   t = 1.22/√κ    0.470/κ
        heavy ball, plain       t = 1.50/√κ    0.224/κ^{3/2}

    Parameters
    ----------
    method : GradientDescent, Chebyshev or HeavyBall
    mu, L : float
        The spectrum lies in [μ, L].

    Returns
    -------
    (t, height) : arrays, shape ()
        For gradient descent with h <= √2/L, (0, 1); with h >= 2/L, (inf, inf).

    Raises
    ------
    ValueError
        If not 0 < mu <= L, or for another method: use `worst_case_error` and `burn_in`."""
    raise ValueError(
        f"No formula is known for the burn-in of {type(method).__name__}: measure it with "
        "burn_in(worst_case_error(method, mu, L, steps, A=1.0, G=0.0))."
    )


@unrolled_peak.register
def _(method: GradientDescent, mu: ArrayLike, L: ArrayLike) -> tuple[Array, Array]:
    """E_t = r^{t-1} (1 - s + ts), r = s - 1, s = hL: at λ = L, the only branch that rises."""
    mu, L, h = as_reals(mu, L, jnp.nan if method.step_size is None else method.step_size)
    check_positive_spectrum(mu, L)
    if method.step_size is None:
        raise ValueError("GradientDescent() has no step size yet: give step_size=.")
    s = h * L
    inside = jnp.clip(s, 1, 2 - jnp.finfo(s.dtype).eps)
    r = jnp.clip(inside - 1, 0, 1 - jnp.finfo(s.dtype).eps)
    t = peak_index(r, 1 - inside, inside).astype(s.dtype)
    height = peak_height(r, 1 - inside, inside)
    rises, diverges = s > jnp.sqrt(2.0), s >= 2
    t = jnp.where(diverges, jnp.inf, jnp.where(rises, t, 0))
    return t, jnp.where(diverges, jnp.inf, jnp.where(rises, height, 1))


@unrolled_peak.register
def _(method: Chebyshev, mu: ArrayLike, L: ArrayLike) -> tuple[Array, Array]:
    """2t² / cosh(2t√κ), largest where v tanh v = 2, v = 2t√κ."""
    v = 2.0653381389
    return _scaled(mu, L, v, v**2 / 2 / math.cosh(v), 1.0)


@unrolled_peak.register
def _(method: HeavyBall, mu: ArrayLike, L: ArrayLike) -> tuple[Array, Array]:
    """2t² (1 + v/3) e^{-v}, or 4t³/3 e^{-v} with the plain start, v = 2t√κ."""
    if method.start == "plain":
        return _scaled(mu, L, 3.0, 4.5 * math.exp(-3.0), 1.5)
    v = 6.0**0.5
    return _scaled(mu, L, v, (v**2 / 2 + v**3 / 6) * math.exp(-v), 1.0)


def _scaled(
    mu: ArrayLike, L: ArrayLike, v: float, constant: float, power: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """t = v / (2√κ) and height = constant / κ^power."""
    mu, L = as_reals(mu, L)
    check_positive_spectrum(mu, L)
    kappa = mu / L
    return v / (2 * jnp.sqrt(kappa)), constant / kappa**power


def _bound(rate: ArrayLike, alpha: ArrayLike, beta: ArrayLike) -> list[Float[Array, "..."]]:
    rate, alpha, beta = as_reals(rate, alpha, beta)
    check_rate(rate)
    check_not_negative("beta", beta)
    check_not_negative("alpha + beta", alpha + beta)
    check_finite("alpha", alpha)
    check_finite("beta", beta)
    return [rate, alpha, beta]
