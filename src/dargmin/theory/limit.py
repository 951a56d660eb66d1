"""What no method can beat: the limits of unrolling, before the problem is known and after."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dargmin.polynomials.checks import as_reals, check_positive_spectrum, check_steps
from dargmin.theory.rates import inverse_xi


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
        If not 0 < mu <= L."""
    mu, L, t = as_reals(mu, L, steps)
    check_positive_spectrum(mu, L)
    power = inverse_xi(mu, L) ** t
    return 2 * power / (1 + power**2)


def minimax_ratio(mu: ArrayLike, L: ArrayLike, steps: ArrayLike) -> Float[Array, "*batch"]:
    """4 √κ t / (1 - κ), κ = μ/L: about `minimax_unrolled` / `minimax_implicit`, for t√κ >= 3.

    A heuristic (Schwarz-Pick), within 1 % of `minimax_unrolled` there. Unrolling needs no burn-in,
    but this factor it always costs.

    Parameters
    ----------
    mu, L : arrays, shape (*batch,), 0 < mu < L
    steps : array of integers, shape (*batch,)
        t.

    Raises
    ------
    ValueError
        If not 0 < mu < L."""
    mu, L, t = as_reals(mu, L, steps)
    check_positive_spectrum(mu, L)
    kappa = mu / L
    return 4 * jnp.sqrt(kappa) * t / (1 - kappa)


def minimax_unrolled(mu: float, L: float, steps: int, nodes: int | None = None) -> float:
    """min over P, deg P <= t, P(0) = 1, of max over [μ, L] of |P - λP'|: the least worst-case error
    of an unrolled derivative with ‖dx_0 - dx*‖ = 1 and G = 0.

    R = P - λP' may be any polynomial with R(0) = 1 and R'(0) = 0. A linear programme on a grid that
    contains both ends: a lower bound, at most 1 - cos(πt/n) below the minimax. On the host.

    Parameters
    ----------
    mu, L : float, 0 < mu < L
    steps : int, >= 1
        t. A hundred takes some seconds.
    nodes : int, optional
        n + 1 points of the grid; 20t + 1 if None, for 1.3 %.

    Raises
    ------
    ValueError
        If not 0 < mu < L, or steps < 1."""
    # SciPy comes with JAX, and its optimisers take a while to load.
    from scipy.optimize import linprog

    check_positive_spectrum(jnp.asarray(mu), jnp.asarray(L))
    check_steps(steps)
    if mu == L:
        raise ValueError(f"mu=L={L}: one eigenvalue, where two steps leave no error.")
    n = max(20 * steps + 1, 50) if nodes is None else nodes
    angle = np.linspace(0, np.pi, n)
    k = np.arange(steps + 1)
    basis = np.cos(angle[:, None] * k)  # T_k(z)
    # at λ = 0, z = -σ: T_k = (-1)^k cosh kθ and T_k' ∝ (-1)^{k-1} k sinh kθ, over cosh tθ
    theta = np.arccosh((L + mu) / (L - mu))
    growth, shrink = np.exp((k - steps) * theta), np.exp(-(k + steps) * theta)
    unit = 1 + np.exp(-2 * steps * theta)
    at_zero = (-1.0) ** k * np.stack([growth + shrink, k * (growth - shrink)]) / unit
    at_zero[1] /= max(steps, 1)
    # minimise s subject to ±R(z_i) <= s, in units of 1/T_t(σ)
    ones = np.ones((n, 1))
    solution = linprog(
        np.append(np.zeros(steps + 1), 1.0),
        A_ub=np.block([[basis, -ones], [-basis, -ones]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.column_stack([at_zero, np.zeros(2)]),
        b_eq=[1.0, 0.0],
        bounds=(None, None),
    )
    if not solution.success:
        raise RuntimeError(f"minimax_unrolled(steps={steps}) was not solved: {solution.message}")
    return float(solution.fun * 2 * np.exp(-steps * theta) / unit)


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
    check_steps(steps)
    lam, a, c = (np.asarray(value, np.float64) for value in (eigenvalues, a, c))
    if lam.ndim != 1 or not lam.shape == a.shape == c.shape or not np.all(lam > 0):
        raise ValueError(
            "hindsight_error needs positive eigenvalues and vectors a and c of the same length, "
            f"but got shapes {lam.shape}, {a.shape} and {c.shape}, smallest {np.min(lam)}."
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
