"""Gradient descent, heavy ball, Nesterov, Chebyshev: first-order methods.

Each class is one update: its docstring is the formula, `step` is the formula in code. ∇f stands
for the residual F, so that every method also runs on root-finding and fixed-point problems.

Step sizes, momenta and bounds of the spectrum are constants of every derivative, also where they
are computed from θ; `Unrolled(hyperparameters=True)` differentiates them too."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dargmin import tree
from dargmin.methods.base import AbstractMethod, positive, real
from dargmin.methods.curvature import Curvature, estimated_curvature
from dargmin.polynomials.checks import as_reals, check_spectrum
from dargmin.polynomials.recurrence import (
    gegenbauer_coefficients,
    gegenbauer_defect,
    next_root,
    spectral_gap,
)
from dargmin.problems import AbstractProblem
from dargmin.types import Parameters, Point


class GradientDescent(AbstractMethod):
    """x_{t+1} = x_t - h ∇f(x_t, θ)   (Cauchy, 1847).

    Parameters
    ----------
    step_size : float, optional
        h, below 2/L. If None, 1/L̂ with L̂ estimated at x0 and raised where the iterates meet
        more curvature than that. Either way a constant of the derivative, unless
        `Unrolled(hyperparameters=True)`."""

    step_size: Float[Array, "*batch"] | None
    curvature: Curvature | None

    def __init__(self, step_size: ArrayLike | None = None, *, curvature: Curvature | None = None):
        self.step_size = None if step_size is None else positive(step_size, type(self).__name__)
        self.curvature = curvature

    def prepare(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        if self.step_size is not None:
            return self
        return type(self)(curvature=estimated_curvature(problem, x, theta))

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Curvature | None:
        return self.curvature

    def step(
        self, problem: AbstractProblem, x: Point, state: Curvature | None, theta: Parameters
    ) -> tuple[Point, Curvature | None, Point]:
        gradient = problem.residual(x, theta)
        if self.step_size is not None:
            return tree.axpy(-self.step_size, gradient, x), None, gradient
        curvature = _settled(state).observe(x, gradient)
        return tree.axpy(-curvature.step_size, gradient, x), curvature, gradient


class HeavyBall(AbstractMethod):
    """x_{t+1} = x_t - h ∇f(x_t, θ) + m (x_t - x_{t-1})   (Polyak, 1964).

    Parameters
    ----------
    step_size, momentum : float
        h and m, constants of the derivative unless `Unrolled(hyperparameters=True)`.
    start : "corrected" or "plain"
        The first step is h/(1 + m) long, or h. The plain one has a burn-in of order κ^{3/2},
        where the corrected one has κ (κ = L/μ)."""

    step_size: Float[Array, "*batch"]
    momentum: Float[Array, "*batch"]
    start: str = eqx.field(static=True)

    def __init__(self, step_size: ArrayLike, momentum: ArrayLike, start: str = "corrected"):
        if start not in ("corrected", "plain"):
            raise ValueError(f'HeavyBall(start={start!r}): allowed are "corrected" and "plain".')
        self.step_size = positive(step_size, type(self).__name__)
        self.momentum = real(momentum, type(self).__name__, "momentum")
        self.start = start

    @classmethod
    def tuned(cls, mu: ArrayLike, L: ArrayLike, start: str = "corrected") -> Any:
        """h = (2 / (√L + √μ))², m = ((√L - √μ) / (√L + √μ))²: optimal on quadratics."""
        mu, L = as_reals(mu, L)
        check_spectrum(mu, L)
        root, ell = jnp.sqrt(L), jnp.sqrt(mu)
        return cls((2 / (root + ell)) ** 2, ((root - ell) / (root + ell)) ** 2, start)

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        one = jnp.ones((), tree.dtype(x))
        shorten = 1 / (1 + self.momentum.astype(one.dtype)) if self.start == "corrected" else one
        return x, shorten  # x_{-1} = x_0, and the factor on the first step

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        previous, factor = state
        gradient = problem.residual(x, theta)
        moved = tree.axpy(-factor * self.step_size.astype(factor.dtype), gradient, x)
        following = tree.axpy(self.momentum, tree.sub(x, previous), moved)
        return following, (x, jnp.ones_like(factor)), gradient


class Nesterov(AbstractMethod):
    """x_{t+1} = y_t - h ∇f(y_t, θ),  y_{t+1} = x_{t+1} + β (x_{t+1} - x_t)   (Nesterov, 1983).

    Parameters
    ----------
    step_size, momentum : float
        h and β. Use `Nesterov.tuned(mu, L)`, or `Nesterov.convex()` where μ is not known.
        Constants of the derivative, unless `Unrolled(hyperparameters=True)`."""

    step_size: Float[Array, "*batch"]
    momentum: Float[Array, "*batch"]

    def __init__(self, step_size: ArrayLike, momentum: ArrayLike):
        self.step_size = positive(step_size, type(self).__name__)
        self.momentum = real(momentum, type(self).__name__, "momentum")

    @classmethod
    def tuned(cls, mu: ArrayLike, L: ArrayLike) -> Any:
        """h = 1/L, β = (1 - √(μ/L)) / (1 + √(μ/L))."""
        mu, L = as_reals(mu, L)
        check_spectrum(mu, L)
        root = jnp.sqrt(mu / L)
        return cls(1 / L, (1 - root) / (1 + root))

    @staticmethod
    def convex(step_size: ArrayLike | None = None) -> "ConvexNesterov":
        """The variant for an unknown μ: growing momentum, restarted when it hurts."""
        return ConvexNesterov(step_size)

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Point:
        return x

    def step(
        self, problem: AbstractProblem, x: Point, state: Point, theta: Parameters
    ) -> tuple[Point, Point, Point]:
        y = state
        gradient = problem.residual(y, theta)
        following = tree.axpy(-self.step_size, gradient, y)
        y = tree.axpy(self.momentum, tree.sub(following, x), following)
        return following, y, gradient


class ConvexNesterov(AbstractMethod):
    """Nesterov's method with β_t = (s_t - 1) / s_{t+1}, s_{t+1} = (1 + √(1 + 4 s_t²)) / 2, set back
    to s = 1 whenever ⟨∇f(y_t), x_{t+1} - x_t⟩ > 0.

    Parameters
    ----------
    step_size : float, optional
        h. Estimated as in `GradientDescent` if None, and a constant of the derivative as there.

    References
    ----------
    Nesterov (1983); O'Donoghue and Candès (2015), gradient restart."""

    step_size: Float[Array, "*batch"] | None
    curvature: Curvature | None

    def __init__(self, step_size: ArrayLike | None = None, *, curvature: Curvature | None = None):
        self.step_size = None if step_size is None else positive(step_size, type(self).__name__)
        self.curvature = curvature

    def prepare(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        if self.step_size is not None:
            return self
        return type(self)(curvature=estimated_curvature(problem, x, theta))

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        return x, jnp.ones((), tree.dtype(x)), self.curvature

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        y, s, curvature = state
        gradient = problem.residual(y, theta)
        step_size = self.step_size
        if step_size is None:
            curvature = _settled(curvature).observe(y, gradient)
            step_size = curvature.step_size
        following = tree.axpy(-step_size, gradient, y)
        moved = tree.sub(following, x)
        beta, s = restarted_momentum(s, tree.dot(gradient, moved) > 0)
        return following, (tree.axpy(beta, moved, following), s, curvature), gradient


class Chebyshev(AbstractMethod):
    """x_{t+1} = x_t - h_t ∇f(x_t, θ) + m_t (x_t - x_{t-1}), with h_t = 4 / ((L + μ) (1 + s_t)) and
    m_t = (1 - s_t) / (1 + s_t), s_0 = 1, s_1 = g = 4μL / (L + μ)², s_{t+1} = (s_t + g) / (1 + s_t).

    Optimal on quadratics with spectrum in [μ, L]; its residual polynomial is the Chebyshev one.

    Parameters
    ----------
    mu, L : float
        Bounds of the spectrum of the Hessian. 5 % too small an L diverges. Constants of the
        derivative, unless `Unrolled(hyperparameters=True)`.

    Raises
    ------
    ValueError
        If not 0 <= mu <= L, or L is zero or infinite.

    References
    ----------
    Flanders and Shortley (1950); Golub and Varga (1961)."""

    mu: Float[Array, "*batch"]
    L: Float[Array, "*batch"]

    def __init__(self, mu: ArrayLike, L: ArrayLike):
        self.mu, self.L = as_reals(mu, L)
        check_spectrum(self.mu, self.L)

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        # Half precision would ruin s_t, from which everything else follows; it costs nothing.
        one = jnp.ones((), np.promote_types(tree.dtype(x), np.float32))
        return x, one, gegenbauer_defect(one, jnp.zeros_like(one))

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        previous, root, defect = state
        mu, L = self.mu.astype(root.dtype), self.L.astype(root.dtype)
        h, momentum = gegenbauer_coefficients(root, mu, L)
        gradient = problem.residual(x, theta)
        moved = tree.axpy(-h, gradient, x)
        following = tree.axpy(momentum, tree.sub(x, previous), moved)
        root = next_root(root, defect, spectral_gap(mu, L))
        return following, (x, root, jnp.zeros_like(defect)), gradient  # d_n = 0 from n = 2 on


def restarted_momentum(
    s: Float[Array, ""], restart: Any
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """β = (s - 1) / s⁺ and s⁺ = (1 + √(1 + 4s²)) / 2; (0, 1) on a restart."""
    following = (1 + jnp.sqrt(1 + 4 * s**2)) / 2
    beta = jnp.where(restart, 0, (s - 1) / following)
    return beta, jnp.where(restart, jnp.ones_like(s), following)


def _settled(curvature: Curvature | None) -> Curvature:
    if curvature is None:
        raise ValueError(
            "This method has no step size yet: give step_size=, or call `prepare` first "
            "(dargmin.solve does)."
        )
    return curvature
