"""What x*(θ) is: a residual F(x, θ) = 0, and the structure of its Jacobian ∂ₓF."""

from dargmin.problems.base import (
    AbstractProblem,
    Composite,
    FixedPoint,
    LinearSystem,
    Objective,
    Root,
)

__all__ = ["AbstractProblem", "Composite", "FixedPoint", "LinearSystem", "Objective", "Root"]
