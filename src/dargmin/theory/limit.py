"""What no method can beat: the limits of unrolling, before the problem is known and after."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dargmin.polynomials.checks import (
    as_reals,
    check_positive_spectrum,
    check_steps,
    check_whole,
    holds,
    on_host,
)
from dargmin.theory.rates import inverse_xi

_ONE_EIGENVALUE = "one eigenvalue, where two steps leave no error. Give mu < L."


def minimax_implicit(mu: ArrayLike, L: ArrayLike, steps: ArrayLike) -> Float[Array, "*batch"]:
    """1/T_t((L + μ)/(L - μ)): the least worst-case error of t Chebyshev steps on H dx* = -g.

    That is what implicit differentiation attains: its residual polynomial is only bound by
    R(0) = 1.

    Parameters
    ----------
    mu, L : arrays, shape (*batch,), 0 < mu <= L
    steps : array of integers, shape (*batch,), >= 0
        t.

    Raises
    ------
    ValueError
        If not 0 < mu <= L, or t is no whole number >= 0."""
    mu, L, t = as_reals(mu, L, steps)
    check_positive_spectrum(mu, L)
    check_whole("steps", t)
    power = inverse_xi(mu, L) ** t
    return 2 * power / (1 + power**2)


def minimax_ratio(mu: ArrayLike, L: ArrayLike, steps: ArrayLike) -> Float[Array, "*batch"]:
    """4 √κ t / (1 - κ), κ = μ/L: about `minimax_unrolled` / `minimax_implicit`, for t√κ >= 3.

    A heuristic (Schwarz-Pick), within 1 % of `minimax_unrolled` there. Unrolling needs no burn-in,
    but this factor it always costs.

    Parameters
    ----------
    mu, L : arrays, shape (*batch,), 0 < mu < L
    steps : array of integers, shape (*batch,), >= 1
        t.

    Raises
    ------
    ValueError
        If not 0 < mu < L, or t is no whole number >= 1."""
    mu, L, t = as_reals(mu, L, steps)
    check_positive_spectrum(mu, L)
    check_whole("steps", t, 1)
    if not holds(mu < L):
        raise ValueError(f"mu={mu} and L={L}: {_ONE_EIGENVALUE}")
    kappa = mu / L
    return 4 * jnp.sqrt(kappa) * t * (L / (L - mu))


def minimax_unrolled(mu: ArrayLike, L: ArrayLike, steps: int, nodes: int | None = None) -> float:
    """min over P, deg P <= t, P(0) = 1, of max over [μ, L] of |P - λP'|: the least worst-case error
    of an unrolled derivative with ‖dx_0 - dx*‖ = 1 and G = 0.

    R = P - λP' may be any polynomial with R(0) = 1 and R'(0) = 0. A linear programme on a grid that
    contains both ends: a lower bound, at most 1 - cos(πt/n) below the minimax. On the host.

    Parameters
    ----------
    mu, L : float, 0 < mu < L
    steps : int, >= 1
        t. A hundred takes some seconds.
    nodes : int, >= 2t + 2, optional
        n + 1 points of the grid; 20t + 1 if None, for 1.3 %.

    Raises
    ------
    ValueError
        If not 0 < mu < L, steps < 1, there are too few nodes to see the maximum between them, or
        an argument is traced."""
    # SciPy comes with JAX, and its optimisers take a while to load.
    from scipy.optimize import linprog

    low, high = on_host("minimax_unrolled", mu, L)
    check_positive_spectrum(*as_reals(low, high))
    t = check_steps(steps)
    if low.ndim or high.ndim:
        raise ValueError(f"mu={mu} and L={L}, but one number each is needed here.")
    if low == high:
        raise ValueError(f"mu=L={L}: {_ONE_EIGENVALUE}")
    n = max(20 * t + 1, 50) if nodes is None else check_steps(nodes, "nodes", 2 * t + 2)
    angle = np.linspace(0, np.pi, n)
    k = np.arange(t + 1)
    basis = np.cos(angle[:, None] * k)  # T_k(z)
    # at λ = 0, z = -cosh θ: T_k = (-1)^k cosh kθ and T_k' ∝ (-1)^{k-1} k sinh kθ. R(0) = 1 is taken
    # times e^{-tθ}; R'(0) = 0 from t times it, which leaves no term in e^{tθ}, times e^{-(t-1)θ}:
    # all is of order one in units of 2 e^{-(t-1)θ}, also for μ close to L, where θ is large.
    root = np.sqrt(low / high)
    theta = np.log1p(2 * root * (1 + root) * (high / (high - low)))
    sign = (-1.0) ** k
    value = sign * (np.exp((k - t) * theta) + np.exp(-(k + t) * theta))
    slope = (t - k) * np.exp((k - t + 1) * theta) + (t + k) * np.exp(-(k + t - 1) * theta)
    at_zero = np.stack([value, sign * slope / t])
    # minimise s subject to ±R(z_i) <= s
    ones = np.ones((n, 1))
    solution = linprog(
        np.append(np.zeros(t + 1), 1.0),
        A_ub=np.block([[basis, -ones], [-basis, -ones]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.column_stack([at_zero, np.zeros(2)]),
        b_eq=[np.exp(-theta), 1.0],
        bounds=(None, None),
    )
    if not solution.success:
        raise RuntimeError(f"minimax_unrolled(steps={steps}) was not solved: {solution.message}")
    return float(solution.fun * 2 * np.exp(-(t - 1) * theta))


def hindsight_error(
    eigenvalues: ArrayLike, a: ArrayLike, c: ArrayLike, steps: int
) -> Float[np.ndarray, " times"]:
    """min over P, deg P <= t, P(0) = 1, of ‖P(Λ) a + P'(Λ) c‖ for t = 0..T: the best that any
    method with coefficients known beforehand could have done on this very problem.

    Zero from t = n + 1 on at the latest; for most a and c, from t = n. Methods whose coefficients
    depend on θ (conjugate gradients) are not bound by it. Least squares, orthogonalised three
    times, on the host. Where eigenvalues are close and c = -Λa, rounding can delay the last steps.

    Parameters
    ----------
    eigenvalues : array, shape (n,), > 0
        λ.
    a, c : arrays, shape (n,)
        dx_0 - dx* and dH (x_0 - x*) in the eigenbasis.
    steps : int, >= 1
        T.

    Returns
    -------
    array, shape (T + 1,)

    Raises
    ------
    ValueError
        If shapes differ, an eigenvalue is not positive, or steps < 1."""
    steps = check_steps(steps)
    lam, a, c = on_host("hindsight_error", eigenvalues, a, c)
    finite = all(np.all(np.isfinite(value)) for value in (lam, a, c))
    if lam.ndim != 1 or lam.size == 0 or not lam.shape == a.shape == c.shape:
        raise ValueError(
            "hindsight_error needs vectors of the same length: eigenvalues, a and c, but got the "
            f"shapes {lam.shape}, {a.shape} and {c.shape}."
        )
    if not (finite and np.all(lam > 0)):
        raise ValueError(
            f"hindsight_error needs positive eigenvalues, and all finite, but got {lam}, {a}, {c}."
        )
    low, high = np.min(lam), np.max(lam)
    half = (high - low) / 2 if high > low else high
    z = (lam - (high + low) / 2) / half
    residual, directions = a.copy(), np.zeros((0, lam.size))
    errors = [np.linalg.norm(residual)]
    T, dT, before, d_before = np.ones_like(z), 0 * z, z, 0 * z + 1  # T_{-1} = T_1
    for _ in range(steps):
        # P - 1 is spanned by λT_k(z), whose derivative is T_k + λT_k'
        parts = lam * T * a, (T + lam * dT / half) * c
        column = parts[0] + parts[1]
        size = np.linalg.norm(parts)  # for c = -Λa the first column is zero up to rounding
        for _ in range(3):
            column = column - (directions @ column) @ directions
        norm = np.linalg.norm(column)
        if norm > 1e-13 * size:
            column /= norm
            directions = np.vstack([directions, column])
            residual = residual - (column @ residual) * column
        errors.append(np.linalg.norm(residual))
        following = 2 * z * T - before, 2 * T + 2 * z * dT - d_before
        (before, d_before), (T, dT) = (T, dT), following
    return np.array(errors)
