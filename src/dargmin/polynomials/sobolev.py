"""The polynomials that minimise ∫P² dμ + η ∫P'² dμ, P(0) = 1: short recurrence for Gegenbauer μ."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dargmin.polynomials.checks import (
    as_reals,
    check_alpha,
    check_scalar,
    check_spectrum,
    check_steps,
    holds,
)
from dargmin.polynomials.recurrence import (
    gegenbauer_coefficients,
    gegenbauer_defect,
    next_root,
    spectral_gap,
)


class SobolevCoefficients(eqx.Module):
    """The coefficients of step n = t + 1: scalars, or arrays of shape (T,) for all the steps.

    y_n = y_t + m (y_t - y_{t-1}) - h ∇f(y_t)
    v_n = y_n - π y_{n-2} + ν v_{n-2}
    x_n = x_t + ω (v_n - φ x_t)"""

    step_size: Float[Array, "*T"]  # h
    momentum: Float[Array, "*T"]  # m
    pi: Float[Array, "*T"]
    nu: Float[Array, "*T"]
    phi: Float[Array, "*T"]
    omega: Float[Array, "*T"]


class Ratios(eqx.Module):
    """Where the recurrence of the coefficients stands before step n. All stay finite for all n."""

    n: Float[Array, ""]  # exact to 2²⁴ in float32; the coefficients have settled long before
    root: tuple[Float[Array, ""], Float[Array, ""]]  # s_{n-1}, s_{n-2}: see next_root
    weight: tuple[Float[Array, ""], Float[Array, ""]]  # 1/ρ_{n-1}, 1/ρ_{n-2}
    phi: tuple[Float[Array, ""], Float[Array, ""]]  # φ_{n-1}, φ_{n-2}
    gamma: Float[Array, ""]  # γ_{n-1}
    total: Float[Array, ""]  # D_{n-1}


class SobolevRecurrence(eqx.Module):
    """S_n = Q_n - ξ_n Q_{n-2} + (ξ_n / ρ_{n-2}) S_{n-2},  ρ_n = ‖S_n‖²_S / ‖Q_n‖².

    Q_n are the monic Gegenbauer polynomials of μ ∝ (1 - z²)^(α - 1/2) on [μ, L] mapped to [-1, 1],
    and S_n those orthogonal under ⟨p, q⟩_S = ∫pq dμ + η ∫p'q' dμ: a coherent pair, so that one
    earlier S_n is enough. With φ_n = S_n(0)/Q_n(0), g_n = Q_n(0)² / ‖S_n‖²_S and
    D_n = Σ g_k φ_k² / g_n, the polynomial that minimises ‖P‖_S under P(0) = 1 is
    P_n = Σ g_k φ_k S_k/Q_k(0) / Σ g_k φ_k², updated with weight ω_n = φ_n / D_n.

    Everything is a ratio of neighbours, in units of (L + μ)/2; μ = L is no exception. φ_n may be
    zero for α < 1/2: nothing is divided by it.

    Parameters
    ----------
    mu, L : float, 0 < mu <= L
    alpha : float, > -1/2
    eta : float, > 0

    References
    ----------
    Scieur, Gidel, Bertrand, Pedregosa (2022), arXiv:2209.13271; Iserles, Koch, Nørsett,
    Sanz-Serna (1991) for coherent pairs."""

    mu: Float[Array, "*batch"]
    L: Float[Array, "*batch"]
    alpha: Float[Array, "*batch"]
    eta: Float[Array, "*batch"]

    def __init__(self, mu: ArrayLike, L: ArrayLike, alpha: ArrayLike, eta: ArrayLike):
        mu, L, alpha, eta = as_reals(mu, L, alpha, eta)
        check_spectrum(mu, L)
        check_alpha(alpha)
        if not holds(mu > 0):
            raise ValueError(
                f"mu={mu}, but the Sobolev method needs mu > 0: without a lower bound its optimum "
                "does not converge to zero near 0. Add a ridge, or use Nesterov.convex()."
            )
        if not holds((eta > 0) & jnp.isfinite(eta)):
            raise ValueError(
                f"eta={eta}, but the weight of P'² must be positive and finite. Usual is mu * L; "
                "a larger one means less burn-in and slower first steps."
            )
        self.mu, self.L, self.alpha, self.eta = mu, L, alpha, eta

    def begin(self, dtype: np.dtype) -> Ratios:
        """The ratios before the first step."""
        one = jnp.ones((), dtype)
        # What has index -1, and γ_0, is multiplied by ξ_1 = ξ_2 = 0.
        return Ratios(one, (one, one), (one, one), (one, one), one, one)

    def advance(self, ratios: Ratios) -> tuple[SobolevCoefficients, Ratios]:
        """The coefficients of step n, and the ratios before step n + 1."""
        n, dtype = ratios.n, ratios.n.dtype
        mu, L, alpha, eta = (v.astype(dtype) for v in (self.mu, self.L, self.alpha, self.eta))
        (s1, s2), (w1, w2), (phi1, phi2) = ratios.root, ratios.weight, ratios.phi
        ratio1, ratio2 = 2 / (1 + s1), 2 / (1 + s2)  # z_0 Q_{k-1}(z_0) / Q_k(z_0), k = n, n - 1
        c = ((L - mu) / (L + mu)) ** 2  # z_0⁻²
        defect, xi = gegenbauer_defect(n, alpha), _coherence(n, alpha)
        gamma = (1 - defect) / 4
        pi = xi * c * ratio1 * ratio2
        nu = pi * w2
        phi = 1 - pi + nu * phi2
        # c ρ_n = c + (η / ((L + μ)/2)²) n²/γ_n + c ξ_n²/(γ_n γ_{n-1}) (1 - 1/ρ_{n-2}): all ≥ 0
        scale = 2 / (L + mu)
        mixed = c * xi**2 / (gamma * ratios.gamma) * (1 - w2)
        c_rho = c + scale * (scale * eta) * n**2 / gamma + mixed
        # D_n = D_{n-1} g_{n-1}/g_n + φ_n²
        total = ratios.total * c_rho * w1 * gamma * ratio1**2 + phi**2
        h, m = gegenbauer_coefficients(s1, mu, L)
        root = next_root(s1, defect, spectral_gap(mu, L)), s1
        following = Ratios(n + 1, root, (c / c_rho, w1), (phi, phi1), gamma, total)
        return SobolevCoefficients(h, m, pi, nu, phi, phi / total), following


class SobolevPolynomials(eqx.Module):
    """P_n = P_{n-1} + ω_n (V_n - φ_n P_{n-1}),  V_n = Y_n - π_n Y_{n-2} + ν_n V_{n-2},
    Y_n = Y_{n-1} + m_n (Y_{n-1} - Y_{n-2}) - h_n λ Y_{n-1}: `SobolevCoefficients` in scalars."""

    coefficients: SobolevCoefficients

    def __call__(self, lam: ArrayLike) -> Float[Array, "times *n"]:
        """P_0(λ), ..., P_T(λ)."""
        (lam,) = as_reals(lam)

        def advance(carry, c):
            (y1, y2), (v1, v2), p = carry
            y = y1 + c.momentum * (y1 - y2) - c.step_size * lam * y1
            v = y - c.pi * y2 + c.nu * v2
            p = p + c.omega * (v - c.phi * p)
            return ((y, y1), (v, v1), p), p

        one = jnp.ones_like(lam)
        coefficients = jax.tree.map(lambda c: c.astype(lam.dtype), self.coefficients)
        _, rest = jax.lax.scan(advance, ((one, one), (one, one), one), coefficients)
        return jnp.concatenate([one[None], rest])


def sobolev(
    mu: ArrayLike, L: ArrayLike, alpha: ArrayLike, eta: ArrayLike, steps: int
) -> SobolevPolynomials:
    """P_t = argmin ∫P² dμ + η ∫P'² dμ over deg P <= t, P(0) = 1, μ ∝ (1 - z²)^(α - 1/2) on [μ, L].

    Parameters
    ----------
    mu, L, alpha, eta : float
        As in `SobolevRecurrence`.
    steps : int, >= 1

    Raises
    ------
    ValueError
        If not 0 < mu <= L, or alpha <= -1/2, or eta <= 0, or steps < 1."""
    steps, recurrence = check_steps(steps), SobolevRecurrence(mu, L, alpha, eta)
    for name in ("mu", "L", "alpha", "eta"):
        check_scalar(name, getattr(recurrence, name))
    return SobolevPolynomials(_coefficients(recurrence, steps))


@eqx.filter_jit
def _coefficients(recurrence: SobolevRecurrence, steps: int) -> SobolevCoefficients:
    def advance(ratios, _):
        coefficients, ratios = recurrence.advance(ratios)
        return ratios, coefficients

    return jax.lax.scan(advance, recurrence.begin(recurrence.mu.dtype), None, length=steps)[1]


def _coherence(n: Float[Array, ""], alpha: Float[Array, ""]) -> Float[Array, ""]:
    """ξ_n = n (n - 1) / (4 (n - 1 + α) (n - 2 + α)): (Q_n - ξ_n Q_{n-2})' = n Q_{n-1}, n >= 3.

    ξ_2 is arbitrary, because Q_0' = 0: 0 also avoids the 0/0 at α = 0."""
    m = jnp.maximum(n, 3)
    return jnp.where(n >= 3, m * (m - 1) / (4 * (m - 1 + alpha) * (m - 2 + alpha)), 0)
