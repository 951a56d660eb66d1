"""A table in standardised coordinates, and the losses that it gives for each slot of the folds."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax.experimental import sparse
from jaxtyping import Float

from dargmin.estimators.folds import Folds
from dargmin.estimators.losses import MomentLoss, RowLoss

MOST_MOMENTS = 2**28
"""Bytes in second moments; beyond it losses are products with the table."""


@dataclass(frozen=True)
class Design:
    """(X - center) / scale, sparse and not centred if X is sparse; targets Y / unit; weights.

    Attributes
    ----------
    X : array or CSR matrix, shape (n, d)
    Y : array, shape (n, m)
    weight : array, shape (n,)
    center, scale : arrays, shape (d,)
    unit : float
        What targets were divided by, so that penalties and tolerances mean the same everywhere.
    intercept : bool
    kind : "squared", "logistic" or "softmax"
    summed : bool
        Whether a penalty counts against the sum of the losses, as in Ridge and LogisticRegression,
        and not their mean, as in ElasticNet: then it is the same in folds and for all rows."""

    X: Any
    Y: Float[np.ndarray, "n m"]
    weight: Float[np.ndarray, " n"]
    center: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    unit: float
    intercept: bool
    kind: str
    summed: bool = True

    @classmethod
    def standardise(
        cls, X: Any, Y: Any, weight: Any, *, intercept: bool, kind: str, summed: bool = True
    ) -> "Design":
        """Moments of the rows that have a weight make the coordinates."""
        total = weight.sum()
        mean = np.asarray(weight @ X).ravel() / total
        center = mean if intercept else np.zeros_like(mean)
        if sp.issparse(X):
            second = np.asarray(weight @ X.multiply(X)).ravel() / total
            variance = second - center**2
        else:
            second = weight @ np.square(X) / total
            variance = weight @ np.square(X - center) / total
        # What rounding leaves of a constant column is no variance.
        constant = variance <= 1e-14 * second
        scale = np.sqrt(np.where(constant, 1.0, variance))
        unit = 1.0
        if kind == "squared":
            spread = Y - (weight @ Y / total if intercept else 0)
            unit = math.sqrt(float(np.mean(weight @ np.square(spread)) / total)) or 1.0
        if sp.issparse(X):
            X, center = (X @ sp.diags_array(1 / scale)).tocsr(), np.zeros_like(center)
        else:
            X = (X - center) / scale
        return cls(X, Y / unit, weight, center, scale, unit, intercept, kind, summed)

    def losses(self, folds: Folds) -> tuple[Any, Any, float]:
        """The losses on the rows that train and that validate, and what to multiply the latter by
        to get the mean loss in the units of the target."""
        (rows, d), m = self.X.shape, self.Y.shape[1]
        factor = 2 * self.unit**2 / m if self.kind == "squared" else 1.0
        small = 8 * (folds.train.shape[1] + 2 * len(folds.train)) * d**2 <= MOST_MOMENTS
        if self.kind == "squared" and d <= 2 * rows and small:
            return (*self._moment_losses(folds), factor)
        return (*self._row_losses(folds), factor)

    def in_units(
        self, x: Float[np.ndarray, "c m"], weight: Float[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "d m"], Float[np.ndarray, " m"]]:
        """(coefficients, intercepts) of the table as it was given, of the fit x to rows of these
        weights."""
        d = self.X.shape[1]
        coef = x[:d] * self.unit / self.scale[:, None]
        if not self.intercept:
            return coef, np.zeros(x.shape[1])
        if len(x) > padded(d):
            at_center = x[-1]
        else:
            share = weight / weight.sum()
            at_center = share @ self.Y - np.asarray(share @ self.X).ravel() @ x[:d]
        return coef, at_center * self.unit - self.center @ coef

    def gradient_at_zero(self) -> Float[np.ndarray, "d m"]:
        """∇ of the mean loss of all rows where no feature counts: the l1 penalties to start at."""
        weight = self.weight / self.weight.sum()
        spread = self.Y - (weight @ self.Y if self.intercept or self.kind != "squared" else 0)
        if self.kind == "softmax" and not self.intercept:
            spread = self.Y - 1 / self.Y.shape[1]
        elif self.kind == "logistic" and not self.intercept:
            spread = self.Y - 0.5
        gradient = np.asarray(self.X.T @ (weight[:, None] * spread))
        shift = np.asarray(weight @ self.X).ravel() if self.intercept else np.zeros(len(gradient))
        return gradient - np.outer(shift, weight @ spread)

    def _moment_losses(self, folds: Folds) -> tuple[MomentLoss, MomentLoss]:
        sums = self._sums_by_cell(folds)
        combine = lambda flags: [np.tensordot(flags, s, axes=1) for s in sums]
        train, valid = combine(folds.train), combine(folds.valid)
        weigh, sx, sy = train[:3]
        weigh = weigh[:, None]
        means = (sx / weigh, sy / weigh) if self.intercept else (0 * sx, 0 * sy)
        return (
            _centred(train, means, train[0]),
            _centred(valid, means, np.full(len(sx), valid[0].sum())),
        )

    def _sums_by_cell(self, folds: Folds) -> list[np.ndarray]:
        """Σ s, Σ s x, Σ s y, Σ s x xᵀ, Σ s x yᵀ, Σ s ‖y‖² over the rows of each cell."""
        sums: list[list[Any]] = [[] for _ in range(6)]
        table = _wider(self.X, padded(self.X.shape[1]))
        for cell in range(folds.train.shape[1]):
            rows = np.flatnonzero(folds.cell == cell)
            X, Y, s = table[rows], self.Y[rows], self.weight[rows]
            weighted = sp.diags_array(s) @ X if sp.issparse(X) else s[:, None] * X
            second = weighted.T @ X
            found = (
                s.sum(), s @ X, s @ Y,
                second.toarray() if sp.issparse(second) else second,
                weighted.T @ Y, np.sum(s @ np.square(Y)),
            )  # fmt: skip
            for column, value in zip(sums, found, strict=True):
                column.append(np.asarray(value))
        return [np.stack(column) for column in sums]

    def _row_losses(self, folds: Folds) -> tuple[RowLoss, RowLoss]:
        train, valid = folds.weights(self.weight)
        train = train / train.sum(axis=1, keepdims=True)
        valid = valid / valid.sum()
        X, Y = _wider(self.X, padded(self.X.shape[1])), self.Y
        if self.intercept:
            one = np.ones((X.shape[0], 1))
            X = sp.hstack([X, one], format="csr") if sp.issparse(X) else np.hstack([X, one])
        padding = padded(len(Y)) - len(Y)
        Y = jnp.asarray(np.pad(Y, ((0, padding), (0, 0))))
        pad = lambda w: jnp.asarray(np.pad(w, ((0, 0), (0, padding))))
        X, squares = _on_device(X, padding)
        tied = self.kind == "softmax" and self.intercept
        return (
            RowLoss(X, squares, Y, pad(train), self.kind, tied),
            RowLoss(X, squares, Y, pad(valid), self.kind),
        )


def _centred(sums: Any, means: Any, total: Any) -> MomentLoss:
    """The moments about the means (of other rows, perhaps), divided by `total`."""
    s, sx, sy, sxx, sxy, syy = sums
    mx, my = means
    outer = lambda a, b: a[:, :, None] * b[:, None, :]
    s2, s3 = s[:, None], s[:, None, None]
    G = sxx - outer(sx, mx) - outer(mx, sx) + s3 * outer(mx, mx)
    b = sxy - outer(sx, my) - outer(mx, sy) + s3 * outer(mx, my)
    c = syy + np.sum(s2 * my**2 - 2 * sy * my, axis=1)
    G = (G + np.swapaxes(G, 1, 2)) / 2
    t = np.asarray(total, float)
    return MomentLoss(
        *(jnp.asarray(u) for u in (G / t[:, None, None], b / t[:, None, None], c / t))
    )


def _on_device(X: Any, padding: int) -> tuple[Any, Any]:
    """X and its square with `padding` more rows of zeros, sparse if X is."""
    if not sp.issparse(X):
        X = jnp.asarray(np.pad(X, ((0, padding), (0, 0))))
        return X, jnp.square(X)
    coo = X.tocoo()
    more = padded(coo.nnz) - coo.nnz
    data = np.pad(coo.data, (0, more))
    indices = np.pad(np.stack([coo.row, coo.col], axis=1), ((0, more), (0, 0)))
    shape = (X.shape[0] + padding, X.shape[1])
    build = lambda values: sparse.BCOO((jnp.asarray(values), jnp.asarray(indices)), shape=shape)
    return build(data), build(data**2)


def _wider(X: Any, columns: int) -> Any:
    """X with columns of zeros added on the right; their coefficients are zero."""
    more = columns - X.shape[1]
    if not sp.issparse(X):
        return np.pad(X, ((0, 0), (0, more)))
    return sp.csr_array((X.data, X.indices, X.indptr), shape=(X.shape[0], columns))


def padded(count: int) -> int:
    """The next multiple of 8, and of an eighth of the count: tables of nearly the same size share
    a compiled program."""
    unit = max(8, 2 ** max(0, count.bit_length() - 4))
    return -(-count // unit) * unit
