"""Residual polynomials: x_t - x* = P_t(H) (x_0 - x*) on quadratics with Hessian H, P_t(0) = 1.

A family P_0, ..., P_T is its coefficients. Called, it gives the values; `evaluate` gives the
derivatives too, which are what an unrolled derivative is made of."""

from dargmin.polynomials.kernel import KernelCoefficients, KernelRecurrence
from dargmin.polynomials.measure import MeasurePolynomials, sobolev_for_measure
from dargmin.polynomials.recurrence import (
    Recurrence,
    chebyshev,
    evaluate,
    gegenbauer,
    gradient_descent,
    heavy_ball,
    nesterov,
)
from dargmin.polynomials.sobolev import (
    SobolevCoefficients,
    SobolevPolynomials,
    SobolevRecurrence,
    sobolev,
)

__all__ = [
    "KernelCoefficients",
    "KernelRecurrence",
    "MeasurePolynomials",
    "Recurrence",
    "SobolevCoefficients",
    "SobolevPolynomials",
    "SobolevRecurrence",
    "chebyshev",
    "evaluate",
    "gegenbauer",
    "gradient_descent",
    "heavy_ball",
    "nesterov",
    "sobolev",
    "sobolev_for_measure",
]
