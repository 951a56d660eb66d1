"""How fast x_t, and its derivative with it, converge in the end."""

from functools import singledispatch

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dargmin.methods import (
    AbstractMethod,
    Chebyshev,
    DerivativeKernel,
    GradientDescent,
    HeavyBall,
    Nesterov,
    Sobolev,
)
from dargmin.polynomials.checks import as_reals, check_scalar, check_spectrum


@singledispatch
def rate(method: AbstractMethod, mu: ArrayLike, L: ArrayLike) -> Float[Array, ""]:
    """lim E_t^{1/t} = max over λ in {μ, L} of lim |P_t(λ)|^{1/t}: both x_t and dx_t converge so.

    Parameters
    ----------
    method : GradientDescent, HeavyBall, Nesterov, Chebyshev, Sobolev or DerivativeKernel
        With its step size given.
    mu, L : float
        The spectrum of H lies in [μ, L], which need not be what the method was tuned for.

    Returns
    -------
    array, shape ()
        1 or more where the method does not converge.

    Raises
    ------
    ValueError
        If not 0 <= mu <= L, or the method has no residual polynomials."""
    raise ValueError(
        f"{type(method).__name__} has no residual polynomial, and so no rate that holds for every "
        "start. Use GradientDescent(step_size), HeavyBall, Nesterov, Chebyshev, Sobolev or "
        "DerivativeKernel."
    )


@rate.register
def _(method: GradientDescent, mu: ArrayLike, L: ArrayLike) -> Float[Array, ""]:
    return jnp.max(jnp.abs(1 - known_step_size(method) * _ends(mu, L)))


@rate.register
def _(method: HeavyBall, mu: ArrayLike, L: ArrayLike) -> Float[Array, ""]:
    h, m = as_reals(method.step_size, method.momentum)
    return jnp.max(_spectral_radius(1 + m - h * _ends(mu, L), m))


@rate.register
def _(method: Nesterov, mu: ArrayLike, L: ArrayLike) -> Float[Array, ""]:
    h, beta = as_reals(method.step_size, method.momentum)
    w = 1 - h * _ends(mu, L)
    return jnp.max(_spectral_radius((1 + beta) * w, beta * w))


@rate.register
def _(method: Chebyshev, mu: ArrayLike, L: ArrayLike) -> Float[Array, ""]:
    return _gegenbauer_rate(method.mu, method.L, _ends(mu, L))


@rate.register
def _(method: Sobolev, mu: ArrayLike, L: ArrayLike) -> Float[Array, ""]:
    return _gegenbauer_rate(method.recurrence.mu, method.recurrence.L, _ends(mu, L))


@rate.register
def _(method: DerivativeKernel, mu: ArrayLike, L: ArrayLike) -> Float[Array, ""]:
    return _gegenbauer_rate(method.recurrence.mu, method.recurrence.L, _ends(mu, L))


def _gegenbauer_rate(
    mu: Float[Array, ""], L: Float[Array, ""], lam: Float[Array, " n"]
) -> Float[Array, ""]:
    """|C_t(z)|^{1/t} -> |z + √(z² - 1)|, z = m(λ), over the same at λ = 0."""
    mu, L, lam = as_reals(mu, L, lam)
    # the limits of h_t and m_t are those of the tuned heavy ball
    h, m = (2 / (jnp.sqrt(L) + jnp.sqrt(mu))) ** 2, inverse_xi(mu, L) ** 2
    return jnp.max(_spectral_radius(1 + m - h * lam, m))


def _spectral_radius(trace: Float[Array, " n"], product: Float[Array, "..."]) -> Float[Array, " n"]:
    """The larger |root| of z² - trace z + product."""
    trace, product = jnp.broadcast_arrays(trace, product)
    discriminant = trace**2 - 4 * product
    real = (jnp.abs(trace) + jnp.sqrt(jnp.maximum(discriminant, 0))) / 2
    # at μ and L of a tuned method the roots are double, up to rounding
    nearly = discriminant <= 16 * jnp.finfo(trace.dtype).eps * trace**2
    return jnp.where(nearly, jnp.sqrt(jnp.abs(product)), real)


def known_step_size(method: GradientDescent) -> Float[Array, ""]:
    """h; raise ValueError where the method estimates it from the problem."""
    if method.step_size is None:
        raise ValueError(
            "GradientDescent() estimates its step size from the problem, so that no error can be "
            "said beforehand: give step_size=."
        )
    (step_size,) = as_reals(method.step_size)
    check_scalar("step_size", step_size)
    return step_size


def _ends(mu: ArrayLike, L: ArrayLike) -> Float[Array, "2"]:
    mu, L = as_reals(mu, L)
    check_spectrum(mu, L)
    check_scalar("mu", mu)
    check_scalar("L", L)
    return jnp.stack([mu, L])


def inverse_xi(mu: Float[Array, "*b"], L: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """1/ξ = (√L - √μ) / (√L + √μ)."""
    return (L - mu) / (jnp.sqrt(L) + jnp.sqrt(mu)) ** 2
