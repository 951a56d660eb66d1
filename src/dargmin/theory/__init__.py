"""What theory says about the derivatives of iterations."""

from dargmin.theory.residual import residual_polynomial

__all__ = ["residual_polynomial"]
