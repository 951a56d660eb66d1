"""The step size of gradient descent that makes an unrolled derivative best after T steps."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dargmin.polynomials.checks import (
    as_reals,
    check_finite,
    check_not_negative,
    check_positive_spectrum,
    check_scalar,
    check_whole,
)
from dargmin.theory.worst_case import dual_worst_case


def budget_step_size(
    mu: ArrayLike, L: ArrayLike, steps: ArrayLike, A: ArrayLike = 1.0, G: ArrayLike = 0.0
) -> Float[Array, ""]:
    """argmin_h E_T(h), E_T the worst case of gradient descent over ‖dx_0 - dx*‖ = A,
    ‖d∇f(x_0)‖ = G; 0 where every step makes the derivative worse.

    For G = 0 the branches of λ = μ and λ = L cross at the optimum:
    |hL - 1|^{T-1} (1 + (T-1)hL) = (1 - hμ)^{T-1} (1 + (T-1)hμ). It goes from √2/L for T = 2 to
    2/(L + μ), the best for x_T itself, at a distance of about ln(...)/T.

    Parameters
    ----------
    mu, L : float, 0 < mu <= L
    steps : integer, >= 1
        T; it may be traced, as all arguments may.
    A, G : float, >= 0

    Returns
    -------
    array, shape ()
        h; where E_T does not depend on it (T = 1 and G = 0, or A = G = 0), 2/(L + μ).

    Raises
    ------
    ValueError
        If not 0 < mu <= L, steps < 1, or a norm is negative."""
    mu, L, T, A, G = as_reals(mu, L, steps, A, G)
    check_positive_spectrum(mu, L)
    check_whole("steps", T, 1)
    for name, value in (("mu", mu), ("L", L), ("steps", T), ("A", A), ("G", G)):
        check_scalar(name, value)
    for name, value in (("A", A), ("G", G)):
        check_not_negative(name, value)
        check_finite(name, value)
    return jnp.where(G == 0, _crossing(mu, L, T), _search(mu, L, A, G, T))


@jax.jit
def _crossing(mu: Array, L: Array, T: Array) -> Float[Array, ""]:
    """h <- (1 + q) / (L + qμ), q^{T-1} = (1 + (T-1)hμ) / (1 + (T-1)hL), from h = 2/(L + μ)."""

    def sweep(_: Any, h: Array) -> Array:
        q = ((1 + (T - 1) * h * mu) / (1 + (T - 1) * h * L)) ** (1 / jnp.maximum(T - 1, 1))
        return (1 + q) / (L + q * mu)

    # one sweep shrinks the error at least fivefold, and about T-fold for large T
    return jax.lax.fori_loop(0, 25, sweep, 2 / (L + mu))


@jax.jit
def _search(mu: Array, L: Array, A: Array, G: Array, T: Array) -> Float[Array, ""]:
    """A grid in ln h, refined around its best point, against h = 0 with E = A."""
    low, high = jnp.log(1e-3 / (T * L)), jnp.log(2 / (L + mu))
    spacing = (high - low) / 400
    ln_h = jnp.linspace(low, high, 401)
    best = ln_h[jnp.argmin(_log_error(ln_h, mu, L, A, G, T))]

    def refine(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        best, spacing = state
        near = jnp.clip(best + spacing * jnp.linspace(-1, 1, 33), low, high)
        return near[jnp.argmin(_log_error(near, mu, L, A, G, T))], spacing / 8

    best, _ = jax.lax.fori_loop(0, 12, refine, (best, spacing))
    h = jnp.exp(best)
    return jnp.where(_log_error(best[None], mu, L, A, G, T)[0] < jnp.log(A), h, 0)


def _log_error(
    ln_h: Float[Array, " n"], mu: Array, L: Array, A: Array, G: Array, T: Array
) -> Float[Array, " n"]:
    """ln E_T at each h, without underflow."""
    h = jnp.exp(ln_h)
    s = h[:, None] * jnp.stack([mu, L])
    shrunk = (T - 1) * jnp.log(jnp.maximum(jnp.abs(1 - s), jnp.finfo(s.dtype).tiny))
    largest = jnp.max(shrunk, axis=1, keepdims=True)
    factor = jnp.exp(shrunk - largest)
    error = dual_worst_case(factor * (1 + (T - 1) * s), factor * T * h[:, None], A, G)
    return largest[:, 0] + jnp.log(error)
