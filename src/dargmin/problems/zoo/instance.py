"""A problem instance: the problem, where to start, and the exact answer."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from dargmin.problems.base import AbstractProblem


class AbstractOracle(eqx.Module):
    """The exact x*(θ) and ∂x*(θ), in NumPy: θ must be concrete, results are float64."""

    @abstractmethod
    def solution(self, theta: Any) -> Float[np.ndarray, "..."]:
        """x*(θ).

        Raises
        ------
        ValueError
            If θ has the wrong shape, or there is no unique solution at θ.
        ArithmeticError
            If it cannot be computed accurately: the condition number is too large.
        """

    @abstractmethod
    def jacobian(self, theta: Any) -> Float[np.ndarray, "..."]:
        """∂x*(θ), shape x.shape + theta.shape; raises as `solution`."""

    @abstractmethod
    def spectrum(self, theta: Any) -> tuple[float, float]:
        """(μ, L) with μI ⪯ ∇²f(x, θ) ⪯ LI for all x, f being the objective or its smooth part."""


class Instance(eqx.Module):
    """A problem together with its exact answer; a pytree whose leaves are the data.

    `problem` and `x0` are what a solver is given. `solution`, `jacobian` and `spectrum` are those
    of the oracle (see `AbstractOracle`)."""

    problem: AbstractProblem
    x0: Float[Array, "..."]
    oracle: AbstractOracle

    def solution(self, theta: Any) -> Float[np.ndarray, "..."]:
        return self.oracle.solution(theta)

    def jacobian(self, theta: Any) -> Float[np.ndarray, "..."]:
        return self.oracle.jacobian(theta)

    def spectrum(self, theta: Any) -> tuple[float, float]:
        return self.oracle.spectrum(theta)
