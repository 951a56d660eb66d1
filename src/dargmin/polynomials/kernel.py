"""The polynomials that minimise ∫(P - λP')² dμ, P(0) = 1: short recurrence for Gegenbauer μ."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dargmin.polynomials.checks import as_reals, check_alpha, check_spectrum, holds
from dargmin.polynomials.recurrence import (
    gegenbauer_coefficients,
    gegenbauer_defect,
    next_root,
    spectral_gap,
)

Scalar = Float[Array, ""]


class KernelCoefficients(NamedTuple):
    """The coefficients of step n + 1 = t + 1. With d = y_{n+1} - y_n,

    y_{n+1} = y_n + m (y_n - y_{n-1}) - h ∇f(y_n)
    w = β (y_{n-1} - y_{n+1}) + κ (w - τ_w d)
    a = a - τ_a d + ζ_a w,  b = b - τ_b d + ζ_b w
    b = b - k (a + δb),  a = ςa
    x_{n+1} = y_{n+1} + a - ē b"""

    step_size: Scalar  # h
    momentum: Scalar  # m
    back: Scalar  # β
    carry: Scalar  # κ
    direction_total: Scalar  # τ_w
    level_total: Scalar  # τ_a
    tilt_total: Scalar  # τ_b
    level_weight: Scalar  # ζ_a
    tilt_weight: Scalar  # ζ_b
    gain: Scalar  # k
    offset: Scalar  # δ
    shrinkage: Scalar  # ς
    mean: Scalar  # ē


class Regression(NamedTuple):
    """The weights ŵ_0, ..., ŵ_n, Σŵ = 1, and the mean and variance of e_0, ..., e_n under them."""

    weight: Scalar  # ŵ_n
    slope: Scalar  # e_n
    difference: Scalar  # e_n - e_{n-1}
    excess: Scalar  # e_n - ē
    variance: Scalar
    gain: Scalar  # ŵ_n (e_n - ē) / variance, which has a limit for μ = L


class Elimination(NamedTuple):
    """Where the tridiagonal elimination stands after row n."""

    upper: Scalar  # u_n / pivot_n
    level: Scalar  # ζ_a
    tilt: Scalar  # ζ_b
    direction_total: Scalar  # τ_w
    level_total: Scalar  # τ_a
    tilt_total: Scalar  # τ_b


class KernelRatios(NamedTuple):
    """Where the recurrence of the coefficients stands before step n + 1. All stay finite."""

    n: Scalar  # exact to 2²⁴ in float32; the coefficients have settled long before
    root: Scalar  # s_n: see next_root
    ratio: Scalar  # r_{n-1}
    gamma: Scalar  # γ_n
    regression: Regression
    elimination: Elimination


class KernelRecurrence(eqx.Module):
    """R_t = P_t - λP_t' = Σ_{n<=t} ŵ_n (1 - ē (e_n - ē)/s²) G_n: least ∫R² dμ, R(0) = 1, R'(0) = 0.

    G_n are the residual polynomials of Gegenbauer's method for μ ∝ (1 - z²)^(α - 1/2) on [μ, L],
    ŵ_n ∝ 1/‖G_n‖² with Σŵ = 1, e_n = -(L + μ)/2 G_n'(0), and ē and s² the mean and variance of e_n
    under ŵ: a kernel polynomial with two conditions. P follows from R up to a multiple of λ, which
    is chosen for the least ∫P'² dμ. With V_n' = -2/(L + μ) G_n,

        V_n - λV_n' = G_n - l_{n+1} G_{n+1} - u_{n-1} G_{n-1},  P = r_0 + Σ_{1<=n<t} f_n V_n,
        f_n - l_n f_{n-1} - u_n f_{n+1} = r_n:

    diagonally dominant, and solved by an elimination that runs along with t, as Lanczos' does in
    conjugate gradients, once for each of two right-hand sides, ŵ_n and ŵ_n (e_n - ē)/s². Kept are
    differences from y_t, which vanish at convergence, and their rounding with them.

    Everything is a ratio of neighbours, c = ((L - μ)/(L + μ))², r_n = 2/(1 + s_n) with `next_root`;
    μ = L is no exception.

    Parameters
    ----------
    mu, L : float, 0 < mu <= L
    alpha : float, > -1/2"""

    mu: Float[Array, "*batch"]
    L: Float[Array, "*batch"]
    alpha: Float[Array, "*batch"]

    def __init__(self, mu: ArrayLike, L: ArrayLike, alpha: ArrayLike):
        mu, L, alpha = as_reals(mu, L, alpha)
        check_spectrum(mu, L)
        check_alpha(alpha)
        if not holds(mu > 0):
            raise ValueError(
                f"mu={mu}, but an optimal derivative needs mu > 0: add a ridge, or use "
                "Nesterov.convex()."
            )
        self.mu, self.L, self.alpha = mu, L, alpha

    def begin(self, dtype: np.dtype) -> KernelRatios:
        """The ratios before the first step: ŵ_0 = 1, and x_0 = y_0 is all of the sum."""
        zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
        regression = Regression(one, zero, zero, zero, zero, zero)
        elimination = Elimination(zero, zero, zero, zero, one, zero)
        return KernelRatios(zero, one, one, zero, regression, elimination)

    def advance(self, ratios: KernelRatios) -> tuple[KernelCoefficients, KernelRatios]:
        """The coefficients of step n + 1, and the ratios before the next one."""
        n, s, dtype = ratios.n, ratios.root, ratios.n.dtype
        mu, L, alpha = (value.astype(dtype) for value in (self.mu, self.L, self.alpha))
        before, rows = ratios.regression, ratios.elimination
        c, r = ((L - mu) / (L + mu)) ** 2, 2 / (1 + s)
        h, m = gegenbauer_coefficients(s, mu, L)
        # V_n = (G_{n+1}/r_n - ξ_{n+1} c r_{n-1} G_{n-1}) / (n + 1); V_0 would be a multiple of λ
        later, k = n > 0, jnp.maximum(n, 1)
        back = jnp.where(later, -_coherence(n, alpha) * c * ratios.ratio / (n + 1), 0)
        total = jnp.where(later, 1 / (r * (n + 1)) + back, 0)
        # row n of the elimination
        lower = jnp.where(later, (n - 1) / (k * ratios.ratio), 0)
        pivot = 1 - lower * rows.upper
        direction_total = total + rows.upper * rows.direction_total
        level = jnp.where(later, (before.weight + lower * rows.level) / pivot, 0)
        tilt = jnp.where(later, (before.gain + lower * rows.tilt) / pivot, 0)
        level_total = rows.level_total + level * direction_total
        tilt_total = rows.tilt_total + tilt * direction_total
        upper = (k + 1) * (k + 2 * alpha + 1) / (4 * (k + 1 + alpha) * (k + alpha)) * c * r / pivot
        # with G_{n+1}, the means and all that is weighted by ŵ move
        defect = gegenbauer_defect(n + 1, alpha)
        gamma = (1 - defect) / 4
        damping = r * ratios.gamma * c * ratios.ratio
        now, offset, shrink = _observe(before, r, c * r**2 * gamma, damping)
        coefficients = KernelCoefficients(
            h, m, back, rows.upper, rows.direction_total, rows.level_total, rows.tilt_total,
            level, tilt, now.gain, offset, shrink, now.slope - now.excess,
        )  # fmt: skip
        rows = Elimination(
            jnp.where(later, upper, 0),
            shrink * level,
            tilt - now.gain * (level + offset * tilt),
            direction_total,
            shrink * level_total,
            tilt_total - now.gain * (level_total + offset * tilt_total),
        )
        root = next_root(s, defect, spectral_gap(mu, L))
        return coefficients, KernelRatios(n + 1, root, r, gamma, now, rows)


def _observe(
    before: Regression, r: Scalar, relative: Scalar, damping: Scalar
) -> tuple[Regression, Scalar, Scalar]:
    """Weights, mean and variance with e_{n+1}, by West's update; its offset δ = e_{n+1} - ē before,
    and the shrinkage ς of the old weights. `relative` is w_n / w_{n+1} = c r_n² γ_{n+1}.

    e_{n+1} - e_n = r_n + r_n γ_n c r_{n-1} (e_n - e_{n-1}): all terms >= 0."""
    difference = r + damping * before.difference
    offset = before.excess + difference
    weight = before.weight / (before.weight + relative)
    shrink = relative / (before.weight + relative)
    spread = before.variance + weight * offset**2
    now = Regression(
        weight,
        before.slope + difference,
        difference,
        shrink * offset,
        shrink * spread,
        weight * offset / spread,
    )
    return now, offset, shrink


def _coherence(n: Scalar, alpha: Scalar) -> Scalar:
    """ξ_{n+1} = n (n + 1) / (4 (n + α) (n + α - 1)): (Q_{n+1} - ξ_{n+1} Q_{n-1})' = (n + 1) Q_n.

    ξ_2 is arbitrary, because Q_0' = 0: -2γ_1 leaves V_1 - λV_1' without a constant."""
    m = jnp.maximum(n, 2)
    general = m * (m + 1) / (4 * (m + alpha) * (m + alpha - 1))
    return jnp.where(n > 1, general, -1 / (1 + alpha))
