"""The interface that every method has: two functions and a formula."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from dargmin.cost import Cost
from dargmin.problems import AbstractProblem
from dargmin.types import Parameters, Point


class AbstractMethod(eqx.Module):
    """One step of an iteration. It knows neither when to stop nor how it is differentiated."""

    def prepare(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        """The method with its constants settled (estimated ones are constants of derivatives)."""
        return self

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        """The state before the first step."""
        return None

    @abstractmethod
    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        """(x_{t+1}, the state there, and F(x, θ) where this step evaluated it)."""

    def cost(self, state: Any, steps: Any) -> Cost:
        """What `steps` steps that ended in `state` have cost: by default, a gradient each."""
        return Cost(gradients=steps)


def positive(value: ArrayLike, method: str) -> Float[Array, "*batch"]:
    """h as an array; its sign is checked where the value is known."""
    step_size = jnp.asarray(value)
    if not (isinstance(step_size, Tracer) or np.all(np.asarray(step_size) > 0)):
        raise ValueError(f"{method} needs a positive step_size, but got {value}.")
    return step_size
