"""Decisions that are made once for all lanes of a batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


@jax.custom_batching.custom_vmap
def in_every_lane(condition: Bool[Array, ""]) -> Bool[Array, ""]:
    """`condition`, reduced to one value under `vmap`, so that a `cond` on it stays a branch."""
    return condition


@in_every_lane.def_vmap
def _(axis_size: int, in_batched: Any, condition: Bool[Array, " lanes"]) -> Any:
    return in_every_lane(jnp.all(condition)), False
