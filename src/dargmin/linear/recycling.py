"""What earlier runs of conjugate gradients found out about K, as a preconditioner."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.types import LinearMap, Point


class Pairs(eqx.Module):
    """Directions p and products y = Kp with ⟨p, y⟩ = 1, the oldest first; empty places are zero.

    Attributes
    ----------
    directions, products : arrays, shape (m, d)
        p and y, as vectors."""

    directions: Float[Array, "*batch m d"]
    products: Float[Array, "*batch m d"]

    @classmethod
    def zeros(cls, like: Point, count: int) -> "Pairs":
        """Room for `count` pairs, and nothing known."""
        flat, _ = tree.ravel(like)
        empty = jnp.zeros((count, flat.size), flat.dtype)
        return cls(empty, empty)

    def put(
        self,
        step: Int[Array, ""],
        direction: Point,
        product: Point,
        curvature: Float[Array, ""],
        usable: Bool[Array, ""],
    ) -> "Pairs":
        """The pair of this step in place of the oldest, if it is usable."""
        if self.directions.shape[0] == 0:
            return self
        place = step % self.directions.shape[0]
        size = 1 / jnp.sqrt(jnp.where(usable, curvature, 1))

        def replace(rows: Float[Array, "m d"], v: Point) -> Float[Array, "m d"]:
            row = jnp.where(usable, size.astype(rows.dtype) * tree.ravel(v)[0], rows[place])
            return rows.at[place].set(row)

        return Pairs(replace(self.directions, direction), replace(self.products, product))

    def in_order(self, steps: Int[Array, ""]) -> "Pairs":
        """The oldest first again, after `steps` steps of a run."""
        shift = -(steps % max(self.directions.shape[0], 1))
        return jax.tree.map(lambda rows: jnp.roll(rows, shift, axis=0), self)

    def preconditioner(self, like: Point, initial: LinearMap | None = None) -> LinearMap:
        """v -> M⁻¹v, the inverse Hessian of L-BFGS with these pairs and M₀⁻¹ = `initial`.

        M⁻¹ is symmetric positive definite whatever the pairs are, those of an earlier, different K
        included. In the compact form, with R the upper triangle of P Yᵀ (unit diagonal):
        M⁻¹ = M₀⁻¹ + Pᵀ R⁻ᵀ (I + Y M₀⁻¹ Yᵀ) R⁻¹ P - Pᵀ R⁻ᵀ Y M₀⁻¹ - M₀⁻¹ Yᵀ R⁻¹ P. Without
        `initial`, M₀⁻¹ is the scalar ⟨p, y⟩ / ⟨y, y⟩ of the newest pair.

        References
        ----------
        Byrd, Nocedal, Schnabel (1994), theorem 2.2; Morales and Nocedal (2000)."""
        P, Y = self.directions, self.products
        base, BY = self._base(like, initial)
        R = jnp.eye(P.shape[0], dtype=P.dtype) + jnp.triu(P @ Y.T, 1)
        gram = Y @ BY.T
        unravel = tree.ravel(like)[1]

        def apply(v: Point) -> Point:
            r = tree.ravel(v)[0]
            w = solve_triangular(R, P @ r)
            top = solve_triangular(R, w + gram @ w - BY @ r, trans=1)
            return unravel(base(r) + top @ P - w @ BY)

        return apply

    def _base(
        self, like: Point, initial: LinearMap | None
    ) -> tuple[Callable[[Array], Array], Float[Array, "m d"]]:
        """M₀⁻¹ on vectors, and its products with the rows of Y."""
        Y, unravel = self.products, tree.ravel(like)[1]
        if initial is not None:
            base = lambda r: tree.ravel(initial(unravel(r)))[0]
            return base, jax.vmap(base)(Y)
        squared = jnp.sum(Y[-1:] ** 2)
        size = jnp.where(squared > 0, 1 / jnp.where(squared > 0, squared, 1), 1)
        return (lambda r: size * r), size * Y
