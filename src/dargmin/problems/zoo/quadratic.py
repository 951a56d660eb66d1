"""Quadratics with a chosen spectrum."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dargmin.problems.base import Objective
from dargmin.problems.zoo.data import as_hyperparameters, as_spectrum
from dargmin.problems.zoo.exact import extended, solve
from dargmin.problems.zoo.instance import AbstractOracle, Instance
from dargmin.types import Parameters


def quadratic(spectrum: Any, *, linear: Any = None, seed: int = 0, dense: bool = True) -> Instance:
    """f(x, θ) = ½ xᵀ (H + diag θ) x - bᵀx, with the chosen eigenvalues of H.

    θ is a scalar, which shifts the spectrum (∂H commutes with H), or one number for each
    coordinate (it does not commute, if H is dense). At θ = 0 the spectrum is as chosen.

    Parameters
    ----------
    spectrum : array, shape (d,), >= 0
        The eigenvalues of H. With a zero among them, only a positive θ has a unique solution.
    linear : array, shape (d,), optional
        b. By default b = H z, so that x*(0) = z, with z standard normal. The derivative of the
        iterates suffers where ∂x* has weight on large eigenvalues: b = H² z gives ∂x*(0) = -z for
        the scalar θ, equal weight on all.
    seed : int
        Of the random rotation and of z.
    dense : bool
        Rotate H into a random basis. A diagonal H is stored as its diagonal.

    Raises
    ------
    ValueError
        If the spectrum is negative somewhere, not finite, or not on one axis, or `linear` does
        not match it.
    """
    eigenvalues = as_spectrum(spectrum)
    values = np.asarray(eigenvalues, np.float64)
    rng = np.random.default_rng(seed)
    z = rng.normal(size=values.size)
    if dense:
        basis, triangle = np.linalg.qr(rng.normal(size=(values.size, values.size)))
        basis = basis * np.sign(np.diag(triangle))  # uniform over the rotations (Mezzadri, 2007)
        H = (basis * values) @ basis.T
        H = (H + H.T) / 2
    else:
        H = values
    b = (H @ z if dense else H * z) if linear is None else np.asarray(linear, np.float64)
    if b.shape != values.shape or not np.all(np.isfinite(b)):
        raise ValueError(
            f"linear has shape {b.shape}, but must hold one finite number for each of the "
            f"{values.size} eigenvalues."
        )
    f = QuadraticForm(*(jnp.asarray(u, eigenvalues.dtype) for u in (H, b)))
    seen = (np.asarray(u, np.float64) for u in (f.H, f.b))  # as rounded to the problem's dtype
    oracle = DenseQuadraticOracle(*seen) if dense else DiagonalQuadraticOracle(*seen)
    return Instance(Objective(f), jnp.zeros_like(f.b), oracle)


class QuadraticForm(eqx.Module):
    """½ xᵀ (H + diag θ) x - bᵀx."""

    H: Float[Array, "d d"] | Float[Array, " d"]  # a diagonal H is its diagonal
    b: Float[Array, " d"]

    def __call__(self, x: Float[Array, " d"], theta: Parameters) -> Float[Array, ""]:
        Hx = self.H * x if self.H.ndim == 1 else self.H @ x
        return 0.5 * jnp.vdot(x, Hx + theta * x) - jnp.vdot(self.b, x)


class DiagonalQuadraticOracle(AbstractOracle):
    """x* = b / (h + θ) and ∂x* = -x* / (h + θ)."""

    diagonal: Float[np.ndarray, " d"]  # h
    b: Float[np.ndarray, " d"]

    def _shifted(self, theta: Any) -> np.ndarray:
        shifted = self.diagonal + as_hyperparameters(theta, (), self.b.shape)
        _require_positive(np.min(shifted))
        return shifted

    def solution(self, theta: Any) -> Float[np.ndarray, " d"]:
        return (self.b / self._shifted(theta)).astype(np.float64)

    def jacobian(self, theta: Any) -> Float[np.ndarray, "..."]:
        slope = (-self.b / self._shifted(theta) ** 2).astype(np.float64)
        return np.diag(slope) if np.ndim(theta) else slope

    def spectrum(self, theta: Any) -> tuple[float, float]:
        shifted = self._shifted(theta)
        return float(np.min(shifted)), float(np.max(shifted))


class DenseQuadraticOracle(AbstractOracle):
    """x* = K⁻¹ b and ∂x* = -K⁻¹ diag x*, with K = H + diag θ."""

    H: Float[np.ndarray, "d d"]
    b: Float[np.ndarray, " d"]

    def solution(self, theta: Any) -> Float[np.ndarray, " d"]:
        return self._solve(theta, extended(self.b)).astype(np.float64)

    def jacobian(self, theta: Any) -> Float[np.ndarray, "..."]:
        x = self._solve(theta, extended(self.b))
        rhs = -np.diag(x) if np.ndim(theta) else -x
        return self._solve(theta, rhs).astype(np.float64)

    def spectrum(self, theta: Any) -> tuple[float, float]:
        shift = as_hyperparameters(theta, (), self.b.shape).astype(np.float64)
        eigenvalues = np.linalg.eigvalsh(self.H + np.diag(np.broadcast_to(shift, self.b.shape)))
        _require_positive(eigenvalues[0])
        return float(eigenvalues[0]), float(eigenvalues[-1])

    def _solve(self, theta: Any, rhs: np.ndarray) -> np.ndarray:
        self.spectrum(theta)  # raises if there is no unique minimum
        shift = np.broadcast_to(as_hyperparameters(theta, (), self.b.shape), self.b.shape)
        K = extended(self.H) + np.diag(shift)
        return solve(K.astype(np.float64), lambda s: K @ s, rhs)


def _require_positive(smallest: np.floating) -> None:
    if not smallest > 0:
        raise ValueError(
            f"The smallest eigenvalue of H + diag(theta) is {float(smallest):.3g}: there is no "
            "unique minimum. Raise theta, or choose a positive spectrum."
        )
