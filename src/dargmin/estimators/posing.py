"""From a table and its folds to a bilevel problem: what is fitted, and what judges the fit."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dargmin.estimators.design import Design, padded
from dargmin.estimators.folds import Folds
from dargmin.estimators.losses import Penalty, Ridged, RowLoss, Smooth, Validation, Weight
from dargmin.problems import AbstractProblem, Composite, Objective
from dargmin.prox import elastic_net


class Posed(eqx.Module):
    """min_θ φ(x*(θ), θ): the problem whose solution is x*, φ, and x = 0.

    x has shape (slots, coordinates, outputs), θ (1 or 2, groups)."""

    problem: AbstractProblem
    outer: Validation
    zero: Float[jnp.ndarray, "B d m"]


class _Diagonal(eqx.Module):
    ridged: Ridged

    def __call__(self, x: Any, theta: Any) -> Any:
        return self.ridged.diagonal(x, theta)


def pose(
    design: Design,
    folds: Folds,
    groups: Int[np.ndarray, " d"],
    ratio: float | None,
    *,
    center: Float[np.ndarray, "r p"],
    pull: float = 0.0,
) -> Posed:
    """The bilevel problem of these folds, with ½ `pull` Σ (θ - center)² added to φ."""
    train, valid, factor = design.losses(folds)
    penalty = _penalty(design, folds, train, groups, ratio)
    slots, m = len(folds.train), design.Y.shape[1]
    outer = Validation(valid, jnp.asarray(factor), jnp.asarray(pull), jnp.asarray(center))
    zero = jnp.zeros((slots, len(penalty.group), m))
    if ratio == 0:
        ridged = Ridged(train, penalty)
        quadratic = design.kind == "squared"
        objective = Objective(ridged, quadratic=quadratic, diagonal=_Diagonal(ridged))
        return Posed(objective, outer, zero)
    like = jnp.ones((slots, 1, m))
    operator = elastic_net(l1=Weight(penalty, like, 1), l2=Weight(penalty, like, 2))
    return Posed(Composite(Smooth(train), operator), outer, zero)


def _penalty(design: Design, folds: Folds, loss: Any, groups: Any, ratio: float | None) -> Penalty:
    columns = padded(len(groups))
    # Rows come with their intercept as a last coordinate, moments are centred.
    last = int(isinstance(loss, RowLoss) and design.intercept)
    pad = lambda v: jnp.asarray(np.pad(v, (0, columns + last - len(v)), mode="edge"))
    rows = folds.weights(design.weight)[0].sum(axis=1)
    return Penalty(
        group=pad(groups),
        scale=pad(design.scale),
        unit=jnp.asarray(design.unit),
        slot=jnp.asarray(rows[-1] / rows if design.summed else np.ones_like(rows)),
        penalised=jnp.asarray(np.r_[np.ones(columns), np.zeros(last)]),
        ratio=jnp.asarray(0.0 if ratio is None else ratio),
    )
