"""The Sobolev method: the first-order method whose unrolled derivative is optimal on average."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from dargmin import tree
from dargmin.methods.base import AbstractMethod
from dargmin.polynomials import SobolevRecurrence
from dargmin.polynomials.checks import as_reals
from dargmin.problems import AbstractProblem
from dargmin.types import Parameters, Point


class Sobolev(AbstractMethod):
    """y_{t+1} = y_t + m_t (y_t - y_{t-1}) - h_t ∇f(y_t, θ)
    v_{t+1} = y_{t+1} - π_t y_{t-1} + ν_t v_{t-1}
    x_{t+1} = x_t + ω_t (v_{t+1} - φ_t x_t)

    On quadratics with spectrum in [μ, L] its residual polynomial minimises ∫P² + η ∫P'² over
    P(0) = 1, with the density (1 - z²)^(α - 1/2), z = (2λ - L - μ) / (L - μ). So it minimises the
    mean square error of the *unrolled derivative*, where a random problem has that spectral
    density and ‖dH (x_0 - x*)‖² = η ‖dx_0 - dx*‖²; no step increases that mean. One gradient a
    step, taken at y_t, the iterates of the Gegenbauer method; five vectors.

    Parameters
    ----------
    mu, L : float, 0 < mu <= L
        Bounds of the spectrum of the Hessian. 5 % too small an L diverges; 50 % too large an L
        costs 10 % more steps.
    alpha : float, > -1/2
        Exponent of the spectral density: 0 Chebyshev's, 1/2 uniform. Up to 1/4, no burn-in was
        seen on quadratics; from 1/2, the iterates do not overshoot on problems that are none.
    eta : float, > 0, optional
        Weight of P'². If None, μL. The larger, the less burn-in and the slower the first steps.

    Raises
    ------
    ValueError
        If not 0 < mu <= L, or alpha <= -1/2, or eta <= 0.

    References
    ----------
    Scieur, Gidel, Bertrand, Pedregosa (2022), arXiv:2209.13271."""

    recurrence: SobolevRecurrence

    def __init__(
        self,
        mu: ArrayLike,
        L: ArrayLike,
        alpha: ArrayLike = 0.5,
        eta: ArrayLike | None = None,
    ):
        mu, L = as_reals(mu, L)
        self.recurrence = SobolevRecurrence(mu, L, alpha, mu * L if eta is None else eta)

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        # The coefficients are ratios near 1 that half precision would ruin; they cost nothing.
        dtype = np.promote_types(tree.dtype(x), np.float32)
        return (x, x), (x, x), self.recurrence.begin(dtype)

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        (y1, y2), (v1, v2), ratios = state
        c, ratios = self.recurrence.advance(ratios)
        gradient = problem.residual(y1, theta)
        y = tree.axpy(c.momentum, tree.sub(y1, y2), tree.axpy(-c.step_size, gradient, y1))
        v = tree.axpy(c.nu, v2, tree.axpy(-c.pi, y2, y))
        x = tree.axpy(c.omega, tree.axpy(-c.phi, x, v), x)
        return x, ((y, y1), (v, v1), ratios), gradient
