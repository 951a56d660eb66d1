"""The Sobolev method: the first-order method whose unrolled derivative is optimal on average."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from dargmin import tree
from dargmin.methods.base import AbstractMethod
from dargmin.polynomials import SobolevRecurrence
from dargmin.polynomials.checks import as_reals
from dargmin.problems import AbstractProblem
from dargmin.types import Parameters, Point


class Sobolev(AbstractMethod):
    """| y_{t+1} = y_t + m_t (y_t - y_{t-1}) - h_t ∇f(y_t, θ)
    | v_{t+1} = y_{t+1} - π_t y_{t-1} + ν_t v_{t-1}
    | x_{t+1} = x_t + ω_t (v_{t+1} - φ_t x_t)

    On quadratics with spectrum in [μ, L] its residual polynomial minimises ∫P² + η ∫P'² over
    P(0) = 1, with the density (1 - z²)^(α - 1/2), z = (2λ - L - μ) / (L - μ). So it minimises the
    mean square error of the *unrolled derivative*, where a random problem has that spectral
    density and ‖dH (x_0 - x*)‖² = η ‖dx_0 - dx*‖²; no step increases that mean. One gradient a
    step, taken at y_t, the iterates of the Gegenbauer method; five vectors.

    Parameters
    ----------
    mu, L : float, 0 < mu <= L
        Bounds of the spectrum of the Hessian. 5 % too small an L diverges; 50 % too large an L
        costs 10 % more steps. These, alpha and eta are constants of the derivative, unless
        `Unrolled(hyperparameters=True)`.
    alpha : float, > -1/2
        Exponent of the spectral density: 0 Chebyshev's, 1/2 uniform. Up to 1/4 there is hardly a
        burn-in on quadratics (benchmarks/methods.py has the exceptions); from 1/2, the iterates do
        not overshoot on problems that are none.
    eta : float, > 0, optional
        Weight of P'², of the order of λ² where dx* has its weight. If None, μL, the geometric
        middle of its range [μ², L²]. The larger, the less burn-in and the slower the first steps.
        `from_derivative` estimates it, where the derivative is nearly known already.

    Raises
    ------
    ValueError
        If not 0 < mu <= L, or alpha <= -1/2, or eta <= 0.

    References
    ----------
    Scieur, Gidel, Bertrand, Pedregosa (2022), arXiv:2209.13271."""

    recurrence: SobolevRecurrence

    def __init__(
        self,
        mu: ArrayLike,
        L: ArrayLike,
        alpha: ArrayLike = 0.5,
        eta: ArrayLike | None = None,
    ):
        mu, L = as_reals(mu, L)
        self.recurrence = SobolevRecurrence(mu, L, alpha, mu * L if eta is None else eta)

    @classmethod
    def from_derivative(
        cls,
        problem: AbstractProblem,
        x0: Point,
        theta: Parameters,
        tangent: Parameters,
        derivative: Point,
        mu: ArrayLike,
        L: ArrayLike,
        alpha: ArrayLike = 0.5,
        *,
        dx0: Point | None = None,
    ) -> "Sobolev":
        """The method with η = ‖∇²f(x_0) v + ∂_θ∇f(x_0) θ̇‖² / ‖v - dx_0‖², within [μ², L²].

        On quadratics with v = dx* this is ‖dH (x_0 - x*)‖² / ‖dx_0 - dx*‖², for which the method
        is optimal. Meant for a v from a previous outer step. A v from a pilot of fewer than a few
        √(L/μ) steps is no substitute: what it has not solved for counts as dH (x_0 - x*), and η
        comes out up to hundreds of times too large. Hence the default μL: even the exact η changes
        the number of steps by a few per cent only, and lowers the peak mostly where x_0 is far
        (benchmarks/methods.py).

        Parameters
        ----------
        problem, x0, theta
            As in `dargmin.solve`.
        tangent : pytree like the floating leaves of theta, or with one more axis in front of each
            θ̇, or a batch of them.
        derivative : pytree like x0, with the same additional axis
            v, near ∂x*(θ) θ̇. Over a batch, both squares are summed.
        mu, L, alpha : float
            As in `Sobolev`.
        dx0 : pytree like derivative, optional
            The derivative of x0 along θ̇. 0 if None: x0 does not depend on θ.

        Raises
        ------
        ValueError
            If `derivative` or `dx0` is not like x0, or the estimate is not finite; and as
            `Sobolev`."""
        mu, L = as_reals(mu, L)
        x0, theta, tangent = tree.as_point(x0), tree.as_arrays(theta), tree.as_arrays(tangent)
        pair = derivative, tree.zeros_like(derivative) if dx0 is None else dx0
        (v, dx0), batched = _like(pair, (x0, x0))

        def squares(tangent: Parameters, v: Point, dx0: Point) -> tuple[Any, Any]:
            _, c = eqx.filter_jvp(problem.residual, (x0, theta), (v, tangent))
            c, a = tree.fill(c, x0), tree.sub(v, dx0)
            return tree.dot(c, c), tree.dot(a, a)

        over = jax.vmap(squares) if batched else squares
        above, below = (jnp.sum(s).astype(mu.dtype) for s in over(tangent, v, dx0))
        # v = dx_0 leaves nothing but dH (x_0 - x*) to be removed: the largest weight.
        none = below == 0
        eta = jnp.where(none, jnp.inf, above / jnp.where(none, 1, below))
        return cls(mu, L, alpha, jnp.clip(eta, mu**2, L**2))

    def init(self, problem: AbstractProblem, x: Point, theta: Parameters) -> Any:
        # The coefficients are ratios near 1 that half precision would ruin; they cost nothing.
        dtype = np.promote_types(tree.dtype(x), np.float32)
        return (x, x), (x, x), self.recurrence.begin(dtype)

    def step(
        self, problem: AbstractProblem, x: Point, state: Any, theta: Parameters
    ) -> tuple[Point, Any, Point]:
        (y1, y2), (v1, v2), ratios = state
        c, ratios = self.recurrence.advance(ratios)
        gradient = problem.residual(y1, theta)
        y = tree.axpy(c.momentum, tree.sub(y1, y2), tree.axpy(-c.step_size, gradient, y1))
        v = tree.axpy(c.nu, v2, tree.axpy(-c.pi, y2, y))
        x = tree.axpy(c.omega, tree.axpy(-c.phi, x, v), x)
        return x, ((y, y1), (v, v1), ratios), gradient


def _like(derivatives: Any, points: Any) -> tuple[Any, bool]:
    """Derivatives in the dtypes of the points, and whether all have one more axis in front."""
    derivatives = tree.as_point(derivatives, "(derivative, dx0)")
    shapes, want = ([jnp.shape(leaf) for leaf in jax.tree.leaves(u)] for u in (derivatives, points))
    same = jax.tree.structure(derivatives) == jax.tree.structure(points)
    batched = bool(shapes) and all(shapes) and [shape[1:] for shape in shapes] == want
    if not same or not (batched or shapes == want):
        raise ValueError(
            "derivative and dx0 must be pytrees like x0, or both have one more axis in front of "
            f"each leaf. The shapes of (derivative, dx0) are {shapes}, those of (x0, x0) {want}."
        )
    return jax.tree.map(lambda d, u: d.astype(u.dtype), derivatives, points), batched
