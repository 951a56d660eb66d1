"""The largest error that an unrolled derivative can have, given the norms of what it starts from.

On quadratics whose Hessian H and its derivative dH commute,

    dx_t - dx* = P_t(H) a + P_t'(H) c = (P_t - λP_t')(H) a + P_t'(H) g,

a = dx_0 - dx*, c = dH (x_0 - x*), and g = c + H a the derivative of ∇f(x_0(θ), θ)."""

from functools import partial, singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from dargmin.methods import (
    AbstractMethod,
    Chebyshev,
    GradientDescent,
    HeavyBall,
    Nesterov,
)
from dargmin.polynomials.checks import (
    as_reals,
    check_finite,
    check_not_negative,
    check_scalar,
    check_spectrum,
    check_steps,
    holds,
)
from dargmin.theory.rates import inverse_xi, known_step_size, rate
from dargmin.theory.residual import residual_polynomial

Values = tuple[Float[Array, " times"], Float[Array, " times"]]


def worst_case_error(
    method: AbstractMethod,
    mu: ArrayLike,
    L: ArrayLike,
    steps: int,
    *,
    A: ArrayLike,
    C: ArrayLike | None = None,
    G: ArrayLike | None = None,
    eigenvalues: ArrayLike | None = None,
) -> Float[Array, " times"]:
    """E_t = sup ‖dx_t - dx*‖ over ‖a‖ = A and ‖c‖ = C, or ‖g‖ = G, for t = 0..T.

    A closed form for `GradientDescent`, `Chebyshev` and the tuned `HeavyBall`, and for the tuned
    `Nesterov` given C; else `dual_worst_case` on a grid, which misses at most 1 % of E_t. With C
    replaced by ‖dH‖ ‖x_0 - x*‖, the closed forms hold where H and dH do not commute, too
    (`Nesterov`: never seen violated).

    Parameters
    ----------
    method : GradientDescent, HeavyBall, Nesterov, Chebyshev, Sobolev or DerivativeKernel
        With its step size given.
    mu, L : float
        The spectrum of H lies in [μ, L].
    steps : int, >= 1
        T.
    A : float, >= 0
        ‖dx_0 - dx*‖; for dx_0 = 0, the norm of the derivative of the solution.
    C, G : float, >= 0
        ‖dH (x_0 - x*)‖ or ‖d∇f(x_0(θ), θ)‖: one of them.
    eigenvalues : array, shape (n,), optional
        The spectrum of H, where it is known: then E_t is exact for it, and the grid is not needed.

    Returns
    -------
    array, shape (T + 1,)

    Raises
    ------
    ValueError
        If not 0 <= mu <= L, steps < 1, a norm is negative, both or neither of C and G are given,
        an eigenvalue lies outside [μ, L], or the method has no residual polynomials.

    References
    ----------
    Scieur, Gidel, Bertrand, Pedregosa (2022), arXiv:2209.13271, for gradient descent and
    Chebyshev's method given G."""
    if C is not None and G is None:
        mu, L, A, second = as_reals(mu, L, A, C)
    elif G is not None and C is None:
        mu, L, A, second = as_reals(mu, L, A, G)
    else:
        raise ValueError(
            f"worst_case_error(C={C}, G={G}) needs one of them: C = ‖dH (x_0 - x*)‖, or G = "
            "‖d∇f(x_0)‖, whichever is known."
        )
    check_spectrum(mu, L)
    steps = check_steps(steps)
    for name, value in (("mu", mu), ("L", L), ("A", A), ("C" if G is None else "G", second)):
        check_scalar(name, value)
        check_not_negative(name, value)
        check_finite(name, value)
    if eigenvalues is None:
        closed = _largest(method, mu, L, jnp.arange(steps + 1, dtype=mu.dtype))
        if closed is not None:
            p, q = closed
            if G is None:
                return A * p + second * q
            if isinstance(method, Chebyshev | HeavyBall):  # at λ = L, where P P' > 0
                return A * jnp.abs(p - L * q) + second * q
        if isinstance(method, GradientDescent):
            return _gradient_descent_given_gradient(
                known_step_size(method), mu, L, steps, A, second
            )
        lam = _grid(mu, L, steps)
    else:
        (lam,) = as_reals(eigenvalues)
        _check_eigenvalues(lam, mu, L)
    P, dP = residual_polynomial(method, lam, steps)
    return dual_worst_case(P if G is None else P - lam * dP, dP, A, second)


