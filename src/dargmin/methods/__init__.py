"""How to walk to the solution: one step each."""

from dargmin.methods.adapters import FromOptax, FromOptimistix
from dargmin.methods.base import AbstractMethod
from dargmin.methods.derivative_kernel import DerivativeKernel
from dargmin.methods.first_order import (
    Chebyshev,
    ConvexNesterov,
    GradientDescent,
    HeavyBall,
    Nesterov,
)
from dargmin.methods.line_search import Landing, armijo
from dargmin.methods.proximal import FixedPointIteration, ProximalGradient
from dargmin.methods.quasi_newton import LBFGS
from dargmin.methods.second_order import ConjugateGradient, NewtonCG
from dargmin.methods.sobolev import Sobolev

__all__ = [
    "LBFGS",
    "AbstractMethod",
    "Chebyshev",
    "ConjugateGradient",
    "ConvexNesterov",
    "DerivativeKernel",
    "FixedPointIteration",
    "FromOptax",
    "FromOptimistix",
    "GradientDescent",
    "HeavyBall",
    "Landing",
    "Nesterov",
    "NewtonCG",
    "ProximalGradient",
    "Sobolev",
    "armijo",
]
