"""Derivatives at a frozen x_T: what is lost by e_T = ‖x_T - x*‖, and by the linear solve.

For min f, spectrum in [μ, L], M is a Lipschitz constant of x -> ∇²f(x) J* + ∂_θ∇f(x). For a fixed
point x = A(x, θ), ‖∂_x A‖ <= ρ < 1, M is one of x -> ∂_x A(x) J* + ∂_θ A(x). J* is the derivative
of the solution x*; norms are those of a vector where θ̇ or a cotangent is applied."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dargmin.polynomials.checks import (
    as_reals,
    check_not_negative,
    check_positive_spectrum,
    check_rate,
    check_whole,
    holds,
)
from dargmin.theory.rates import inverse_xi


def implicit_bound(mu: ArrayLike, *, M: ArrayLike, e: ArrayLike) -> Float[Array, "*batch"]:
    """Bound ‖-H(x_T)⁻¹ ∂_θ∇f(x_T) - J*‖ <= M e_T / μ: no factor T, no burn-in.

    Parameters
    ----------
    mu : array, shape (*batch,), > 0
        Smallest eigenvalue of H(x_T).
    M, e : arrays, shape (*batch,), >= 0
        M and e_T.

    Raises
    ------
    ValueError
        If mu <= 0, or anything else is negative."""
    mu, M, e = as_reals(mu, M, e)
    if not holds(mu > 0):
        raise ValueError(f"mu={mu}, but only mu > 0 bounds an implicit derivative: add a ridge.")
    _check(M, e)
    return M * e / mu


def cg_bound(
    mu: ArrayLike, L: ArrayLike, terms: ArrayLike, *, M: ArrayLike, e: ArrayLike, norm: ArrayLike
) -> Float[Array, "*batch"]:
    """Bound M e_T / μ + 2√κ ((√κ - 1)/(√κ + 1))^n ‖J_T‖, κ = L/μ: n steps of conjugate gradients.

    Parameters
    ----------
    mu, L : arrays, shape (*batch,), 0 < mu <= L
    terms : array of integers, shape (*batch,), >= 0
        n; the solve starts at zero.
    M, e : arrays, shape (*batch,), >= 0
        M and e_T.
    norm : array, shape (*batch,), >= 0
        ‖J_T‖, of the exact implicit derivative at x_T; at most ‖J*‖ + M e_T / μ.

    Raises
    ------
    ValueError
        If not 0 < mu <= L, or anything else is negative.

    References
    ----------
    Kaniel (1966) for conjugate gradients; Pedregosa (2016), arXiv:1602.02355, for its part in the
    derivative."""
    mu, L, n, M, e, norm = as_reals(mu, L, terms, M, e, norm)
    check_positive_spectrum(mu, L)
    _check(n, M, e, norm)
    check_whole("terms", n)
    xi = inverse_xi(mu, L)
    return M * e / mu + 2 * jnp.sqrt(L / mu) * xi**n * norm


def chebyshev_bound(
    mu: ArrayLike, L: ArrayLike, terms: ArrayLike, *, M: ArrayLike, e: ArrayLike, norm: ArrayLike
) -> Float[Array, "*batch"]:
    """Bound s ‖J*‖ + (1 + s) M e_T / μ, s = 1/T_n((L + μ)/(L - μ)): n Chebyshev steps from zero.

    Parameters as in `cg_bound`, but for norm, ‖J*‖. The same number of gradients, unrolled at x_t
    that move, can err by 0.5 L/μ ‖J*‖.

    Raises
    ------
    ValueError
        If not 0 < mu <= L, or anything else is negative."""
    mu, L, n, M, e, norm = as_reals(mu, L, terms, M, e, norm)
    check_positive_spectrum(mu, L)
    _check(n, M, e, norm)
    check_whole("terms", n)
    power = inverse_xi(mu, L) ** n
    sech = 2 * power / (1 + power**2)
    return sech * norm + (1 + sech) * M * e / mu


def neumann_bound(
    rate: ArrayLike, terms: ArrayLike, *, M: ArrayLike, e: ArrayLike, norm: ArrayLike
) -> Float[Array, "*batch"]:
    """Bound ρ^n ‖J*‖ + M e_T (1 - ρ^n)/(1 - ρ): n terms of the Neumann series.

    Never more than `reverse_bound`, whose n iterates it does not keep. n = 1 is one-step
    differentiation.

    Parameters
    ----------
    rate : array, shape (*batch,), in [0, 1)
        ρ.
    terms : array of integers, shape (*batch,), >= 0
        n.
    M, e, norm : arrays, shape (*batch,), >= 0
        M, e_T and ‖J*‖.

    Raises
    ------
    ValueError
        If a rate lies outside [0, 1), or anything else is negative.

    References
    ----------
    Lorraine, Vicol, Duvenaud (2020), arXiv:1911.02590; Bolte, Pauwels, Vaiter (2023),
    arXiv:2305.13768, for one step."""
    rate, n, M, e, norm = as_reals(rate, terms, M, e, norm)
    check_rate(rate)
    _check(n, M, e, norm)
    check_whole("terms", n)
    left = rate**n
    return left * norm + M * e * (1 - left) / (1 - rate)


def _check(*values: Float[Array, "..."]) -> None:
    for value in values:
        check_not_negative("A norm, a constant or a number of terms", value)