def dual_worst_case(
    p: ArrayLike, q: ArrayLike, A: ArrayLike, C: ArrayLike
) -> Float[Array, "*times"]:
    """E² = min_s max_i [A² p_i² (1 + e^{-s}) + C² q_i² (1 + e^s)] = sup Σ_i (p_i a_i + q_i c_i)²
    over ‖a‖ = A, ‖c‖ = C: the exact worst case on the spectrum λ_1, ..., λ_n.

    The supremum is concave in the a_i² and c_i²; this is its Lagrange dual. Where |p| and |q| are
    largest at the same i, E = A max|p| + C max|q|.

    Parameters
    ----------
    p, q : arrays, shape (*times, n)
        P(λ_i) and P'(λ_i), or P(λ_i) - λ_i P'(λ_i) and P'(λ_i).
    A, C : float, >= 0

    Returns
    -------
    array, shape (*times,)

    Raises
    ------
    ValueError
        If p and q have no n >= 1 values each, or a norm is negative or not finite."""
    p, q = as_reals(p, q)
    if p.shape != q.shape or p.ndim == 0 or p.shape[-1] == 0:
        raise ValueError(
            f"p and q need one value for each of n >= 1 eigenvalues, along the last axis of both, "
            f"but have the shapes {p.shape} and {q.shape}."
        )
    (A,), (C,) = as_reals(A), as_reals(C)
    for name, value in (("A", A), ("C", C)):
        check_scalar(name, value)
        check_not_negative(name, value)
        check_finite(name, value)
    return _dual_worst_case(p, q, A, C)


@jax.jit
def _dual_worst_case(p: Array, q: Array, A: Array, C: Array) -> Float[Array, "*times"]:
    a, c = jnp.abs(jnp.asarray(A, p.dtype) * p), jnp.abs(jnp.asarray(C, q.dtype) * q)
    a_max, c_max = jnp.max(a, axis=-1), jnp.max(c, axis=-1)
    scale = a_max + c_max
    safe = jnp.where((a_max > 0) & (c_max > 0), 1, 0)
    ratio = jnp.where(safe == 1, a_max / jnp.where(c_max > 0, c_max, 1), 1)
    unit = jnp.where(scale > 0, scale, 1)
    a, c = (
        a / unit[..., None],
        c / unit[..., None],
    )  # a + c <= 1: squares neither over- nor underflow

    def terms(s: Array) -> tuple[Array, Array, Array]:
        weight = (ratio * jnp.exp(s))[..., None]
        return a**2 + c**2, a**2 / weight, c**2 * weight

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        s = (low + high) / 2
        fixed, falling, rising = terms(s)
        worst = jnp.argmax(fixed + falling + rising, axis=-1, keepdims=True)
        slope = jnp.take_along_axis(rising - falling, worst, axis=-1)[..., 0]
        return jnp.where(slope < 0, s, low), jnp.where(slope < 0, high, s)

    # E <= A max|p| + C max|q| is the value at s = 0, which bounds where a smaller one can be
    width = jnp.log(2 + ratio + 1 / ratio)
    low, high = jax.lax.fori_loop(0, 60, halve, (-width, width))
    fixed, falling, rising = terms((low + high) / 2)
    found = unit * jnp.sqrt(jnp.max(fixed + falling + rising, axis=-1))
    return jnp.where(safe == 1, found, scale)


@singledispatch
def _largest(
    method: AbstractMethod, mu: Float[Array, ""], L: Float[Array, ""], t: Float[Array, " times"]
) -> Values | None:
    """max |P_t| and max |P_t'| over [μ, L], where one eigenvalue attains both in closed form."""
    return None


@_largest.register
def _(method: GradientDescent, mu: Array, L: Array, t: Array) -> Values | None:
    h = known_step_size(method)
    r = rate(method, mu, L)
    return r**t, h * t * r ** _before(t)


@_largest.register
def _(method: Chebyshev, mu: Array, L: Array, t: Array) -> Values | None:
    return _chebyshev(mu, L, t) if _same((method.mu, method.L), (mu, L)) else None


@_largest.register
def _(method: HeavyBall, mu: Array, L: Array, t: Array) -> Values | None:
    tuned = HeavyBall.tuned(mu, L)
    as_tuned = _same((method.step_size, method.momentum), (tuned.step_size, tuned.momentum))
    return _heavy_ball(mu, L, t, method.start) if as_tuned else None


