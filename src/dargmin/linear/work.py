"""What a product with a Hessian costs beside its matrix: whether forming that pays."""

from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from dargmin import tree
from dargmin.linear.forming import takes_no_products
from dargmin.types import LinearMap, Point

SMALL = 64
"""Up to this many coordinates a factor is always cheap."""

MEDIUM = 2048
"""Beyond this many nothing d x d is ever formed."""

BATCHING = 8
"""How much faster d products with a data matrix at once are than one after the other: the one is
bound by arithmetic, the other by memory. Measured on CPUs: 5 where the matrix fits into the cache,
20 and more where it does not."""

WORTH = 72
"""Products, as many as a few solves by conjugate gradients take, that a factor may cost."""


def forming_pays(operator: LinearMap, like: Point, blocks: int | None = None) -> bool:
    """Whether forming the matrix of a symmetric operator and factoring it costs no more than a few
    solves by conjugate gradients.

    A product with data matrices takes w operations in them; d at once cost d / 8 products, and the
    factor d³/3 operations that are as fast. Products that take no matrix are cheap as they are.
    With `blocks` along the first axis of all leaves, d is the size of one, a product already is one
    with several vectors at once, and there is a factor for each; blocks that are stacked matrices
    cost nothing to form."""
    d = tree.size(like) // (blocks or 1)
    if d <= SMALL:
        return True
    if d > MEDIUM:
        return False
    work = matrix_work(jax.make_jaxpr(operator)(like))
    forming = d / BATCHING
    if blocks is not None:
        forming = 0 if takes_no_products(operator, like) else d / max(1, BATCHING / blocks)
    return work > 0 and forming + (blocks or 1) * d**3 / (3 * BATCHING * work) <= WORTH


def matrix_work(program: Any) -> int:
    """Operations in the products with matrices of a program, loops counted once."""
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            sums = 1
            for axis in contracted:
                sums *= left[axis]
            total += 2 * sums * equation.outvars[0].aval.size
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: isinstance(p, ClosedJaxpr | Jaxpr)
        ):
            if isinstance(parameter, ClosedJaxpr | Jaxpr):
                total += matrix_work(parameter)
    return total
