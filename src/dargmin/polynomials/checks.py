"""What every family requires of its parameters, checked where the values are known.

Known values stay known under `jit`, where JAX would otherwise trace what is done with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float


def as_reals(*values: ArrayLike) -> list[Float[Array, "..."]]:
    """The values as arrays of one floating-point type.

    Raises
    ------
    ValueError
        If one of them is not made of real numbers, or their shapes do not broadcast."""
    with jax.ensure_compile_time_eval(), jax.numpy_dtype_promotion("standard"):
        try:
            arrays = [jnp.asarray(value) for value in values]
        except TypeError:
            raise ValueError(
                f"Real numbers, or arrays of them, are needed here, not {values}."
            ) from None
        if any(jnp.iscomplexobj(array) for array in arrays):
            raise ValueError(f"Real numbers are needed here, but a value is complex: {values}.")
        shapes = [array.shape for array in arrays]
        try:
            np.broadcast_shapes(*shapes)
        except ValueError:
            raise ValueError(f"Arrays of shapes {shapes} do not broadcast to one shape.") from None
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


def check_steps(steps: Any, name: str = "steps", least: int = 1) -> int:
    """T as a Python integer; raise ValueError unless it is one, and T >= 1."""
    whole = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
    if isinstance(steps, np.ndarray | jax.Array) and not isinstance(steps, Tracer):
        whole = steps.ndim == 0 and jnp.issubdtype(steps.dtype, jnp.integer)
    if not whole or steps < least:
        raise ValueError(f"{name}={steps}, but it has to be an integer {name} >= {least}.")
    return int(steps)


def check_whole(name: str, value: Float[Array, "..."], least: int = 0) -> None:
    """Raise ValueError unless the values are whole numbers, and no smaller than `least`."""
    if not holds((value >= least) & (value == jnp.floor(value))):
        raise ValueError(f"{name}={value}, but it has to be a whole number, {name} >= {least}.")


def check_finite(name: str, value: Float[Array, "..."]) -> None:
    """Raise ValueError unless all values are finite."""
    if not holds(jnp.isfinite(value)):
        raise ValueError(f"{name}={value}, but it has to be finite.")


def check_scalar(name: str, value: Float[Array, "..."]) -> None:
    """Raise ValueError unless the value is one number; batches go through `jax.vmap`."""
    if value.ndim != 0:
        raise ValueError(f"{name} has shape {value.shape}, but one number is needed: use jax.vmap.")


def on_host(function: str, *values: Any) -> list[Float[np.ndarray, "..."]]:
    """The values as float64 arrays of NumPy.

    Raises
    ------
    ValueError
        If one of them is traced, or not made of real numbers."""
    if any(isinstance(value, Tracer) for value in values):
        raise ValueError(
            f"{function} runs on the host, in NumPy: call it outside jit, grad and vmap."
        )
    try:
        return [np.asarray(value, np.float64) for value in values]
    except (TypeError, ValueError):
        raise ValueError(
            f"{function} needs real numbers, or vectors of them, not {values}."
        ) from None


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
