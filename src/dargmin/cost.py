"""What a computation costs, in counts that do not depend on the machine."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


class Cost(eqx.Module):
    """Evaluations of the residual (gradients), products with its Jacobian, factorisations.

    A product formed for a dense Jacobian counts as one; a line search counts as gradients.
    `adjoint` says how many of the products were those of the derivative's own linear solves."""

    gradients: Int[Array, "*batch"]
    products: Int[Array, "*batch"]
    factorisations: Int[Array, "*batch"]
    adjoint: Int[Array, "*batch"]

    def __init__(
        self, gradients: Any = 0, products: Any = 0, factorisations: Any = 0, adjoint: Any = 0
    ):
        self.gradients = jnp.asarray(gradients)
        self.products = jnp.asarray(products)
        self.factorisations = jnp.asarray(factorisations)
        self.adjoint = jnp.asarray(adjoint)

    def __repr__(self) -> str:
        return (
            f"Cost(gradients={self.gradients}, products={self.products}, "
            f"factorisations={self.factorisations}, adjoint={self.adjoint})"
        )

    def __add__(self, other: "Cost") -> "Cost":
        return jax.tree.map(jnp.add, self, other)
