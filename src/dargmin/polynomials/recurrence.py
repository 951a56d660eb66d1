"""Methods with one three-term recurrence: gradient descent, momentum, Nesterov, Gegenbauer."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dargmin.polynomials.checks import (
    as_reals,
    check_alpha,
    check_finite,
    check_scalar,
    check_spectrum,
    check_steps,
)


class Recurrence(eqx.Module):
    """P_{t+1} = P_t + m_t D_t - h_t λ (P_t + e_t D_t),  D_t = P_t - P_{t-1},  D_0 = 0,  P_0 = 1.

    Written in differences, it has P_t(0) = 1 exactly, whatever the rounding of the coefficients.

    Parameters
    ----------
    step_sizes, momenta, extrapolations : arrays, shape (T,)
        h_t, m_t, and e_t, how far ahead of x_t the gradient is evaluated."""

    step_sizes: Float[Array, " T"]
    momenta: Float[Array, " T"]
    extrapolations: Float[Array, " T"]

    def __call__(self, lam: ArrayLike) -> Float[Array, "times *n"]:
        """P_0(λ), ..., P_T(λ)."""
        (lam,) = as_reals(lam)

        def advance(carry, coefficients):
            h, m, e = coefficients
            p, d = carry
            following = p + m * d - h * lam * (p + e * d)
            return (following, following - p), following

        coefficients = jax.tree.map(lambda c: c.astype(lam.dtype), self)
        one = jnp.ones_like(lam)
        h, m, e = coefficients.step_sizes, coefficients.momenta, coefficients.extrapolations
        _, rest = jax.lax.scan(advance, (one, jnp.zeros_like(lam)), (h, m, e))
        return jnp.concatenate([one[None], rest])


@eqx.filter_jit
def evaluate(
    polynomials: Callable[[Float[Array, "*n"]], Float[Array, "times *n"]], lam: ArrayLike
) -> tuple[Float[Array, "times *n"], Float[Array, "times *n"]]:
    """P_t(λ) and P_t'(λ) for t = 0..T, carried through the recurrence together.

    Nothing overflows where the method converges; where it diverges, values grow like the iterates
    do, and end as inf or NaN.

    Parameters
    ----------
    polynomials : a family of this module
    lam : array, shape (*n,)
        λ.

    Returns
    -------
    (P, dP) : arrays, shape (T + 1, *n)"""
    (lam,) = as_reals(lam)
    return jax.jvp(polynomials, (lam,), (jnp.ones_like(lam),))


def gradient_descent(step_size: ArrayLike, steps: int) -> Recurrence:
    """P_t = (1 - hλ)^t."""
    return heavy_ball(step_size, 0.0, steps, start="plain")


def heavy_ball(
    step_size: ArrayLike, momentum: ArrayLike, steps: int, start: str = "corrected"
) -> Recurrence:
    """P_{t+1} = (1 + m - hλ) P_t - m P_{t-1},  P_1 = 1 - hλ / (1 + m), or 1 - hλ if plain.

    Raises
    ------
    ValueError
        If steps < 1, or start is neither "corrected" nor "plain".

    References
    ----------
    Polyak (1964)."""
    if start not in ("corrected", "plain"):
        raise ValueError(f'heavy_ball(start={start!r}): allowed are "corrected" and "plain".')
    h, m = _constant_coefficients(steps, step_size, momentum)
    if start == "corrected":
        h = h.at[0].divide(1 + m[0])
    return Recurrence(h, m, jnp.zeros_like(h))


def nesterov(step_size: ArrayLike, momentum: ArrayLike, steps: int) -> Recurrence:
    """P_{t+1} = (1 - hλ) ((1 + β) P_t - β P_{t-1}),  P_1 = 1 - hλ.

    The points y_t = x_t + β (x_t - x_{t-1}) ahead of them, where gradients are evaluated, have
    (1 + β) P_t - β P_{t-1}.

    Raises
    ------
    ValueError
        If steps < 1.

    References
    ----------
    Nesterov (1983)."""
    h, beta = _constant_coefficients(steps, step_size, momentum)
    return Recurrence(h, beta, beta)


def gegenbauer(mu: ArrayLike, L: ArrayLike, alpha: ArrayLike, steps: int) -> Recurrence:
    """P_t = C_t(m(λ)) / C_t(m(0)),  C_t = C_t^{(α)} Gegenbauer's, m(λ) = (2λ - L - μ) / (L - μ).

    α = 0 is Chebyshev's method, optimal in the worst case on [μ, L]; 1/2 has Legendre's polynomials
    and 1 Chebyshev's of the second kind. Defined for μ = L too.

    Raises
    ------
    ValueError
        If not 0 <= mu <= L, or alpha <= -1/2, or steps < 1.

    References
    ----------
    Flanders and Shortley (1950) for α = 0; Pedregosa and Scieur (2020), arXiv:2002.04756."""
    mu, L, alpha = as_reals(mu, L, alpha)
    check_spectrum(mu, L)
    check_alpha(alpha)
    for name, value in (("mu", mu), ("L", L), ("alpha", alpha)):
        check_scalar(name, value)
    steps = check_steps(steps)
    roots = _roots(spectral_gap(mu, L), alpha, steps)
    step_sizes, momenta = gegenbauer_coefficients(roots, mu, L)
    return Recurrence(step_sizes, momenta, jnp.zeros_like(roots))


def chebyshev(mu: ArrayLike, L: ArrayLike, steps: int) -> Recurrence:
    """P_t = T_t(m(λ)) / T_t(m(0)),  m(λ) = (2λ - L - μ) / (L - μ): `gegenbauer` with α = 0."""
    return gegenbauer(mu, L, 0.0, steps)


def gegenbauer_defect(n: Float[Array, ""], alpha: Float[Array, ""]) -> Float[Array, ""]:
    """d_n = 1 - 4γ_n = α (α - 1) / ((n + α) (n + α - 1)), n >= 1, of Q_{n+1} = z Q_n - γ_n Q_{n-1}.

    Q_n are the monic Gegenbauer polynomials. d_1 = (α - 1) / (α + 1), also where the general
    formula is 0/0 (α = 0)."""
    m = jnp.maximum(n, 2)
    general = alpha * (alpha - 1) / ((m + alpha) * (m + alpha - 1))
    return jnp.where(n == 1, (alpha - 1) / (alpha + 1), general)


def spectral_gap(mu: Float[Array, "*n"], L: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """g = 4 μL / (L + μ)² = 1 - ((L - μ) / (L + μ))², 1 for μ = L."""
    return 4 * (mu / (L + mu)) * (L / (L + mu))


def gegenbauer_coefficients(
    root: Float[Array, "*T"], mu: Float[Array, ""], L: Float[Array, ""]
) -> tuple[Float[Array, "*T"], Float[Array, "*T"]]:
    """h_t = 4 / ((L + μ) (1 + s_t)) and m_t = (1 - s_t) / (1 + s_t)."""
    return 4 / ((L + mu) * (1 + root)), (1 - root) / (1 + root)


def next_root(
    root: Float[Array, ""], defect: Float[Array, ""], gap: Float[Array, ""]
) -> Float[Array, ""]:
    """s_n = (s_{n-1} + d_n + (1 - d_n) g) / (1 + s_{n-1}),  d_n = 1 - 4γ_n,  g = 4μL / (L + μ)².

    It stands for the ratio of neighbours z_0 Q_n(z_0) / Q_{n+1}(z_0) = 2 / (1 + s_n), z_0 = m(0),
    so that nothing overflows, and goes from s_0 = 1 to √g ≈ 2 √(μ/L). 1 - z_0⁻² = g is never
    formed by subtraction, which would lose the condition number in single precision.

    From z_0 Q_n = Q_{n+1} + γ_n Q_{n-1}; Gautschi (1967) for ratios in place of values."""
    return (root + defect + (1 - defect) * gap) / (1 + root)


@eqx.filter_jit
def _roots(gap: Float[Array, ""], alpha: Float[Array, ""], steps: int) -> Float[Array, " T"]:
    """s_0, ..., s_{T-1}."""

    def advance(root, n):
        return next_root(root, gegenbauer_defect(n, alpha), gap), root

    first = jnp.ones_like(gap)
    return jax.lax.scan(advance, first, jnp.arange(1, steps + 1, dtype=gap.dtype))[1]


def _constant_coefficients(steps: int, *values: ArrayLike) -> list[Float[Array, " T"]]:
    steps, reals = check_steps(steps), as_reals(*values)
    for value in reals:
        check_scalar("A step size or momentum", value)
        check_finite("A step size or momentum", value)
    return [jnp.full(steps, value) for value in reals]
