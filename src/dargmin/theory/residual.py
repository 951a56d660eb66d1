"""The residual polynomials of a method, from the method itself."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dargmin.loop import trace
from dargmin.methods import (
    AbstractMethod,
    Chebyshev,
    DerivativeKernel,
    GradientDescent,
    HeavyBall,
    Nesterov,
    Sobolev,
)
from dargmin.polynomials.checks import as_reals, check_steps
from dargmin.problems import Objective

LINEAR = (GradientDescent, HeavyBall, Nesterov, Chebyshev, Sobolev, DerivativeKernel)


def residual_polynomial(
    method: AbstractMethod, lam: ArrayLike, steps: int
) -> tuple[Float[Array, "times *n"], Float[Array, "times *n"]]:
    """P_t(λ) and P_t'(λ) for t = 0..T: x_t and dx_t/dλ of the method on ½λx² from x_0 = 1.

    `dargmin.polynomials` has the same by recurrences that know no method.

    Parameters
    ----------
    method : GradientDescent, HeavyBall, Nesterov, Chebyshev, Sobolev or DerivativeKernel
        With its step size given.
    lam : array, shape (*n,)
        λ.
    steps : int, >= 1
        T.

    Returns
    -------
    (P, dP) : arrays, shape (T + 1, *n)

    Raises
    ------
    ValueError
        If steps < 1, or the coefficients of the method depend on the problem: then it has no
        residual polynomial."""
    steps = check_linear(method, steps)
    (lam,) = as_reals(lam)
    # One coordinate for each λ: a linear method treats them alike, and does not mix them.
    problem = Objective(_diagonal_quadratic, quadratic=True)
    return trace(problem, method, jnp.ones_like(lam), lam, jnp.ones_like(lam), steps=steps)


def check_linear(method: AbstractMethod, steps: int) -> int:
    """T; raise ValueError unless the coefficients are known beforehand, and T >= 1."""
    linear = isinstance(method, LINEAR)
    if not linear or (isinstance(method, GradientDescent) and method.step_size is None):
        raise ValueError(
            f"{method} has no residual polynomial, because its coefficients depend on the problem. "
            "Use GradientDescent(step_size), HeavyBall, Nesterov, Chebyshev, Sobolev or "
            "DerivativeKernel."
        )
    return check_steps(steps)


def _diagonal_quadratic(x: Float[Array, "*n"], lam: Float[Array, "*n"]) -> Float[Array, ""]:
    return 0.5 * jnp.sum(lam * x**2)
