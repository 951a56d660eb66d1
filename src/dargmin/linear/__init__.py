"""The adjoint linear solve: solvers that judge themselves, and the spectrum."""

from dargmin.linear.auto import Auto
from dargmin.linear.cg import CG
from dargmin.linear.dense import BlockDense, Dense
from dargmin.linear.factored import Factored, factored
from dargmin.linear.krylov import GMRES, BiCGStab
from dargmin.linear.lanczos import lanczos, largest_eigenvalue
from dargmin.linear.newton import Correction, newton_correction
from dargmin.linear.recycling import Pairs
from dargmin.linear.scaling import jacobi, scaling
from dargmin.linear.solution import AbstractLinearSolver, LinearInfo
from dargmin.linear.spectrum import (
    Contraction,
    Spectrum,
    contraction,
    hessian_spectrum,
    prepare,
    smoothness,
)
from dargmin.linear.system import (
    LinearOptions,
    LinearSolution,
    solve_linear,
    solve_linear_differentiably,
)
from dargmin.linear.work import forming_pays

__all__ = [
    "CG",
    "GMRES",
    "AbstractLinearSolver",
    "Auto",
    "BiCGStab",
    "BlockDense",
    "Contraction",
    "Correction",
    "Dense",
    "Factored",
    "LinearInfo",
    "LinearOptions",
    "LinearSolution",
    "Pairs",
    "Spectrum",
    "contraction",
    "factored",
    "forming_pays",
    "hessian_spectrum",
    "jacobi",
    "lanczos",
    "largest_eigenvalue",
    "newton_correction",
    "prepare",
    "scaling",
    "smoothness",
    "solve_linear",
    "solve_linear_differentiably",
]
