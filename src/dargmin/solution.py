"""What `solve` returns."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int

from dargmin import show
from dargmin.status import is_ok, raise_if_failed
from dargmin.types import Point


class Solution(eqx.Module):
    """The last iterate, differentiable in the mode that was asked for, and how it was reached.

    Attributes
    ----------
    x : pytree like x0
        x_T.
    status : Status
        `.ok`, or why not. Batched under `vmap`.
    steps : int array
        The number N of steps taken.
    residual : array
        ‖F(x_T, θ)‖₂, evaluated once at the end.
    tol : array or None
        The tolerance that was asked for.
    start : int array or None
        `LateStart` only: the step from which the iterations are differentiated.
    aux : pytree or None
        What the problem's function returns besides its value (`has_aux=True`), at x_T."""

    x: Point
    status: Any
    steps: Int[Array, "*batch"]
    residual: Float[Array, "*batch"]
    tol: Float[Array, "*batch"] | None = None
    start: Int[Array, "*batch"] | None = None
    aux: Any = None

    def __repr__(self) -> str:
        tol = {} if self.tol is None else {"tol": self.tol}
        start = {} if self.start is None else {"start": self.start}
        parts = {"x": self.x, "steps": self.steps, "residual": self.residual}
        return show.lines(f"Solution: {show.in_words(self.status)}", parts | tol | start)

    @property
    def ok(self) -> Bool[Array, "*batch"]:
        return is_ok(self.status)

    def raise_if_failed(self) -> "Solution":
        """Return self, or raise `DargminError` if the status is not ok anywhere."""
        return raise_if_failed(self, detail=self._progress())

    def _progress(self) -> str:
        if self.status.is_traced():
            return ""
        goal = "" if self.tol is None else f", tol={self.tol}"
        return f"After {self.steps} steps the residual is {self.residual}{goal}."
