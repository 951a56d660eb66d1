"""The method with the best unrolled derivative where the first gradient does not depend on θ."""

from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from dargmin import tree
from dargmin.methods.base import AbstractMethod
from dargmin.polynomials import KernelRecurrence
from dargmin.problems import AbstractProblem
from dargmin.types import Parameters, Point


class DerivativeKernel(AbstractMethod):
    """x_t = Σ_{n<=t} c_n y_n, Σ c_n = 1, of the iterates y_n of Gegenbauer's method, with the c_n
    for which ∫(P - λP')² is least: see `KernelCoefficients` for the short recurrence.

    On quadratics, dx_t - dx* = (P_t - λP_t')(H) (dx_0 - dx*) where the gradient at x_0 does not
    depend on θ: x_0 = 0 and θ a penalty, for instance. Of all methods with fixed coefficients, this
    one has the least mean square error of the *unrolled derivative* there, at every t, where a
    random problem has the spectral density (1 - z²)^(α - 1/2), z = (2λ - L - μ)/(L - μ). For
    0 <= α <= 1 there is no burn-in in the worst case either (computed down to μ/L = 1e-6). Where
    the gradient does depend on θ, by g = d∇f(x_0), up to 0.47 ‖g‖/μ is added, as in Nesterov's
    method: from far away, `Sobolev` is better. One gradient a step, taken at y_t; x_1 = x_0.

    Parameters
    ----------
    mu, L : float, 0 < mu <= L
        Bounds of the spectrum of the Hessian. Too small an L diverges. These and alpha are
        constants of the derivative, unless `Unrolled(hyperparameters=True)`.
    alpha : float, > -1/2
        Exponent of the spectral density: 1/2 uniform; 0 Chebyshev's, whose derivative is within a
        factor of about 2 of the best in the worst case, but whose x_t overshoots by up to
        0.27 √(L/μ). From 1/2 on, x_t does not overshoot.

    Raises
    ------
    ValueError
        If not 0 < mu <= L, or alpha <= -1/2."""

    recurrence: KernelRecurrence

    def __init__(self, mu: ArrayLike, L: ArrayLike, alpha: ArrayLike = 0.5):
        self.recurrence = KernelRecurrence(mu, L, alpha)

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        # The coefficients are ratios near 1 that half precision would ruin; they cost nothing.
        dtype = np.promote_types(tree.dtype(x), np.float32)
        zero = tree.zeros_like(x)
        return (x, x), (zero, zero, zero), self.recurrence.begin(dtype)

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        (y, before), (w, a, b), ratios = state
        c, ratios = self.recurrence.advance(ratios)
        gradient = problem.residual(y, theta)
        following = tree.axpy(c.momentum, tree.sub(y, before), tree.axpy(-c.step_size, gradient, y))
        moved = tree.sub(following, y)
        w = tree.scale(c.carry, tree.axpy(-c.direction_total, moved, w))
        w = tree.axpy(c.back, tree.sub(before, following), w)
        a = tree.axpy(c.level_weight, w, tree.axpy(-c.level_total, moved, a))
        b = tree.axpy(c.tilt_weight, w, tree.axpy(-c.tilt_total, moved, b))
        b = tree.axpy(-c.gain, tree.axpy(c.offset, b, a), b)
        a = tree.scale(c.shrinkage, a)
        x = tree.axpy(-c.mean, b, tree.add(following, a))
        return x, ((following, y), (w, a, b), ratios), gradient
