"""min_θ φ(x*(θ), θ) by certified hypergradients: the outer loop."""

from dargmin.bilevel.history import History
from dargmin.bilevel.minimize import BilevelSolution, minimize
from dargmin.bilevel.optimizers import LBFGSB

__all__ = ["LBFGSB", "BilevelSolution", "History", "minimize"]
