"""Derivatives of x_{k+1} = A(x_k, θ), unrolled: what they can miss, and when to start them.

‖∂_x A‖ <= ρ < 1; M is a Lipschitz constant of x -> ∂_x A(x) J* + ∂_θ A(x), with J* the derivative
of the fixed point x*; e_k = ‖x_k - x*‖ <= ρ^k e_0 and Δ_k = ‖J_k - J*‖. Convex quadratics under
gradient descent with a step size h and θ a ridge penalty have M = h."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from dargmin.polynomials.checks import (
    as_reals,
    check_not_negative,
    check_rate,
    check_scalar,
    check_whole,
    holds,
)


def forward_bound(
    rate: ArrayLike, steps: ArrayLike, *, M: ArrayLike, e0: ArrayLike, delta0: ArrayLike
) -> Float[Array, "*batch"]:
    """Bound Δ_k <= ρ^k Δ_0 + k ρ^{k-1} M e_0.

    Parameters
    ----------
    rate : array, shape (*batch,), in [0, 1)
        ρ.
    steps : array of integers, shape (*batch,), >= 0
        k.
    M, e0, delta0 : arrays, shape (*batch,), >= 0
        M, ‖x_0 - x*‖, and ‖J_0 - J*‖, which is ‖J*‖ for J_0 = 0.

    Returns
    -------
    array, shape (*batch,)

    Raises
    ------
    ValueError
        If a rate lies outside [0, 1), or anything else is negative.

    References
    ----------
    Mehmood, Knoll, Ochs (2026), arXiv:2602.19733; Gilbert (1992) for the convergence itself."""
    rate, k, M, e0, delta0 = _checked(rate, steps, M=M, e0=e0, delta0=delta0)
    return rate**k * delta0 + k * rate ** jnp.maximum(k - 1, 0) * M * e0


def reverse_bound(
    rate: ArrayLike,
    steps: ArrayLike,
    terms: ArrayLike,
    *,
    M: ArrayLike,
    e0: ArrayLike,
    norm: ArrayLike,
) -> Float[Array, "*batch"]:
    """Bound ‖u_n - J*ᵀw‖ / ‖w‖ <= ρ^n ‖J*‖ + n ρ^{K-1} M e_0 of n steps back through K steps.

    It is also what `LateStart(last=n)` has, in either mode. n = K is `forward_bound` from J_0 = 0.

    Parameters
    ----------
    rate, M, e0 : arrays, shape (*batch,)
        As in `forward_bound`.
    steps, terms : arrays of integers, shape (*batch,)
        K and n, 0 <= n <= K.
    norm : array, shape (*batch,), >= 0
        ‖J*‖.

    Raises
    ------
    ValueError
        As `forward_bound`, or if n > K.

    References
    ----------
    Mehmood, Knoll, Ochs (2026), arXiv:2602.19733; Bolte, Pauwels, Vaiter (2023), arXiv:2305.13768
    for n = 1."""
    rate, K, M, e0, norm = _checked(rate, steps, M=M, e0=e0, delta0=norm)
    n, K = as_reals(terms, K)
    check_whole("terms", n)
    if not holds(n <= K):
        raise ValueError(f"terms={terms}, but there are 0 to steps={steps} of them.")
    return rate**n * norm + n * rate ** jnp.maximum(K - 1, 0) * M * e0


def late_start_bound(
    rate: ArrayLike,
    steps: ArrayLike,
    start: ArrayLike,
    *,
    M: ArrayLike,
    e0: ArrayLike,
    delta0: ArrayLike,
) -> Float[Array, "*batch"]:
    """Bound Δ_T <= ρ^{T-K} Δ_0 + (T - K) ρ^{T-1} M e_0 of a derivative started at x_K, J_K = J_0.

    Parameters
    ----------
    rate, M, e0, delta0 : arrays, shape (*batch,)
        As in `forward_bound`.
    steps, start : arrays of integers, shape (*batch,)
        T and K, 0 <= K <= T.

    Raises
    ------
    ValueError
        As `forward_bound`, or if K lies outside [0, T]."""
    T, K = as_reals(steps, start)
    check_whole("start", K)
    if not holds((K >= 0) & (K <= T)):
        raise ValueError(f"start={start}, but a derivative starts between 0 and steps={steps}.")
    return reverse_bound(rate, T, T - K, M=M, e0=e0, norm=delta0)


def optimal_start(
    rate: ArrayLike, steps: ArrayLike, *, M: ArrayLike, e0: ArrayLike, delta0: ArrayLike
) -> Int[Array, "*batch"]:
    """K* = ⌈ln(M e_0 / ((1 - ρ) Δ_0)) / ln(1/ρ)⌉, within [0, T]: where `late_start_bound` is least.

    But for the upper limit it does not depend on T: it is the first K with
    M ρ^K e_0 <= (1 - ρ) Δ_0, from where the bound of a derivative started there never rises. So
    `LateStart(start=K*)`, or `last` = T - K*.

    Parameters
    ----------
    rate, M, e0, delta0 : arrays, shape (*batch,)
        As in `forward_bound`.
    steps : array of integers, shape (*batch,), >= 0
        T.

    Returns
    -------
    array of integers, shape (*batch,)

    Raises
    ------
    ValueError
        As `forward_bound`.

    References
    ----------
    Mehmood, Knoll, Ochs (2026), arXiv:2602.19733."""
    rate, T, M, e0, delta0 = _checked(rate, steps, M=M, e0=e0, delta0=delta0)
    drift, gain = M * e0, (1 - rate) * delta0
    one_step = rate == 0  # then x_1 = x*, and K = 1 is always late enough
    log_rate = jnp.log(jnp.where(one_step, 0.5, rate))
    pulled = jnp.where(drift > gain, drift / jnp.where(gain > 0, gain, 1), 1)
    K = jnp.where(one_step, 1, jnp.ceil(jnp.log(pulled) / -log_rate))
    K = jnp.where(gain > 0, K, jnp.inf)
    return jnp.where(drift > gain, jnp.clip(K, 0, T), 0).astype(int)


def forward_peak(
    rate: ArrayLike, *, M: ArrayLike, e0: ArrayLike, delta0: ArrayLike
) -> Int[Array, "*batch"]:
    """k = ⌈ρ/(1 - ρ) - ρΔ_0/(M e_0)⌉ if M e_0 > (1 - ρ) Δ_0, else 0: the peak of `forward_bound`.

    Backwards over the whole horizon, the same with Δ_0 = ‖J*‖. Within one backward pass the bound
    falls until n = T - K* steps, K* of `optimal_start`, and rises from there. Parameters and errors
    as in `forward_bound`."""
    rate, _, M, e0, delta0 = _checked(rate, 0, M=M, e0=e0, delta0=delta0)
    drift = M * e0
    rises = drift > (1 - rate) * delta0
    index = rate / (1 - rate) - rate * delta0 / jnp.where(rises, drift, 1)
    return jnp.where(rises, jnp.maximum(jnp.ceil(index), 1), 0).astype(int)


def warm_distances(
    rate: ArrayLike, steps: int, *, e0: float, lipschitz: float, changes: ArrayLike
) -> Float[Array, " outer"]:
    """e^{(j+1)} = ρ^T e^{(j)} + Λ ‖θ_{j+1} - θ_j‖: how far from x*(θ_j) a warm start is at most.

    With e0=e^{(j)}, `forward_bound` and `reverse_bound` hold for outer step j.

    Parameters
    ----------
    rate : float, in [0, 1)
    steps : int, >= 0
        T inner steps for each outer one.
    e0 : float, >= 0
        ‖x_0 - x*(θ_0)‖.
    lipschitz : float, >= 0
        Λ, of x*.
    changes : array, shape (J,), >= 0
        ‖θ_{j+1} - θ_j‖.

    Returns
    -------
    array, shape (J + 1,)

    Raises
    ------
    ValueError
        If a rate lies outside [0, 1), or anything else is negative."""
    rho, T, factor, first, moves = _checked(rate, steps, M=lipschitz, e0=e0, delta0=changes)
    for name, value in (("rate", rho), ("steps", T), ("lipschitz", factor), ("e0", first)):
        check_scalar(name, value)
    if moves.ndim != 1:
        raise ValueError(
            f"changes has shape {moves.shape}, but one number is needed for each outer step: a "
            "vector, such as [0.1] for one."
        )

    def follow(distance: Array, move: Array) -> tuple[Array, Array]:
        distance = rho**T * distance + factor * move
        return distance, distance

    return jnp.append(first, jax.lax.scan(follow, first, moves)[1])


def equivalent_start(rate: ArrayLike, cold: ArrayLike, warm: ArrayLike) -> Float[Array, "*batch"]:
    """K = ln(e_cold / e_warm) / ln(1/ρ): the late start whose drift a warm start has.

    The rest of the bound, ρ^T ‖J*‖, stays what it is: a warm x_0 does not warm J_0.

    Parameters
    ----------
    rate : array, shape (*batch,), in (0, 1)
    cold, warm : arrays, shape (*batch,), > 0
        ‖x_0 - x*‖.

    Raises
    ------
    ValueError
        If a rate lies outside (0, 1), or a distance is not positive."""
    rate, cold, warm = as_reals(rate, cold, warm)
    check_rate(rate)
    if not holds((rate > 0) & (cold > 0) & (warm > 0)):
        raise ValueError(
            f"equivalent_start(rate={rate}, cold={cold}, warm={warm}) compares logarithms: all "
            "three must be positive."
        )
    return jnp.log(cold / warm) / -jnp.log(rate)


def _checked(
    rate: ArrayLike, steps: ArrayLike, *, M: ArrayLike, e0: ArrayLike, delta0: ArrayLike
) -> list[Float[Array, "..."]]:
    """All as arrays of one type; steps are small enough to be exact in it."""
    rate, steps, M, e0, delta0 = as_reals(rate, steps, M, e0, delta0)
    check_rate(rate)
    named = {"steps": steps, "M": M, "e0": e0, "the norm of a derivative": delta0}
    for name, value in named.items():
        check_not_negative(name, value)
    check_whole("steps", steps)
    return [rate, steps, M, e0, delta0]
