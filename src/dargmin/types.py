"""The types that public signatures share."""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

Point: TypeAlias = PyTree[Float[ArrayLike, "..."]]
"""x: any pytree whose leaves are floating-point arrays (Python floats are leaves too)."""

Parameters: TypeAlias = Any
"""θ: any pytree. Its floating-point leaves are differentiated; integers and None ride along."""

Scalar: TypeAlias = Float[Array, ""]
Count: TypeAlias = Int[ArrayLike, "*batch"]
Flag: TypeAlias = Bool[ArrayLike, "*batch"]

ScalarFunction: TypeAlias = Callable[..., Any]
"""(x, θ) -> scalar: an objective f or an outer objective φ."""

PointFunction: TypeAlias = Callable[..., Any]
"""(x, θ) -> a pytree like x: a residual F or a fixed-point map A."""

LinearMap: TypeAlias = Callable[[Point], Point]
"""v -> K v on pytrees like x."""
