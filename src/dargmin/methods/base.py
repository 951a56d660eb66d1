"""The interface that every method has: two functions and a formula."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree

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

    def refresh(self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters) -> Any:
        """The same state, with the derivative in θ of what it carries of f at x.

        A late start holds x and the state constant. A gradient that was evaluated by the step
        before is no constant: it is ∇f(x_K, θ), and without it a step would know nothing of θ."""
        return state

    @property
    def lag(self) -> int:
        """How many steps in advance x is known: 1 where a step goes to what the last proposed."""
        return 0

    def stays(self, x: Point, state: Any, following: tuple[Point, Any]) -> Bool[Array, ""]:
        """Whether the step to `following` = (x, state) left x where it was and holds nothing of θ,
        because the method found nothing better or had nothing left to do."""
        return jnp.asarray(False)

    def cost(self, state: Any, steps: Any) -> Cost:
        """What `steps` steps that ended in `state` have cost: by default, a gradient each."""
        return Cost(gradients=steps)


def positive(value: Any, method: str) -> Float[Array, "*batch"]:
    """h as an array; its sign is checked where the value is known."""
    step_size = real(value, method, "step_size")
    if not (isinstance(step_size, Tracer) or np.all(np.asarray(step_size) > 0)):
        raise ValueError(f"{method} needs a positive step_size, but got {value}.")
    return step_size


def real(value: Any, method: str, name: str) -> Float[Array, "*batch"]:
    """A step size or a momentum as an array: one number for all of x."""
    if not (eqx.is_array_like(value) or isinstance(value, np.ndarray | np.generic)):
        raise ValueError(
            f"{method} needs one number as its {name}, but got {type(value).__name__}: {value!r}. "
            "For a step size of its own per leaf of x, change the units of x, or use "
            "dargmin.FromOptax(optax.partition(...))."
        )
    return jnp.asarray(value)


@jax.custom_jvp
def with_derivative_of(value: PyTree, moving: PyTree) -> PyTree:
    """`value` to the last bit, with the derivative of `moving`."""
    return value


@with_derivative_of.defjvp
def _with_derivative_of_jvp(primals: Any, tangents: Any) -> tuple[PyTree, PyTree]:
    return with_derivative_of(*primals), tangents[1]
