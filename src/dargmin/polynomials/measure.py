"""The polynomials that minimise ∫P² dμ + η ∫P'² dμ, P(0) = 1, for any μ: the long recurrence.

The reference for `sobolev`, whose μ have a short one, and what an empirical spectrum needs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dargmin.polynomials.checks import as_reals, check_steps, on_host


class MeasurePolynomials(eqx.Module):
    """P_k = P_{k-1} + φ_k (p_k/√D_k - φ_k P_{k-1}),  D_k = Σ_{j<=k} p_j(0)²,  φ_k = p_k(0)/√D_k,
    with p_0 = 1,  H_{k+1,k} p_{k+1} = λ p_k - Σ_{j<=k} H_{jk} p_j orthonormal.

    Outside the support p_k grows geometrically; p_k/√D_k does not, at 0 and wherever P_k is small.

    Parameters
    ----------
    hessenberg : array, shape (K, K + 1)
        Row k holds H_{0k}, ..., H_{k+1,k}, then zeros.
    shrinkage : array, shape (K,)
        √(D_{k-1} / D_k) for k = 1..K.
    phi : array, shape (K,)
        φ_k for k = 1..K.
    steps : int
        T >= K; P_k = P_K for k > K, where no degree can do better."""

    hessenberg: Float[Array, " K K1"]
    shrinkage: Float[Array, " K"]
    phi: Float[Array, " K"]
    steps: int = eqx.field(static=True)

    def __call__(self, lam: ArrayLike) -> Float[Array, "times *n"]:
        """P_0(λ), ..., P_T(λ)."""
        (lam,) = as_reals(lam)
        degree = self.phi.size
        basis = jnp.zeros((degree + 1, *lam.shape), lam.dtype).at[0].set(1)

        def advance(carry, row):
            basis, p = carry  # p_j / √D_k for all j
            k, column, shrinkage, phi = row
            remainder = lam * basis[k] - jnp.tensordot(column.at[k + 1].set(0), basis, 1)
            basis = shrinkage * basis.at[k + 1].set(remainder / column[k + 1])
            p = p + phi * (basis[k + 1] - phi * p)
            return (basis, p), p

        coefficients = (self.hessenberg, self.shrinkage, self.phi)
        rows = (jnp.arange(degree), *(c.astype(lam.dtype) for c in coefficients))
        (_, last), rest = jax.lax.scan(advance, (basis, basis[0]), rows)
        kept = jnp.broadcast_to(last, (self.steps - degree, *lam.shape))
        return jnp.concatenate([jnp.ones_like(lam)[None], rest, kept])


def sobolev_for_measure(
    nodes: ArrayLike, weights: ArrayLike, eta: float, steps: int
) -> MeasurePolynomials:
    """P_t = argmin Σ w_i (P(λ_i)² + η P'(λ_i)²) over deg P <= t, P(0) = 1, for t = 0..T.

    Arnoldi's process on the values (P(λ_i), P'(λ_i)), orthogonalised twice: O(T² N) operations and
    O(T N) numbers, in float64 on the host.

    Parameters
    ----------
    nodes : array, shape (N,)
        λ_i: eigenvalues, or the nodes of a quadrature rule.
    weights : array, shape (N,)
        w_i > 0; only their ratios matter.
    eta : float, >= 0
    steps : int, >= 1
        T.

    Raises
    ------
    ValueError
        If shapes differ, something is not finite, a weight is not positive, eta < 0 or steps < 1.

    References
    ----------
    Gautschi and Zhang (1995), Computing orthogonal polynomials in Sobolev spaces; Brubeck,
    Nakatsukasa, Trefethen (2021), arXiv:1911.09988, for Vandermonde with Arnoldi."""
    steps = check_steps(steps)
    lam, w, weight = on_host("sobolev_for_measure", nodes, weights, eta)
    finite = np.all(np.isfinite(lam)) and np.all((w > 0) & (w < np.inf))
    if lam.ndim != 1 or lam.size == 0 or lam.shape != w.shape or not finite:
        raise ValueError(
            "A measure is finite nodes and as many positive weights, two vectors, but nodes has "
            f"shape {lam.shape} and weights has shape {w.shape}, or a value is out of range."
        )
    if weight.ndim != 0 or not 0 <= weight < np.inf:
        raise ValueError(f"eta={eta}, but the weight of P'² must be finite and not negative.")
    root = np.sqrt(w / w.sum())
    values, slopes = [root], [0 * root]  # √w p_k(λ_i) and √w p_k'(λ_i)
    rows, shrinkage, phi = [], [], []
    at_zero = np.ones(1)  # p_j(0) / √D_k for j = 0..k
    for k in range(steps):
        value, slope = lam * values[k], values[k] + lam * slopes[k]
        before = np.sqrt(value @ value + eta * (slope @ slope))
        column = np.zeros(steps + 1)
        basis, gradients = np.stack(values), np.stack(slopes)
        for _ in range(2):
            part = basis @ value + eta * (gradients @ slope)
            value, slope = value - part @ basis, slope - part @ gradients
            column[: k + 1] += part
        norm = np.sqrt(value @ value + eta * (slope @ slope))
        following = -(column[: k + 1] @ at_zero)
        if norm <= 1e-13 * before:
            # p_{k+1} is zero on μ, and so is P_{k+1} = p_{k+1} / p_{k+1}(0), unless 0 is a node
            if abs(following) > 1e-13 * before:
                column[k + 1] = following
                rows, shrinkage, phi = [*rows, column], [*shrinkage, 1.0], [*phi, 1.0]
            break
        column[k + 1] = norm
        shrink = 1 / np.hypot(1, following / norm)
        at_zero = shrink * np.append(at_zero, following / norm)
        values.append(value / norm)
        slopes.append(slope / norm)
        rows.append(column)
        shrinkage.append(shrink)
        phi.append(at_zero[-1])
    hessenberg = np.reshape(rows, (-1, steps + 1))[:, : len(rows) + 1]
    return MeasurePolynomials(
        jnp.asarray(hessenberg), jnp.asarray(shrinkage), jnp.asarray(phi), steps
    )