@_largest.register
def _(method: Nesterov, mu: Array, L: Array, t: Array) -> Values | None:
    tuned = Nesterov.tuned(mu, L)
    as_tuned = _same((method.step_size, method.momentum), (tuned.step_size, tuned.momentum))
    return _nesterov(mu, L, t) if as_tuned else None


@partial(jax.jit, static_argnames="steps")
def _gradient_descent_given_gradient(
    h: Array, mu: Array, L: Array, steps: int, A: Array, G: Array
) -> Float[Array, " times"]:
    """|P - λP'| = |1 - s|^{t-1} |1 + (t-1)s| and |P'|, s = hλ, fall until s = 1 and rise after it:
    the two ends of the spectrum are enough."""
    t = jnp.arange(steps + 1, dtype=h.dtype)[:, None]
    s = h * jnp.stack([mu, L])
    power = jnp.abs(1 - s) ** _before(t)
    p = jnp.where(t > 0, power * (1 + (t - 1) * s), 1)
    return dual_worst_case(p, power * t * h, A, G)


@jax.jit
def _chebyshev(mu: Array, L: Array, t: Array) -> Values:
    """P = sech(t ln ξ) and |P'| = 2t²/(L - μ) P at λ = L."""
    u = inverse_xi(mu, L)
    sech = 2 / (1 + u ** (2 * t))  # over u^t, which may not be divided by L - μ = 0
    root = 2 * jnp.sqrt(mu / (L + mu)) * jnp.sqrt(L / (L + mu))  # u (L + μ)/(L - μ) = 1/(1 + root)
    return sech * u**t, sech * u ** _before(t) * 2 * t**2 / ((L + mu) * (1 + root))


@partial(jax.jit, static_argnames="start")
def _heavy_ball(mu: Array, L: Array, t: Array, start: str) -> Values:
    """P = u^t (a + b (t + 1)), u = √m, at λ = L."""
    u, h = inverse_xi(mu, L), (2 / (jnp.sqrt(L) + jnp.sqrt(mu))) ** 2
    m = u**2
    if start == "plain":
        p, slope = (t + 1) + u * t, t * (t + 1) / 3 * ((t + 2) + u * (t - 1))
    else:
        a, b = 2 * m / (1 + m), (1 - m) / (1 + m)
        p, slope = a + b * (t + 1), a * t**2 + b * t * (t + 1) * (t + 2) / 3
    return u**t * p, h / 2 * u ** _before(t) * slope


@jax.jit
def _nesterov(mu: Array, L: Array, t: Array) -> Values:
    """P = (1 - √κ)^t (1 + √κ t), κ = μ/L, at λ = μ."""
    b = jnp.sqrt(mu / L)
    a = 1 - b
    slope = t * (a + b * (t + 1)) + a * t**2 + b * t * (t + 1) * (t + 2) / 3
    return a**t * (1 + b * t), a ** _before(t) * slope / (2 * L * (1 + b))


def _check_eigenvalues(lam: Array, mu: Array, L: Array) -> None:
    """Raise ValueError unless there are some, and all lie in [μ, L] up to rounding."""
    if lam.ndim != 1 or lam.size == 0:
        raise ValueError(f"eigenvalues has shape {lam.shape}, but a vector of them is needed.")
    rounding = 100 * jnp.finfo(lam.dtype).eps * L
    if not holds((lam >= mu - rounding) & (lam <= L + rounding)):
        raise ValueError(
            f"eigenvalues={lam}, but all have to lie in [mu, L] = [{mu}, {L}]: widen the interval."
        )


def _grid(mu: Float[Array, ""], L: Float[Array, ""], steps: int) -> Float[Array, " n"]:
    """Chebyshev's extrema: a polynomial of degree 2T is at most 1/cos(πT/n) larger between them."""
    n = max(16 * steps, 512)
    half = np.sin(np.linspace(0, np.pi / 2, n + 1)) ** 2  # dense at μ, and exact at both ends
    return mu + (L - mu) * jnp.asarray(half, mu.dtype)


def _before(t: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """t - 1, but 0 at t = 0, where what it is the exponent of is multiplied by zero."""
    return jnp.maximum(t - 1, 0)


def _same(found: tuple[Array, ...], wanted: tuple[Array, ...]) -> bool:
    """Whether constants agree up to rounding; not, where they are not known before run time."""
    if any(isinstance(value, Tracer) for value in (*found, *wanted)):
        return False
    rtol = 8 * float(jnp.finfo(wanted[0].dtype).eps)
    return all(np.allclose(f, w, rtol=rtol, atol=0) for f, w in zip(found, wanted, strict=True))
