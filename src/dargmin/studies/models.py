"""The regularised linear models of the studies, each with its exact solution and derivative."""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dargmin.problems import AbstractProblem, Objective
from dargmin.problems.zoo import logistic, multinomial_logistic, ridge
from dargmin.problems.zoo.multinomial import MultinomialObjective
from dargmin.studies.data import DataSet, class_indices, regression_target
from dargmin.studies.files import DataError

__all__ = ["MODELS", "Fit", "fit"]

MODELS = {"ridge": 0.1, "logistic": 0.03}
"""The models, each with a penalty at which the burn-in from a random start is easy to see."""

_MOST_COLUMNS = 3000  # the exact solution takes a dense Hessian


@dataclass(frozen=True)
class Fit:
    """loss(w) + ½ e^θ ‖w‖² with its minimiser w* and dw*/dθ, exact but for rounding.

    Parameters
    ----------
    problem : AbstractProblem
    theta : float
    solution, derivative : arrays of the shape of w
    spectrum : (float, float)
        (μ, L): bounds of the eigenvalues of the Hessian, at every w.
    note : str
        What became of the target, in a sentence."""

    problem: AbstractProblem
    theta: float
    solution: Float[np.ndarray, "..."]
    derivative: Float[np.ndarray, "..."]
    spectrum: tuple[float, float]
    note: str


def fit(data: DataSet, model: str, theta: float) -> Fit:
    """Fit one of `MODELS` to standardised data, without an intercept, at the log-penalty θ.

    Raises
    ------
    DataError
        If the target does not fit the model, or the exact solution is out of reach."""
    if data.X.shape[1] > _MOST_COLUMNS:
        raise DataError(
            f"'{data.name}' has {data.X.shape[1]} features, too many for the exact solution, which "
            f"takes a dense Hessian: select at most {_MOST_COLUMNS}."
        )
    try:
        return _fit_ridge(data, theta) if model == "ridge" else _fit_logistic(data, theta)
    except ArithmeticError:
        raise DataError(
            f"The exact solution for '{data.name}' is out of reach, because its Hessian is too "
            f"ill-conditioned at penalty {np.exp(theta):.3g}: raise --penalty."
        ) from None


def _fit_ridge(data: DataSet, theta: float) -> Fit:
    Y, how = regression_target(data)
    outputs = [ridge(data.X, column) for column in Y.T]  # outputs are independent of each other
    solution = np.stack([output.solution(theta) for output in outputs], axis=1)
    derivative = np.stack([output.jacobian(theta) for output in outputs], axis=1)
    if len(outputs) == 1:
        problem, solution, derivative = outputs[0].problem, solution[:, 0], derivative[:, 0]
    else:
        problem = Objective(ManyOutputsRidge(jnp.asarray(data.X), jnp.asarray(Y)))
    note = f"Target '{data.target}': {how}."
    return Fit(problem, theta, solution, derivative, outputs[0].spectrum(theta), note)


def _fit_logistic(data: DataSet, theta: float) -> Fit:
    labels, classes = class_indices(data)
    if len(classes) == 2:
        case = logistic(data.X, labels)
        solution, derivative = case.solution(theta), case.jacobian(theta)
        note = f"Target '{data.target}': {classes[1]} against {classes[0]}."
        return Fit(case.problem, theta, solution, derivative, case.spectrum(theta), note)
    case = multinomial_logistic(data.X, labels, len(classes), penalty=float(np.exp(theta)))
    indicators = jnp.asarray(np.eye(len(classes))[labels])
    problem = Objective(MultinomialLogistic(jnp.asarray(data.X), indicators))
    # Weighting all samples by e^s has the same minimiser as dividing the penalty by it.
    derivative = -case.jacobian(0.0)
    note = f"Target '{data.target}': {len(classes)} classes, multinomial."
    return Fit(problem, theta, case.solution(0.0), derivative, case.spectrum(0.0), note)


class ManyOutputsRidge(eqx.Module):
    """‖XW - Y‖² / 2n + ½ e^θ ‖W‖²."""

    X: Float[Array, "n d"]
    Y: Float[Array, "n k"]

    def __call__(self, W: Float[Array, "d k"], theta: ArrayLike) -> Float[Array, ""]:
        loss = jnp.sum(jnp.square(self.X @ W - self.Y)) / (2 * self.X.shape[0])
        return loss + 0.5 * jnp.exp(theta) * jnp.sum(jnp.square(W))


class MultinomialLogistic(eqx.Module):
    """(1/n) Σ_i (log Σ_c exp(x_iᵀW_c) - x_iᵀW y_i) + ½ e^θ ‖W‖², with one-hot y_i."""

    X: Float[Array, "n d"]
    Y: Float[Array, "n k"]

    def __call__(self, W: Float[Array, "d k"], theta: ArrayLike) -> Float[Array, ""]:
        return MultinomialObjective(self.X, self.Y, jnp.exp(theta))(W, 0.0)
