"""The elastic net by an active-set method: exact after finitely many linear systems.

It follows the signs of the coefficients: on a set S of them with signs s the minimiser solves
(X_SᵀX_S / n + diag u_S) w_S = X_Sᵀy / n - l_S s_S, and S is right once no sign changes and no other
coordinate wants to move.

References
----------
Osborne, Presnell, Turlach (2000), IMA J. Numer. Anal. 20; Lee, Battle, Raina, Ng (2007),
"Efficient sparse coding algorithms" (feature-sign search).
"""

from collections.abc import Callable

import numpy as np

from dargmin.problems.zoo.exact import extended, solve

SolveOn = Callable[[np.ndarray, np.ndarray], np.ndarray]


def minimise(X: np.ndarray, y: np.ndarray, l1: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """Minimise ‖Xw - y‖² / 2n + Σ_j l_j |w_j| + ½ Σ_j u_j w_j², in extended precision.

    Parameters
    ----------
    X, y : array, shapes (n, d) and (n,)
    l1, l2 : array, shape (d,)
        l > 0 and u >= 0.

    Raises
    ------
    ArithmeticError
        If the support is not found, or the columns on it depend on each other.
    """
    w, short_l1, short_l2 = np.zeros(l1.size), l1.astype(np.float64), l2.astype(np.float64)
    try:  # find the support in float64, which is a hundred times faster
        solve_on = lambda support, rhs: np.linalg.solve(_restrict(X, l2, support), rhs)
        w = _search(X, y, short_l1, short_l2, w, solve_on, 1e-12)
    except (ArithmeticError, np.linalg.LinAlgError):
        pass  # too ill-conditioned for that: start from zero
    solve_on = lambda support, rhs: _solve_on(X, l2, support, rhs)
    return _search(extended(X), extended(y), l1, l2, extended(w), solve_on, 1e-15)


def sensitivity(
    X: np.ndarray,
    y: np.ndarray,
    l1: np.ndarray,
    l2: np.ndarray,
    w: np.ndarray,
    forces: np.ndarray,
) -> np.ndarray:
    """∂w = -K⁻¹ forces on the support of w, and 0 elsewhere, for forces of shape (d, m).

    Raises
    ------
    ValueError
        If a coordinate is weakly active (zero, and about to leave): there is no derivative.
    """
    slack = np.where(w == 0, l1 - np.abs(_slope(extended(X), y, l2, w)), np.inf)
    if np.min(slack / l1) < 1e-9:
        raise ValueError(
            f"theta is on a kink: coordinate {int(np.argmin(slack / l1))} of the solution is zero "
            "but about to move, so the derivative does not exist. Move theta slightly."
        )
    support = np.flatnonzero(w)
    result = np.zeros(forces.shape)
    if support.size:
        result[support] = _solve_on(X, l2, support, -forces[support])
    return result


def _search(
    X: np.ndarray,
    y: np.ndarray,
    l1: np.ndarray,
    l2: np.ndarray,
    w: np.ndarray,
    solve_on: SolveOn,
    tolerance: float,
) -> np.ndarray:
    """Let one coordinate after the other join the support, from that of w."""
    gain, sign = X.T @ y / y.size, np.sign(w)
    for _ in range(20 * w.size + 20):
        w = _follow_signs(gain, l1, w, sign, solve_on)
        slope = _slope(X, y, l2, w)
        excess = np.where(w == 0, np.abs(slope) - l1, -np.inf)
        j = np.argmax(excess)
        if excess[j] <= tolerance * np.max(np.abs(gain)):
            return w
        sign = np.sign(w)
        sign[j] = -np.sign(slope[j])
    raise ArithmeticError(
        "The support of the solution was not found: features may be duplicates of each other. "
        "Remove them, or add a squared penalty."
    )


def _follow_signs(
    gain: np.ndarray, l1: np.ndarray, w: np.ndarray, sign: np.ndarray, solve_on: SolveOn
) -> np.ndarray:
    """Minimise with these signs; a coefficient that would change its sign is dropped at zero."""
    w, sign = w.copy(), sign.copy()
    while np.any(sign):
        support = np.flatnonzero(sign)
        target = solve_on(support, (gain - l1 * sign)[support])
        wrong = target * sign[support] <= 0
        if not np.any(wrong):
            w[support] = target
            break
        start = w[support]
        share = np.where(wrong, start / np.where(start == target, 1, start - target), np.inf)
        first = np.argmin(share)
        w[support] = start + share[first] * (target - start)
        w[support[first]] = sign[support[first]] = 0
    return w


def _slope(X: np.ndarray, y: np.ndarray, l2: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The gradient of the smooth part."""
    return X.T @ (X @ w - y) / y.size + l2 * w


def _restrict(X: np.ndarray, l2: np.ndarray, support: np.ndarray) -> np.ndarray:
    """X_SᵀX_S / n + diag u_S, in float64."""
    X_S = X[:, support]
    return X_S.T @ X_S / X.shape[0] + np.diag(l2[support].astype(np.float64))


def _solve_on(X: np.ndarray, l2: np.ndarray, support: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Solve (X_SᵀX_S / n + diag u_S) s = rhs, in extended precision."""
    X_S, u, n = extended(X[:, support]), l2[support], X.shape[0]
    apply = lambda s: X_S.T @ (X_S @ s) / n + (u * s.T).T
    return solve(_restrict(X, l2, support), apply, rhs)
