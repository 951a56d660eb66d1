"""What every family requires of its parameters, checked where the values are known."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float


def as_reals(*values: ArrayLike) -> list[Float[Array, "..."]]:
    """The values as arrays of one floating-point type."""
    arrays = [jnp.asarray(value) for value in values]
    with jax.numpy_dtype_promotion("standard"):
        kind = jnp.result_type(float, *arrays)
    return [array.astype(kind) for array in arrays]


def holds(condition: Any) -> bool:
    """Whether a condition holds everywhere, or cannot be known before run time."""
    return isinstance(condition, Tracer) or bool(jnp.all(condition))


def check_spectrum(mu: Float[Array, "..."], L: Float[Array, "..."]) -> None:
    """Raise ValueError unless 0 <= μ <= L, L > 0."""
    if not holds((mu >= 0) & (mu <= L) & (L > 0) & jnp.isfinite(L)):
        raise ValueError(
            f"A spectrum is given as (mu, L) with 0 <= mu <= L and L > 0, but mu={mu} and L={L}."
        )


def check_alpha(alpha: Float[Array, "..."]) -> None:
    """Raise ValueError unless α > -1/2."""
    if not holds((alpha > -0.5) & jnp.isfinite(alpha)):
        raise ValueError(
            f"The density (1 - z²)^(α - 1/2) can be integrated only for alpha > -1/2, but "
            f"alpha={alpha}. Usual are 0 (Chebyshev), 0.5 (uniform) and 1."
        )


def check_steps(steps: int) -> None:
    """Raise ValueError unless T >= 1."""
    if steps < 1:
        raise ValueError(f"steps={steps}, but a family of residual polynomials needs steps >= 1.")
