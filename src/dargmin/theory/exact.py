"""The derivative error of a linear method on a quadratic whose H and dH need not commute."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dargmin.loop import trace
from dargmin.methods import AbstractMethod
from dargmin.polynomials.checks import as_reals, holds
from dargmin.problems import Root
from dargmin.theory.residual import check_linear, residual_polynomial


def divided_differences(
    method: AbstractMethod, lam: ArrayLike, steps: int
) -> Float[Array, "times n n"]:
    """P_t[λ_i, λ_j] = (P_t(λ_i) - P_t(λ_j)) / (λ_i - λ_j), and P_t'(λ_i) where λ_i = λ_j.

    Never as a quotient, which close eigenvalues would ruin: P_t of the matrix [[λ_i, 1], [0, λ_j]]
    has it in its corner, and running the method on that matrix needs no division.

    Parameters
    ----------
    method : GradientDescent, HeavyBall, Nesterov, Chebyshev, Sobolev or DerivativeKernel
        With its step size given.
    lam : array, shape (n,)
        λ.
    steps : int, >= 1
        T.

    Returns
    -------
    array, shape (T + 1, n, n)

    Raises
    ------
    ValueError
        If steps < 1, or the method has no residual polynomials."""
    steps = check_linear(method, steps)
    (lam,) = as_reals(lam)
    if lam.ndim != 1:
        raise ValueError(f"lam has shape {lam.shape}, but a vector of eigenvalues is needed.")
    zero, one = (jnp.full((lam.size, lam.size), value, lam.dtype) for value in (0.0, 1.0))
    blocks, _ = trace(Root(_blocks), method, (zero, one), lam, jnp.zeros_like(lam), steps=steps)
    return blocks[0]


def _blocks(
    x: tuple[Float[Array, "n n"], Float[Array, "n n"]], lam: Float[Array, " n"]
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    upper, lower = x
    return lam[:, None] * upper + lower, lam[None, :] * lower


def derivative_error(
    method: AbstractMethod,
    H: ArrayLike,
    dH: ArrayLike,
    dx_error: ArrayLike,
    x_error: ArrayLike,
    steps: int,
) -> Float[Array, "times d"]:
    """dx_t - dx* = P_t(H) a + V (P_t[λ_i, λ_j] ∘ Vᵀ dH V) Vᵀ (x_0 - x*),  H = V Λ Vᵀ, t = 0..T.

    Parameters
    ----------
    method : GradientDescent, HeavyBall, Nesterov, Chebyshev, Sobolev or DerivativeKernel
        With its step size given.
    H, dH : arrays, shape (d, d), symmetric
        The Hessian, and its derivative along θ̇.
    dx_error : array, shape (d,)
        a = dx_0 - dx*.
    x_error : array, shape (d,)
        x_0 - x*.
    steps : int, >= 1
        T.

    Returns
    -------
    array, shape (T + 1, d)

    Raises
    ------
    ValueError
        If steps < 1, the method has no residual polynomials, shapes do not fit, or a matrix is
        not symmetric.

    References
    ----------
    Daleckii and Krein (1965); Higham (2008), Functions of Matrices, theorem 3.11."""
    steps = check_linear(method, steps)
    arrays = [as_reals(value)[0] for value in (H, dH, dx_error, x_error)]
    shapes, d = [array.shape for array in arrays], arrays[0].shape[0] if arrays[0].ndim else 0
    if shapes != [(d, d), (d, d), (d,), (d,)]:
        raise ValueError(
            "derivative_error needs H and dH of shape (d, d), dx_error and x_error of shape (d,), "
            f"but they have the shapes {shapes}."
        )
    for name, matrix in zip(("H", "dH"), arrays, strict=False):
        tolerance = d * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.abs(matrix), initial=0)
        if not holds(~(jnp.abs(matrix - matrix.T) > tolerance)):
            raise ValueError(f"{name} is not symmetric, but a Hessian and its derivative are.")
    hessian, change, *errors = arrays
    return _derivative_error(method, hessian, change, errors[0], errors[1], steps)


@eqx.filter_jit
def _derivative_error(
    method: AbstractMethod,
    H: Float[Array, "d d"],
    dH: Float[Array, "d d"],
    dx_error: Float[Array, " d"],
    x_error: Float[Array, " d"],
    steps: int,
) -> Float[Array, "times d"]:
    lam, V = jnp.linalg.eigh(H)
    differences = divided_differences(method, lam, steps)
    P, _ = residual_polynomial(method, lam, steps)
    mixed = differences * (V.T @ dH @ V)
    return (P * (V.T @ dx_error) + mixed @ (V.T @ x_error)) @ V.T
