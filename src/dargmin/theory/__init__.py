"""What theory says about the derivatives of iterations: one theorem, one function."""

from dargmin.theory.budget import budget_step_size
from dargmin.theory.burn_in import (
    BurnIn,
    burn_in,
    burn_in_length,
    largest_monotone_step,
    peak_height,
    peak_index,
    unrolled_peak,
)
from dargmin.theory.exact import derivative_error, divided_differences
from dargmin.theory.fixed_point import (
    equivalent_start,
    forward_bound,
    forward_peak,
    late_start_bound,
    optimal_start,
    reverse_bound,
    warm_distances,
)
from dargmin.theory.implicit import (
    cg_bound,
    chebyshev_bound,
    implicit_bound,
    neumann_bound,
)
from dargmin.theory.limit import (
    hindsight_error,
    minimax_implicit,
    minimax_ratio,
    minimax_unrolled,
)
from dargmin.theory.prediction import LinearModel, Prediction, linear_model, predict
from dargmin.theory.rates import rate
from dargmin.theory.residual import residual_polynomial
from dargmin.theory.worst_case import dual_worst_case, worst_case_error

__all__ = [
    "BurnIn",
    "LinearModel",
    "Prediction",
    "budget_step_size",
    "burn_in",
    "burn_in_length",
    "cg_bound",
    "chebyshev_bound",
    "derivative_error",
    "divided_differences",
    "dual_worst_case",
    "equivalent_start",
    "forward_bound",
    "forward_peak",
    "hindsight_error",
    "implicit_bound",
    "largest_monotone_step",
    "late_start_bound",
    "linear_model",
    "minimax_implicit",
    "minimax_ratio",
    "minimax_unrolled",
    "neumann_bound",
    "optimal_start",
    "peak_height",
    "peak_index",
    "predict",
    "rate",
    "residual_polynomial",
    "reverse_bound",
    "unrolled_peak",
    "warm_distances",
    "worst_case_error",
]
