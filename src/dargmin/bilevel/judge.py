"""What is thought of an evaluation: whether it can be used, believed, and stopped at."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dargmin import tree
from dargmin.bilevel.box import Box, Vector, as_vector
from dargmin.bilevel.curvature import NEARBY, Pairs
from dargmin.bilevel.inner import Evaluation
from dargmin.status import Status

DESCENT = 1 / 3
"""True errors are at most three times the certified ones: below this fraction, -g descends."""

ROUNDINGS = 10
"""How many ε of φ two values may differ by without a reason."""

HUGE = 1e150
"""A gradient as long as that is as good as infinite: φ falls, or rises, without end."""


class Judge:
    """What the bounds, `gtol` and the last steps say of evaluations.

    Attributes
    ----------
    pairs : Pairs
        The curvature along the last steps."""

    def __init__(self, box: Box, start: Vector, gtol: float, *, refines: bool):
        self.box, self.gtol, self.refines = box, gtol, refines
        self.pairs, self.start = Pairs.none(start.size), float(np.linalg.norm(start))

    def usable(self, found: Evaluation) -> bool:
        """Whether the inner side did not fail."""
        finite = _finite(found)
        usable = (Status.ok, Status.accuracy_not_reached, Status.weakly_active)
        # After a fixed number of steps even a certificate that failed is only recorded.
        return finite and (not self.refines or is_one_of(found.status, usable))

    def slope(self, found: Evaluation) -> float:
        """The norm of the gradient, projected on what the bounds allow."""
        g = self.box.projected(as_vector(found.theta), as_vector(found.gradient))
        return float(np.linalg.norm(g))

    def length(self, found: Evaluation) -> float:
        """The norm of the gradient."""
        return float(np.linalg.norm(as_vector(found.gradient)))

    def descends(self, found: Evaluation) -> bool:
        """Whether -g certainly does."""
        slope = self.slope(found)
        return slope > 0 and float(found.error) <= DESCENT * slope

    def held(self, found: Evaluation) -> bool:
        """Whether the bounds hold θ, and the gradient is certainly not zero."""
        return self.slope(found) == 0 and float(found.error) < DESCENT * self.length(found)

    def certified(self, found: Evaluation) -> bool:
        """Whether the direction descends, or θ is stationary as far as rounding lets us see."""
        return self.descends(found) or self.stationary(found)

    def stationary(self, found: Evaluation) -> bool:
        """√(gᵀB⁻¹g / L) ≤ gtol ‖θ‖, and g known as well as that: see `Pairs.distance`. Where θ goes
        to zero, ‖θ‖ is replaced by gtol ‖θ₀‖."""
        slope, error = self.slope(found), float(found.error)
        if max(slope, error) <= self.tolerated(found):
            return True
        if self.held(found):
            return True
        # A zero that is not known any better, and makes no difference that φ could show.
        length = float(np.linalg.norm(as_vector(found.theta))) or 1.0
        if slope <= error and error * length <= _rounding(found.value):
            return True
        # Zero in all digits, where nothing has a size that its error could be compared with.
        nothing = slope == 0 == float(found.value) and self.refines
        return nothing and error <= float(jnp.finfo(found.value.dtype).eps) ** 0.5

    def nearby(self, found: Evaluation) -> bool:
        """Whether the curvature of the last steps is that at `found`."""
        theta = as_vector(found.theta)
        away = float(np.linalg.norm(self.pairs.theta - theta))
        return away <= NEARBY * float(np.linalg.norm(theta))

    def tolerated(self, found: Evaluation) -> float:
        """The length of a gradient along that at `found` with which θ would be stationary."""
        theta, gradient = as_vector(found.theta), as_vector(found.gradient)
        free = ~self.box.held(theta, gradient)
        along = gradient * free
        if not np.any(along):
            along = self.pairs.changes[-1] * free
        distance = self.pairs.distance(theta, along, free)
        if not (0 < distance < np.inf):
            return 0.0
        length = max(float(np.linalg.norm(theta)), self.gtol * self.start)
        return float(np.linalg.norm(along)) * self.gtol * length / distance

    def noise(self, a: Evaluation, b: Evaluation) -> float:
        """How much of φ(b) - φ(a) may be rounding, and inner solutions that are not exact."""
        rounded = max(_rounding(a.value), _rounding(b.value))
        return rounded + float(a.value_error) + float(b.value_error)

    def convincing(self, found: Evaluation, current: Evaluation | None) -> bool:
        """Whether it can be used as it is."""
        return self.usable(found) and self.certified(found) and self.agrees(found, current)

    def agrees(self, found: Evaluation, current: Evaluation | None) -> bool:
        """Whether φ does not rise where both gradients say that it falls all the way, nor the
        other way round, by more than their errors and those of the values allow."""
        if current is None:
            return True
        step = as_vector(found.theta) - as_vector(current.theta)
        slopes = [float(as_vector(e.gradient) @ step) for e in (current, found)]
        observed = float(found.value) - float(current.value)
        error = float(current.error) + float(found.error)
        doubt = self.noise(current, found) + error * float(np.linalg.norm(step))
        rises, falls = observed > doubt, observed < -doubt
        return not ((max(slopes) < 0 and rises) or (min(slopes) > 0 and falls))

    def improves(self, found: Evaluation, best: Evaluation | None) -> bool:
        """Whether it is better than the best so far: lower; or no higher than can be told, and
        less steep."""
        # Values of inner iterates that have not converged do not compare: there, the last counts.
        if best is None or not self.refines:
            return True
        change = float(found.value) - float(best.value)
        if abs(change) <= self.noise(found, best):
            return self.slope(found) <= self.slope(best)
        return not change >= 0

    def share(self, found: Evaluation) -> float:
        """What is left of a gradient after its terms have cancelled, but for one part in 1e8."""
        terms = float(found.terms)
        return float(np.clip(self.length(found) / terms, 1e-8, 1)) if terms > 0 else 1.0

    def learn(self, found: Evaluation) -> None:
        """The curvature along the way to `found`."""
        self.pairs = self.pairs.following(
            as_vector(found.theta), as_vector(found.gradient), float(found.error)
        )


def is_one_of(status: Any, statuses: tuple) -> bool:
    """Whether a status that is not traced is one of these."""
    return any(bool(status == other) for other in statuses)


def _finite(found: Evaluation) -> bool:
    """Whether value and gradient are finite, and the squares of the gradient too."""
    return bool(jnp.isfinite(found.value) & (float(tree.max_norm(found.gradient)) < HUGE))


def _rounding(value: Float[Array, ""]) -> float:
    return ROUNDINGS * float(jnp.finfo(value.dtype).eps) * abs(float(value))
