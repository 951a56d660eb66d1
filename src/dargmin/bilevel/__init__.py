"""min_θ φ(x*(θ), θ) by certified hypergradients: the outer loop.

Several folds or tasks at once need nothing of their own: with x stacked along a first axis, data
stacked likewise in the leaves of f and φ, and both summed over `jax.vmap`, the Hessian is block
diagonal, and one compiled solve finds every fold's x*(θ) and the hypergradient of the sum."""

from dargmin.bilevel.history import History
from dargmin.bilevel.loop import BilevelSolution
from dargmin.bilevel.minimize import minimize
from dargmin.bilevel.optimizers import LBFGSB

__all__ = ["LBFGSB", "BilevelSolution", "History", "minimize"]
