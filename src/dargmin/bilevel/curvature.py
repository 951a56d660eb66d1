"""What the last steps show of the curvature of φ: how far θ is from where it is stationary."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

from dargmin.bilevel.box import Vector

MOST_PAIRS = 10
MOST_NUMBERS = 2**22
"""In all steps; as many again are in their changes."""

CLEAR = 3.0
"""Times their errors: the change of two gradients that shows a curvature. (True errors are at most
three times the certified ones.)"""

NEARBY = 0.1
"""Of the length of θ: curvatures from further away are not those of here."""


class Pairs(eqx.Module):
    """The last steps s, the changes y = ∇Φ(θ + s) - ∇Φ(θ), and where the last of them ended.

    A step whose change could be an error is joined to the next, until the change is clear.

    Attributes
    ----------
    steps, changes : arrays, shape (m, p)
        The newest last; rows of zeros where there are none yet.
    theta, gradient : arrays, shape (p,)
        Where the next step begins.
    error : float
        Of that gradient; infinite before the first."""

    steps: Float[np.ndarray, "m p"]
    changes: Float[np.ndarray, "m p"]
    theta: Vector
    gradient: Vector
    error: Any

    @classmethod
    def none(cls, size: int) -> "Pairs":
        """Before the first gradient; fewer where p is large."""
        rows = int(np.clip(MOST_NUMBERS // max(size, 1), 1, MOST_PAIRS))
        zeros = np.zeros((rows, size))
        return cls(zeros, zeros, np.zeros(size), np.zeros(size), np.asarray(np.inf))

    def following(self, theta: Vector, gradient: Vector, error: float) -> "Pairs":
        """With one more gradient."""
        if not np.isfinite(self.error):
            return Pairs(self.steps, self.changes, theta, gradient, np.asarray(error))
        step, change = theta - self.theta, gradient - self.gradient
        if np.linalg.norm(change) <= CLEAR * (error + float(self.error)):
            return self
        push = lambda rows, row: np.concatenate([rows[1:], row[None]])
        return Pairs(
            push(self.steps, step), push(self.changes, change), theta, gradient, np.asarray(error)
        )

    @property
    def concave(self) -> bool:
        """Whether the curvature along the last step is negative."""
        return bool(self.steps[-1] @ self.changes[-1] < 0)

    def distance(self, theta: Vector, gradient: Vector, free: Bool[np.ndarray, " p"]) -> float:
        """√(gᵀB⁻¹g / L): how far the minimum is, in the metric of the curvature B of the last
        steps relative to its largest L nearby; infinite where they show none, or a negative one.

        B⁻¹ is the L-BFGS matrix of the coordinates that are free to move. ½ gᵀB⁻¹g is the decrease
        of φ that is left, and ½ L ‖s‖² what a step s may change at most.

        References
        ----------
        Nocedal (1980), for the two loops."""
        pairs = [
            (s, y, float(s @ y))
            for s, y in zip(self.steps * free, self.changes * free, strict=True)
            if np.any(y) and np.any(s)
        ]
        if not pairs or pairs[-1][2] <= 0:
            return np.inf
        return float(
            np.sqrt(_newton_decrement(pairs, gradient * free) / self._largest(theta, free))
        )

    def _largest(self, theta: Vector, free: Bool[np.ndarray, " p"]) -> float:
        """The largest ‖y‖² / sᵀy of the steps that were taken nearby, and of the last one."""
        end, radius, found = self.theta, NEARBY * np.linalg.norm(theta), []
        for s, y in zip(self.steps[::-1], self.changes[::-1], strict=True):
            here = max(np.linalg.norm(end - theta), np.linalg.norm(end - s - theta)) <= radius
            along = float((s * free) @ (y * free))
            if along > 0 and (here or not found):
                found.append(float(np.sum((y * free) ** 2)) / along)
            end = end - s
        return max(found)


def _newton_decrement(pairs: list[tuple[Vector, Vector, float]], gradient: Vector) -> float:
    """gᵀB⁻¹g by the two loops, over the pairs of positive curvature; where they have not been, B is
    the smallest curvature sᵀy / sᵀs that they have met."""
    pairs = [pair for pair in pairs if pair[2] > 0]
    q, weights = gradient.copy(), []
    for s, y, along in reversed(pairs):
        weights.append(float(s @ q) / along)
        q = q - weights[-1] * y
    r = max(float(s @ s) / along for s, _, along in pairs) * q
    for (s, y, along), weight in zip(pairs, reversed(weights), strict=True):
        r = r + (weight - float(y @ r) / along) * s
    return max(float(gradient @ r), 0.0)
