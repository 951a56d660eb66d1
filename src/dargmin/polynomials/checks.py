"""What every family requires of its parameters, checked where the values are known.

Known values stay known under `jit`, where JAX would otherwise trace what is done with them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float


def as_reals(*values: ArrayLike) -> list[Float[Array, "..."]]:
    """The values as arrays of one floating-point type."""
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        arrays = [jnp.asarray(value) for value in values]
        kind = jnp.result_type(float, *arrays)
        return [array.astype(kind) for array in arrays]


def holds(condition: Any) -> bool:
    """Whether a condition holds everywhere, or cannot be known before run time."""
    return isinstance(condition, Tracer) or bool(jnp.all(condition))


def check_spectrum(mu: Float[Array, "..."], L: Float[Array, "..."]) -> None:
    """Raise ValueError unless 0 <= μ <= L, 0 < L < ∞."""
    with jax.ensure_compile_time_eval():
        ordered = holds((mu >= 0) & (mu <= L) & (L > 0) & jnp.isfinite(L))
    if not ordered:
        raise ValueError(
            f"Spectra are given as (mu, L) with 0 <= mu <= L, but mu={mu} and L={L}. L has to be "
            "positive and finite."
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


def check_positive_spectrum(mu: Float[Array, "..."], L: Float[Array, "..."]) -> None:
    """Raise ValueError unless 0 < μ <= L."""
    check_spectrum(mu, L)
    if not holds(mu > 0):
        raise ValueError(f"mu={mu}, but this bound is finite only for mu > 0: add a ridge.")


def check_rate(rate: Float[Array, "..."]) -> None:
    """Raise ValueError unless 0 <= ρ < 1."""
    if not holds((rate >= 0) & (rate < 1)):
        raise ValueError(f"rate={rate}, but a contraction factor lies in [0, 1).")


def check_not_negative(name: str, value: Float[Array, "..."]) -> None:
    """Raise ValueError unless the value is a number >= 0."""
    if not holds(value >= 0):
        raise ValueError(f"{name}={value}, but it stands for something that is never negative.")
