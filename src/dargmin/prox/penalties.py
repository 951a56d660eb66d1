"""The penalties g: each function checks its parameters and returns the operator of g."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dargmin.prox.operators import (
    BlockSoftThreshold,
    BoxProjection,
    NonnegativeProjection,
    ShrunkSoftThreshold,
    SimplexProjection,
    SoftThreshold,
)
from dargmin.prox.parameters import (
    Constant,
    as_parameter,
    as_weight,
    holds,
    require_group_weight,
    traced,
)


def l1(weight: Any) -> SoftThreshold:
    """Penalise by g(x, θ) = Σ_i w_i |x_i|.

    Parameters
    ----------
    weight : parameter, >= 0
        w: one number, or one for each coordinate.

    Raises
    ------
    ValueError
        If a constant weight is negative or not finite.

    Examples
    --------
    >>> l1(1.0)(jnp.array([3.0, -0.5, -2.0]), None, 0.5).tolist()
    [2.5, 0.0, -1.5]
    """
    return SoftThreshold(as_weight("l1(weight)", weight))


def elastic_net(l1: Any, l2: Any) -> ShrunkSoftThreshold:
    """Penalise by g(x, θ) = Σ_i w_i |x_i| + ½ Σ_i u_i x_i²   (Zou, Hastie, 2005).

    Parameters
    ----------
    l1, l2 : parameter, >= 0
        w and u: one number, or one for each coordinate.

    Raises
    ------
    ValueError
        If a constant weight is negative or not finite.
    """
    return ShrunkSoftThreshold(as_weight("elastic_net(l1)", l1), as_weight("elastic_net(l2)", l2))


def group_lasso(weight: Any, groups: Any) -> BlockSoftThreshold:
    """Penalise by g(x, θ) = Σ_j w_j ‖x_{G_j}‖₂   (Yuan, Lin, 2006).

    Parameters
    ----------
    weight : parameter, >= 0
        w: one number, or an array with one for each group. (Yuan and Lin take √|G_j|.)
    groups : integer array that broadcasts against x, or a pytree of them like x
        The label 0, 1, ... of each coordinate's group. A group may span several leaves; for a
        matrix whose rows are the groups: ``jnp.arange(rows)[:, None]``.

    Raises
    ------
    ValueError
        If a label is not a nonnegative integer known before tracing, or a constant weight is
        negative, not finite, or does not match the number of groups.
    """
    count = _count_groups(groups)
    parameter = as_weight("group_lasso(weight)", weight)
    if isinstance(parameter, Constant):
        require_group_weight(parameter.value, count)
    return BlockSoftThreshold(parameter, jax.tree.map(jnp.asarray, groups), count)


def nonnegative() -> NonnegativeProjection:
    """Constrain x_i >= 0: g is the indicator function of the constraint, the prox a projection."""
    return NonnegativeProjection()


def box(lower: Any, upper: Any) -> BoxProjection:
    """Constrain l_i <= x_i <= u_i: g is the indicator function, the prox a projection.

    Parameters
    ----------
    lower, upper : parameter, lower <= upper
        l and u: one number, or one for each coordinate; infinite where there is no bound.

    Raises
    ------
    ValueError
        If lower > upper for two constant bounds, or a constant bound is NaN.
    """
    low, high = as_parameter("box(lower)", lower), as_parameter("box(upper)", upper)
    for name, bound in (("lower", low), ("upper", high)):
        if isinstance(bound, Constant) and not holds(lambda u: ~jnp.isnan(u), bound.value):
            raise ValueError(
                f"box({name}) is NaN somewhere. Use jnp.inf or -jnp.inf where there is no bound."
            )
    if isinstance(low, Constant) and isinstance(high, Constant):
        _require_ordered(low.value, high.value)
    return BoxProjection(low, high)


def simplex(total: Any = 1.0) -> SimplexProjection:
    """Constrain x_i >= 0 and Σ_i x_i = total, over all coordinates of all leaves together.

    For a simplex in each row of a matrix, map the operator:
    ``lambda v, theta, step: jax.vmap(lambda row: prox(row, theta, step))(v)``.

    Parameters
    ----------
    total : scalar parameter, > 0
        What the coordinates sum to.

    Raises
    ------
    ValueError
        If a constant total is not a positive finite number.
    """
    parameter = as_parameter("simplex(total)", total)
    if isinstance(parameter, Constant):
        value = parameter.value
        scalar = eqx.is_array(value) and value.shape == ()
        if not (scalar and holds(lambda u: (u > 0) & jnp.isfinite(u), value)):
            raise ValueError(
                f"simplex(total) needs one positive finite number, but got {total}. "
                "For x = 0 only, use box(0.0, 0.0)."
            )
    return SimplexProjection(parameter)


def _count_groups(groups: Any) -> int:
    """Count 1 + the largest label; an empty group is allowed."""
    leaves = jax.tree.leaves(groups)
    labels = [np.asarray(leaf) for leaf in leaves if not traced(leaf)]
    known = len(labels) == len(leaves) > 0 and all(u.size for u in labels)
    if not known or not all(np.issubdtype(u.dtype, np.integer) and u.min() >= 0 for u in labels):
        raise ValueError(
            f"group_lasso(groups) is {groups}, but must be nonnegative integer labels whose "
            "values are known before tracing. Label the groups 0, 1, 2, ..."
        )
    return 1 + max(int(u.max()) for u in labels)


def _require_ordered(lower: Any, upper: Any) -> None:
    try:
        if jax.tree_util.treedef_is_leaf(jax.tree.structure(lower)):
            lower = jax.tree.broadcast(lower, upper)
        ordered = holds(lambda low, high: low <= high, lower, jax.tree.broadcast(upper, lower))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"box(lower, upper): the bounds do not fit together: lower is {lower}, upper {upper}. "
            "Give numbers, arrays that broadcast against x, or two pytrees like x."
        ) from error
    if not ordered:
        raise ValueError(
            f"box(lower, upper) needs lower <= upper everywhere, but got lower={lower}, "
            f"upper={upper}. Swap them, or use jnp.inf where there is no bound."
        )
