"""Linear systems and Newton's method, beyond the accuracy of float64.

The matrix is factored in float64 and the residual formed in extended precision (`np.longdouble`):
iterative refinement then converges to a relative error of about the condition number times the
rounding error of longdouble, 5e-20 on x86. Where longdouble is no wider than float64, what is left
is the accuracy of a backward stable solve.

References
----------
Wilkinson (1963), Rounding Errors in Algebraic Processes; Higham (2002), Accuracy and Stability of
Numerical Algorithms, chapter 12.
"""

from collections.abc import Callable

import numpy as np

LinearMap = Callable[[np.ndarray], np.ndarray]

_ACCURATE = 1e-9  # relative size of the last correction beyond which an oracle gives up


def extended(array: object) -> np.ndarray:
    """The same numbers in extended precision."""
    return np.asarray(array).astype(np.longdouble)


def solve(matrix: np.ndarray, apply: LinearMap, rhs: np.ndarray) -> np.ndarray:
    """Solve K s = rhs by iterative refinement, in extended precision.

    Parameters
    ----------
    matrix : array, shape (d, d)
        K in float64, perhaps formed with rounding errors.
    apply : callable
        s -> K s in extended precision, for s like rhs.
    rhs : array, shape (d,) or (d, m)

    Raises
    ------
    ArithmeticError
        If K is too ill-conditioned for the refinement to converge.
    """
    solution, previous = np.zeros_like(rhs), np.inf
    while True:
        correction = _factor_and_solve(matrix, rhs - apply(solution))
        size = _relative(correction, solution + correction)
        if not size < previous / 2:  # it has stopped helping, or K is singular
            break
        solution, previous = solution + correction, size
    if not previous <= _ACCURATE:
        raise ArithmeticError(_TOO_ILL_CONDITIONED)
    return solution


def newton(
    value: Callable[[np.ndarray], np.floating],
    gradient: Callable[[np.ndarray], np.ndarray],
    hessian: Callable[[np.ndarray], np.ndarray],
    size: int,
) -> np.ndarray:
    """Minimise a strictly convex nonnegative function from zero by Newton's method.

    Parameters
    ----------
    value, gradient : callable
        In extended precision: x -> scalar, x -> shape (size,).
    hessian : callable
        x -> shape (size, size), in float64: rounding errors in it only slow the last steps.

    Raises
    ------
    ArithmeticError
        If 100 steps are not enough.
    """
    x, previous = np.zeros(size, np.longdouble), np.inf
    for _ in range(100):
        step = -_factor_and_solve(hessian(x), gradient(x))
        length = _relative(step, x + step)
        if previous <= _ACCURATE and not length < previous / 2:
            return x
        scale = 1.0
        while value(x + scale * step) > value(x) * (1 + 1e-15) and scale > 1e-10:
            scale /= 2
        x, previous = x + scale * step, length
    raise ArithmeticError(_TOO_ILL_CONDITIONED)


_TOO_ILL_CONDITIONED = (
    "The exact solution was not reached: the Hessian is singular, or too ill-conditioned even for "
    "extended precision. Raise the penalty, or remove columns of X that depend on each other."
)


def _factor_and_solve(matrix: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.solve(matrix, rhs.astype(np.float64))
    except np.linalg.LinAlgError as error:
        raise ArithmeticError(_TOO_ILL_CONDITIONED) from error


def _relative(change: np.ndarray, x: np.ndarray) -> float:
    """The largest ‖change‖ / ‖x‖ over the columns of x."""
    sizes, scales = (np.linalg.norm(u.astype(np.float64), axis=0) for u in (change, x))
    return float(np.max(sizes / np.where(scales > 0, scales, 1)))
