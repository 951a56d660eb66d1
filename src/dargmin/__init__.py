"""dargmin: the derivative of argmin, with an error bar."""

from dargmin import linear, methods, modes, polynomials, problems, prox, theory
from dargmin.certificate import Certificate, certify
from dargmin.diagnose import diagnose
from dargmin.diagnosis import Diagnosis
from dargmin.hypergradient import (
    Hypergradient,
    WarmStart,
    hypergradient,
)
from dargmin.loop import trace
from dargmin.methods import (
    LBFGS,
    Chebyshev,
    ConjugateGradient,
    DerivativeKernel,
    FixedPointIteration,
    FromOptax,
    FromOptimistix,
    GradientDescent,
    HeavyBall,
    Nesterov,
    NewtonCG,
    ProximalGradient,
    Sobolev,
)
from dargmin.modes import Implicit, LateStart, Neumann, Unrolled
from dargmin.plan import Plan, plan
from dargmin.problems import Composite, FixedPoint, Objective, Root
from dargmin.sensitivity import Sensitivity, sensitivity
from dargmin.solution import Solution
from dargmin.solve import attach, solve
from dargmin.status import DargminError, Status

__version__ = "0.1.0"

__all__ = [
    "LBFGS",
    "Certificate",
    "Chebyshev",
    "Composite",
    "ConjugateGradient",
    "DargminError",
    "DerivativeKernel",
    "Diagnosis",
    "FixedPoint",
    "FixedPointIteration",
    "FromOptax",
    "FromOptimistix",
    "GradientDescent",
    "HeavyBall",
    "Hypergradient",
    "Implicit",
    "LateStart",
    "Nesterov",
    "Neumann",
    "NewtonCG",
    "Objective",
    "Plan",
    "ProximalGradient",
    "Root",
    "Sensitivity",
    "Sobolev",
    "Solution",
    "Status",
    "Unrolled",
    "WarmStart",
    "attach",
    "certify",
    "diagnose",
    "hypergradient",
    "linear",
    "methods",
    "modes",
    "plan",
    "polynomials",
    "problems",
    "prox",
    "sensitivity",
    "solve",
    "theory",
    "trace",
]
