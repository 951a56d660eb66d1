"""One factor of a symmetric matrix for many solves: with this matrix, and with those near it."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dargmin import tree
from dargmin.cost import Cost
from dargmin.linear.forming import in_blocks, materialise, materialise_blocks
from dargmin.linear.lanes import in_every_lane
from dargmin.linear.matrix import (
    FLOOR,
    LARGEST_BAND,
    Spectral,
    Undetermined,
    largest_column,
    singular_threshold,
    spectral,
    symmetric_scale,
)
from dargmin.linear.solution import (
    AbstractLinearSolver,
    LinearInfo,
    amplification,
    failure,
    inconsistency,
    judge,
    samples,
)
from dargmin.linear.work import SMALL
from dargmin.types import LinearMap, Point

MAX_REFINEMENTS = 12


class Factored(AbstractLinearSolver):
    """x ← x + M(b - Kx) until the true residual is small, with M = K₀⁺ by a factor of K₀, or by one
    for each block of a block diagonal K₀.

    K₀ is the symmetric matrix that was factored, K itself or a neighbour: every step takes a
    product with K off the residual's error, and with K = K₀ one is enough. K₀ is scaled to a unit
    diagonal first, in which norm all is measured, so that the units of x are no ill-condition. A
    singular K₀ is decomposed: M then gives the minimum-norm solution of a consistent system, and
    what stays of the residual tells an inconsistent one.

    Attributes
    ----------
    found : Spectral, leaves with the leading axis of the blocks
        The factor: W with M = WᵀW where d is small or K₀ was decomposed, else C with S K₀ S = C Cᵀ,
        lower; and what a decomposition found beside it, or zeros.
    errors : pair of arrays, shape (d,) or (B, d)
        Where errors of a solution may point: M times something random, and that once more.
    largest : array
        An estimate of ‖S K₀ S‖.
    singular : bool array
        Whether K₀ was decomposed: it is singular, or indefinite.
    slack : array
        How much of b may lie outside the range of a singular K₀."""

    found: Spectral
    errors: tuple[Float[Array, "*blocks d"], Float[Array, "*blocks d"]]
    largest: Float[Array, ""]
    singular: Bool[Array, ""]
    slack: Float[Array, ""]

    @property
    def scale(self) -> Float[Array, "*blocks d"]:
        """The diagonal of S."""
        return self.found.scale

    @property
    def factor(self) -> Float[Array, "*blocks d d"]:
        return self.found.factor

    @property
    def condition(self) -> Float[Array, ""]:
        """An estimate of the condition number of S K₀ S, on its range if it is singular."""
        return jnp.max(self.found.condition)

    @property
    def indefinite(self) -> Bool[Array, ""]:
        """Whether K₀ has an eigenvalue that is negative beyond rounding."""
        return jnp.any(self.found.indefinite)

    @property
    def cost(self) -> Cost:
        """What forming and factoring took."""
        return Cost(0, self.factor.shape[-1], 1 + self.singular.astype(int))

    def solve(
        self,
        operator: LinearMap,
        b: Point,
        *,
        symmetric: bool,
        start: Point | None,
        preconditioner: LinearMap | None,
        rtol: float | Float[Array, ""],
    ) -> tuple[Point, LinearInfo]:
        del symmetric, preconditioner
        kind, scale = tree.dtype(b), self._join(self.scale, b)
        norm = lambda r: tree.norm(jax.tree.map(jnp.multiply, scale, r))
        inner = lambda r: norm(self.in_range(r))
        whole = norm(b)
        whole = jnp.where(whole > 0, whole, 1)
        zero, x, r = jnp.asarray(0), tree.zeros_like(b), b
        if start is not None:  # what it has in the null space of K would stay
            x = tree.where(self.singular, x, start)
            r = tree.sub(b, operator(x))
        begin = _Refined(x, r, inner(r) / whole, zero + int(start is not None), jnp.asarray(True))

        def unfinished(c: _Refined) -> Bool[Array, ""]:
            small = c.size <= jnp.asarray(rtol, kind)
            return ~small & c.falling & (c.products < MAX_REFINEMENTS)

        def refine(c: _Refined) -> _Refined:
            x = tree.add(c.x, self.inverse(c.residual))
            r = tree.sub(b, operator(x))
            size = inner(r) / whole
            better = size < c.size
            return _Refined(
                x=tree.where(better, x, c.x),
                residual=tree.where(better, r, c.residual),
                size=jnp.where(better, size, c.size),
                products=c.products + 1,
                falling=size < 0.5 * c.size,
            )

        end = jax.lax.while_loop(unfinished, refine, begin)
        length = tree.norm(jax.tree.map(jnp.divide, end.x, scale)) / whole
        success = judge(
            end.size, length, kind, rtol=rtol, largest=self.largest, condition=self.condition
        )
        # What lies outside the range of a singular K may be rounding of a consistent b.
        outside = norm(tree.sub(end.residual, self.in_range(end.residual))) / whole
        inconsistent = outside > self.slack
        return end.x, LinearInfo(
            status=failure(
                success & ~inconsistent,
                finite=jnp.isfinite(end.size + length + self.largest),
                indefinite=self.indefinite,
                inconsistent=inconsistent,
            ),
            residual=norm(end.residual) / whole,
            amplification=amplification(length, self.largest, self.condition),
            condition=self.condition,
            products=end.products,
            factorisations=zero,
            doubt=samples(end.x, *(self._join(error, b) for error in self.errors)),
            null=self._join(self.found.null, b),
            slack=self.slack,
            lowest=jnp.asarray(jnp.inf, kind),
        )

    def inverse(self, v: Point) -> Point:
        """M v."""
        return self._join(self._inverse(self._split(v)), v)

    def in_range(self, v: Point) -> Point:
        """The part of v in the range of K₀: all of it, if K₀ is regular."""
        project = lambda: self._join(self._split(v) - self._in_null_space(self._split(v)), v)
        return jax.lax.cond(self.singular, project, lambda: v)

    def descent(self, gradient: Point) -> Point:
        """A direction along which f falls, for K₀ its Hessian: -Mg; along what a singular K₀ does
        not see, far down the gradient, in the units of M."""
        g = self._split(gradient)
        flat = self._in_null_space(jnp.square(self.scale) * self._in_null_space(g))
        far = FLOOR * jnp.where(self.largest > 0, self.largest, 1)
        return self._join(-self._inverse(g) - flat / far, gradient)

    def most_negative(self, like: Point) -> Point:
        """The direction of the most negative curvature of every block, or zeros."""
        return self._join(self.found.lowest, like)

    def measure(self, v: Point) -> Float[Array, ""]:
        """‖S⁻¹v‖, in which norm the units of v do not count."""
        return tree.norm(self._split(v) / self.scale)

    def _inverse(self, v: Float[Array, "*blocks d"]) -> Float[Array, "*blocks d"]:
        product = lambda: _times(self.factor.mT, _times(self.factor, v))
        if v.shape[-1] <= SMALL:
            return product()
        return jax.lax.cond(
            self.singular, product, lambda: self.scale * _triangular(self.factor, self.scale * v)
        )

    def _in_null_space(self, v: Float[Array, "*blocks d"]) -> Float[Array, "*blocks d"]:
        return _times(self.found.basis, _times(self.found.basis.mT, v))

    def _split(self, v: Point) -> Float[Array, "*blocks d"]:
        """A pytree as a vector, or as one for each block."""
        return in_blocks(v)[0](v) if self.factor.ndim == 3 else tree.ravel(v)[0]

    def _join(self, v: Float[Array, "*blocks d"], like: Point) -> Point:
        return in_blocks(like)[1](v) if self.factor.ndim == 3 else tree.ravel(like)[1](v)


class _Refined(eqx.Module):
    x: Point
    residual: Point
    size: Float[Array, ""]
    products: Int[Array, ""]
    falling: Bool[Array, ""]


def factored(
    operator: LinearMap, like: Point, blocks: int | None = None, undetermined: Undetermined = 0.0
) -> Factored:
    """Form a symmetric operator by d batched products, and factor it; or each of its blocks, of
    size d, where it is block diagonal in the first axis of all leaves."""
    if blocks is None:
        return factor_matrix(materialise(operator, like), undetermined)
    return factor_matrix(materialise_blocks(operator, like, blocks))


def factor_matrix(
    matrix: Float[Array, "*blocks d d"], undetermined: Undetermined = 0.0
) -> Factored:
    """The factor of a symmetric matrix, or of each of a stack of them.

    By Cholesky; where that fails, or the condition number (by power steps with the inverse) is that
    of rounding, by the spectral decomposition (see `dargmin.linear.matrix.spectral` for what is
    `undetermined`)."""
    kind, d = matrix.dtype, matrix.shape[-1]
    matrix = (matrix + matrix.mT) / 2
    scale = symmetric_scale(matrix)
    scaled = scale[..., :, None] * matrix * scale[..., None, :]
    largest = largest_column(scaled)
    factor = jax.lax.linalg.cholesky(scaled, symmetrize_input=False)
    if d <= SMALL:  # two products are then quicker than two triangular solves
        identity = jnp.broadcast_to(jnp.eye(d, dtype=kind), matrix.shape)
        factor = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
        inverse = lambda v: _times(factor.mT, _times(factor, v))
    else:
        inverse = lambda v: _triangular(factor, v)
    start = tree.random_like(scale)
    once = inverse(start)
    slow = inverse(once)
    growth = jnp.linalg.norm(slow, axis=-1) / jnp.linalg.norm(once, axis=-1)
    conditions = largest * growth
    regular = jnp.all(jnp.isfinite(conditions) & (conditions * singular_threshold(kind, d) < 1))
    finite = jnp.all(jnp.isfinite(largest))
    decompose = spectral if matrix.ndim == 2 else jax.vmap(spectral, (0, None))
    blank = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(decompose, matrix, undetermined)
    )

    def by_cholesky() -> tuple[Spectral, tuple]:
        ready = factor * scale[..., None, :] if d <= SMALL else factor
        errors = (scale * once, scale * slow)
        return blank._replace(factor=ready, scale=scale, condition=conditions), errors

    def by_spectrum() -> tuple[Spectral, tuple]:
        found = decompose(matrix, undetermined)
        product = lambda v: _times(found.factor.mT, _times(found.factor, v))
        errors = product(start / scale), product(tree.random_like(scale, seed=5) / scale)
        choose = lambda new, old: jnp.where(regular, old, new)
        return jax.tree.map(choose, (found, errors), by_cholesky())

    # A branch also under vmap: nothing is decomposed that no lane needs, nor while another kernel
    # of LAPACK runs, for which its threads might wait.
    found, errors = jax.lax.cond(in_every_lane(regular | ~finite), by_cholesky, by_spectrum)
    slack = inconsistency(kind) + jnp.minimum(jnp.max(found.blur), LARGEST_BAND)
    return Factored(found, errors, jnp.max(largest), ~regular, slack)


def _times(
    matrix: Float[Array, "*blocks d d"], v: Float[Array, "*blocks d"]
) -> Float[Array, "*blocks d"]:
    return jnp.einsum("...ij,...j->...i", matrix, v)


def _triangular(
    cholesky: Float[Array, "*blocks d d"], v: Float[Array, "*blocks d"]
) -> Float[Array, "*blocks d"]:
    """(C Cᵀ)⁻¹ v."""
    return jax.scipy.linalg.cho_solve((cholesky, True), v[..., None])[..., 0]
