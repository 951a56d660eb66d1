"""What data and hyperparameters an instance accepts."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def as_design_matrix(X: Any) -> Float[Array, "n d"]:
    """Check a design matrix: two axes, at least one row and one column, finite.

    Floating-point data keep their dtype; integers take JAX's default one."""
    X = _as_finite("X", X)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(
            f"X has shape {X.shape}, but must have shape (n, d) with n >= 1 rows, one for each "
            "sample, and d >= 1 columns. For a single feature, pass X[:, None]."
        )
    return jnp.asarray(X)


def as_targets(y: Any, X: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Check real targets: one finite number for each row of X, cast to its dtype."""
    y = _as_finite("y", y)
    if y.shape != X.shape[:1]:
        raise ValueError(
            f"y has shape {y.shape}, but X has shape {X.shape}: y must hold one target for each "
            f"row, shape ({X.shape[0]},). Ravel it, or select one of its columns."
        )
    return jnp.asarray(y, X.dtype)


def as_signs(y: Any, X: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Turn the labels {0, 1} or {-1, 1} of two classes into -1 and 1."""
    y = as_targets(y, X)
    labels = np.unique(np.asarray(y)).tolist()
    if labels not in ([0, 1], [-1, 1]):
        raise ValueError(
            f"y holds the labels {labels[:5]}, but must hold two classes, labelled 0 and 1 or -1 "
            "and 1. For more classes, use multinomial_logistic(X, y, classes)."
        )
    return jnp.where(y > 0, 1.0, -1.0).astype(X.dtype)


def as_one_hot(y: Any, classes: int, X: Float[Array, "n d"]) -> Float[Array, "n classes"]:
    """Turn labels 0, ..., classes - 1 into rows of the identity matrix."""
    labels = np.asarray(as_targets(y, X))
    if classes < 2:
        raise ValueError(f"classes is {classes}, but there must be at least 2.")
    if np.any((labels != np.round(labels)) | (labels < 0) | (labels >= classes)):
        raise ValueError(
            f"y holds the labels {np.unique(labels)[:5].tolist()}, ..., but must hold integers "
            f"from 0 to classes - 1 = {classes - 1}. Encode them: np.unique(y, "
            "return_inverse=True)[1]."
        )
    return jnp.asarray(np.eye(classes)[labels.astype(int)], X.dtype)


def as_spectrum(spectrum: Any) -> Float[Array, " d"]:
    """Check the eigenvalues of a positive semidefinite matrix."""
    spectrum = _as_finite("spectrum", spectrum)
    if spectrum.ndim != 1 or spectrum.size == 0 or np.min(spectrum) < 0:
        raise ValueError(
            f"spectrum has shape {spectrum.shape} and smallest entry "
            f"{np.min(spectrum, initial=np.inf)}, but must hold one or more eigenvalues >= 0 on "
            "one axis, such as np.geomspace(1e-3, 1.0, 50)."
        )
    return jnp.asarray(spectrum)


def as_hyperparameters(theta: Any, *shapes: tuple[int, ...]) -> np.ndarray:
    """Turn θ into a NumPy array of extended precision, of one of the given shapes."""
    array = np.asarray(theta, np.float64)
    if array.shape not in shapes or not np.all(np.isfinite(array)):
        allowed = " or ".join(map(str, shapes))
        raise ValueError(
            f"theta has shape {array.shape} and values {array}, but must be finite and have "
            f"shape {allowed}."
        )
    return array.astype(np.longdouble)


def _as_finite(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind in "biu":
        array = array.astype(jnp.result_type(float))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {array.dtype}, but must hold real numbers. Encode categories as "
            "numbers first."
        )
    if not np.all(np.isfinite(array)):
        count = int(np.sum(~np.isfinite(array)))
        raise ValueError(
            f"{name} has {count} infinite or missing (NaN) entries. Drop or impute them."
        )
    return array
