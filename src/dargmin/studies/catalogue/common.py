"""What several studies share: problems with their exact answers, methods, traces."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from statsmodels.datasets import randhie

from dargmin import tree
from dargmin.linear import prepare
from dargmin.loop import Run, trace
from dargmin.methods import (
    AbstractMethod,
    Chebyshev,
    GradientDescent,
    HeavyBall,
    Nesterov,
    Sobolev,
)
from dargmin.problems import AbstractProblem
from dargmin.studies.data import DataSet, load
from dargmin.studies.models import Fit, fit

__all__ = [
    "METHODS",
    "Curve",
    "data_set",
    "fitted",
    "late_starts",
    "relative",
    "start",
    "steps_to",
    "times",
    "unrolled",
]

Curve = np.ndarray

METHODS: dict[str, Callable[[float, float], AbstractMethod]] = {
    "gradient descent 1/L": lambda mu, L: GradientDescent(1 / L),
    "gradient descent 2/(L+μ)": lambda mu, L: GradientDescent(2 / (L + mu)),
    "heavy ball": HeavyBall.tuned,
    "Nesterov": Nesterov.tuned,
    "Chebyshev": Chebyshev,
    "Sobolev": Sobolev,
}


def data_set(name: str) -> DataSet:
    """breast_cancer, diabetes, digits or wine; randhie; or synthetic: 20 features of falling scale,
    two of which make the target."""
    if name == "randhie":
        table: Any = randhie.load_pandas()
        X, y = table.exog.to_numpy(float), table.endog.to_numpy(float)
    elif name == "synthetic":
        rng = np.random.default_rng(0)
        X = rng.normal(size=(200, 20)) @ np.linalg.cholesky(0.5 * np.eye(20) + 0.5).T
        y = X[:, 0] + X[:, 1] + 0.1 * rng.normal(size=200)
    else:
        return load(name)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    return DataSet(name, X, y, tuple(f"x{j}" for j in range(X.shape[1])), "y")


def fitted(name: str, model: str, penalty: float) -> Fit:
    """A linear model on a data set, with its exact solution and derivative in the log-penalty."""
    return fit(data_set(name), model, float(np.log(penalty)))


def start(shape: tuple[int, ...], how: str, seed: int = 0) -> Float[Array, "..."]:
    """Zero, or standard normal."""
    if how == "zero":
        return jnp.zeros(shape)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def unrolled(
    problem: AbstractProblem, method: AbstractMethod, x0: Any, theta: Any, steps: int,
    tangent: Any = None,
) -> tuple[Curve, Curve]:  # fmt: skip
    """x_t and dx_t, t = 0..T; along θ̇ = 1 where it is not given."""
    theta = jnp.asarray(theta)
    tangent = jnp.ones_like(theta) if tangent is None else jnp.asarray(tangent)
    xs, dxs = trace(problem, method, x0, theta, tangent, steps=steps)
    return np.asarray(xs), np.asarray(dxs)


def relative(values: Curve, truth: Curve, unit: float | None = None) -> Curve:
    """‖v_t - v*‖ / ‖v*‖, or in another unit."""
    errors = np.linalg.norm((values - truth).reshape(len(values), -1), axis=1)
    return errors / (np.linalg.norm(truth) if unit is None else unit)


@eqx.filter_jit
def late_starts(
    problem: AbstractProblem, method: AbstractMethod, x0: Any, theta: Any, tangent: Any,
    starts: Any, *, steps: int,
) -> tuple[Any, Any]:  # fmt: skip
    """x_t, and dx_t of a derivative that starts at K, for t = 0..T and all K in `starts` at once.

    The same as `LateStart(start=K)`: the tangent of the method's whole state is zero until K."""
    problem = prepare(problem, x0, theta)
    method = tree.stop_gradient(method.prepare(problem, x0, theta))
    carry = Run(problem, method, theta).begin(x0)
    arrays, static = eqx.partition(carry, eqx.is_inexact_array)

    def step(arrays: Any, theta: Any) -> Any:
        following = Run(problem, method, theta).step(eqx.combine(arrays, static))
        like = jax.tree.map(lambda old, new: new.astype(old.dtype), arrays,
                            eqx.filter(following, eqx.is_inexact_array))  # fmt: skip
        return like

    def advance(state: Any, t: Any) -> Any:
        arrays, tangents = state
        along = lambda v, K: jax.jvp(
            step, (arrays, theta), (v, tree.scale(jnp.where(t >= K, 1.0, 0.0), tangent))
        )[1]
        following = step(arrays, theta), jax.vmap(along)(tangents, starts)
        return following, (following[0].x, following[1].x)

    zeros = jax.tree.map(lambda a: jnp.zeros((starts.size, *a.shape), a.dtype), arrays)
    _, (xs, dxs) = jax.lax.scan(advance, (arrays, zeros), jnp.arange(steps))
    first = jnp.zeros((1, starts.size, *x0.shape))
    return jnp.concatenate([x0[None], xs]), jnp.concatenate([first, dxs])


def times(steps: int, most: int = 45) -> Curve:
    """0, 1, ..., T: all of them, or `most` that are about evenly spaced on a logarithmic axis."""
    return np.unique(np.append(0, np.geomspace(1, steps, most).round().astype(int)))


def steps_to(errors: Curve, level: float) -> float:
    """The first t from which on the error stays at or below `level`; NaN if it never does."""
    above = np.flatnonzero(~(errors <= level))
    first = 0 if above.size == 0 else above[-1] + 1
    return float(first) if first < len(errors) else float("nan")
