"""Which derivative: of the algorithm (Unrolled, LateStart), of the solution (Implicit, Neumann)."""

from dargmin.modes.base import AbstractMode
from dargmin.modes.implicit import AbstractFrozenMode, Implicit, Neumann
from dargmin.modes.unrolled import LateStart, Unrolled

__all__ = ["AbstractFrozenMode", "AbstractMode", "Implicit", "LateStart", "Neumann", "Unrolled"]
