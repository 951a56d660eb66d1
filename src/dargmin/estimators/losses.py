"""The losses of all folds at once: x holds one model for each slot, stacked along its first axis.

Data are leaves, so that a second fit of the same shape, or of other folds, compiles nothing."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

KINDS = ("squared", "logistic", "softmax")


class MomentLoss(eqx.Module):
    """Σ_k ½ ⟨x_k, G_k x_k⟩ - ⟨b_k, x_k⟩ + ½ c_k: the squared loss after one pass over the data.

    G_k = XᵀX, b_k = XᵀY and c_k = ‖Y‖² over the rows of slot k, centred and divided by how much
    they weigh; nothing here grows with the number of rows."""

    G: Float[Array, "B d d"]
    b: Float[Array, "B d m"]
    c: Float[Array, " B"]

    def __call__(self, x: Float[Array, "B d m"]) -> Float[Array, ""]:
        Gx = jnp.einsum("kij,kjm->kim", self.G, x)
        return jnp.sum(x * (0.5 * Gx - self.b)) + 0.5 * jnp.sum(self.c)

    def diagonal(self, x: Float[Array, "B d m"]) -> Float[Array, "B d 1"]:
        """Of the Hessian."""
        return jnp.diagonal(self.G, axis1=1, axis2=2)[:, :, None]


class RowLoss(eqx.Module):
    """Σ_k Σ_i s_ki ℓ(x_iᵀx_k, y_i): the loss by a product with the data, dense or sparse.

    ℓ is ½‖z - y‖² (squared), log(1 + eᶻ) - y z (logistic) or log Σ_c exp z_c - ⟨y, z⟩ (softmax),
    with y in {0, 1}.
    Adding a constant to all intercepts of a softmax changes no prediction: `tied` adds
    ½ Σ_k (Σ_c x_kc)² over the last coordinate, which is zero at the minimum and makes it unique."""

    X: Any  # (n, d), an array or a sparse BCOO matrix
    squares: Any  # its entries squared, for the diagonal
    y: Float[Array, "n m"]
    weight: Float[Array, "B n"]
    kind: str = eqx.field(static=True)
    tied: bool = eqx.field(static=True, default=False)

    def __call__(self, x: Float[Array, "B d m"]) -> Float[Array, ""]:
        z = self._predict(x)
        loss = _LOSSES[self.kind](z, self.y[:, None, :])
        total = jnp.sum(self.weight.T * loss)
        if not self.tied:
            return total
        return total + 0.5 * jnp.sum(jnp.square(jnp.sum(x[:, -1, :], axis=-1)))

    def diagonal(self, x: Float[Array, "B d m"]) -> Float[Array, "B d m"]:
        """Of the Hessian, but for what ties the intercepts together."""
        curvature = _CURVATURES[self.kind](self._predict(x))
        weighted = self.weight.T[:, :, None] * curvature
        rows, slots, m = weighted.shape
        diagonal = self.squares.T @ weighted.reshape(rows, slots * m)
        return jnp.moveaxis(diagonal.reshape(-1, slots, m), 0, 1)

    def _predict(self, x: Float[Array, "B d m"]) -> Float[Array, "n B m"]:
        slots, d, m = x.shape
        z = self.X @ jnp.moveaxis(x, 0, 1).reshape(d, slots * m)
        return z.reshape(-1, slots, m)


def _squared(z: Float[Array, "n B m"], y: Float[Array, "n 1 m"]) -> Float[Array, "n B"]:
    return 0.5 * jnp.sum(jnp.square(z - y), axis=-1)


def _logistic(z: Float[Array, "n B 1"], y: Float[Array, "n 1 1"]) -> Float[Array, "n B"]:
    # Not log(1 + eᶻ) - y z, whose derivative p - y cancels where the fit is good.
    return jax.nn.softplus((1 - 2 * y) * z)[..., 0]


def _softmax(z: Float[Array, "n B m"], y: Float[Array, "n 1 m"]) -> Float[Array, "n B"]:
    """log(1 + Σ exp(z_c - z_y)) over the other classes: its derivative does not cancel either."""
    own = jnp.sum(y * z, axis=-1, keepdims=True)
    others = jnp.where(y > 0, -jnp.inf, z - own)
    return jax.nn.softplus(jax.nn.logsumexp(others, axis=-1))


_LOSSES = {"squared": _squared, "logistic": _logistic, "softmax": _softmax}


def _logistic_curvature(z: Float[Array, "n B m"]) -> Float[Array, "n B m"]:
    p = jax.nn.sigmoid(z)
    return p * (1 - p)


def _softmax_curvature(z: Float[Array, "n B m"]) -> Float[Array, "n B m"]:
    p = jax.nn.softmax(z, axis=-1)
    return p * (1 - p)


_CURVATURES = {
    "squared": jnp.ones_like,
    "logistic": _logistic_curvature,
    "softmax": _softmax_curvature,
}


class Penalty(eqx.Module):
    """Σ_k a_k Σ_j λ₁ⱼ |x_kj| + ½ λ₂ⱼ x_kj² with λⱼ = e^θ of the group of feature j.

    θ has one row, (λ₁, λ₂) = (ρ, 1 - ρ) e^θ, or two, λ₁ = e^θ₁ and λ₂ = e^θ₂. Penalties count in
    the units of the table: `scale` is what a standardised coordinate is divided by to get there."""

    group: Array  # (d,)
    scale: Float[Array, " d"]
    unit: Float[Array, ""]  # of the target, by which x is divided
    slot: Float[Array, " B"]  # a: the loss is a mean, and fewer rows have less of a sum's penalty
    penalised: Float[Array, " d"]  # 0 for an intercept
    ratio: Float[Array, ""]  # ρ

    def l1(self, theta: Float[Array, "r p"]) -> Float[Array, "B d 1"]:
        strength = theta[0] if len(theta) == 2 else theta[0] + jnp.log(self.ratio)
        return self._each(strength, self.scale * self.unit)

    def l2(self, theta: Float[Array, "r p"]) -> Float[Array, "B d 1"]:
        strength = theta[1] if len(theta) == 2 else theta[0] + jnp.log(1 - self.ratio)
        return self._each(strength, jnp.square(self.scale))

    def _each(self, logarithm: Float[Array, " p"], unit: Float[Array, " d"]) -> Any:
        weight = self.penalised * jnp.exp(logarithm)[self.group] / unit
        return self.slot[:, None, None] * weight[None, :, None]


class Ridged(eqx.Module):
    """The loss + ½ Σ_k a_k Σ_j λ₂ⱼ ‖x_kj‖²."""

    loss: MomentLoss | RowLoss
    penalty: Penalty

    def __call__(self, x: Float[Array, "B d m"], theta: Float[Array, "r p"]) -> Float[Array, ""]:
        return self.loss(x) + 0.5 * jnp.sum(self.penalty.l2(theta) * jnp.square(x))

    def diagonal(self, x: Float[Array, "B d m"], theta: Float[Array, "r p"]) -> Any:
        diagonal = self.loss.diagonal(x) + self.penalty.l2(theta)
        # What nothing determines (a class or a feature that a fold has not seen) has no curvature.
        return jnp.broadcast_to(jnp.where(diagonal > 0, diagonal, 1), x.shape)


class Smooth(eqx.Module):
    """The loss alone; the penalty is in the proximal operator."""

    loss: MomentLoss | RowLoss

    def __call__(self, x: Float[Array, "B d m"], theta: Float[Array, "r p"]) -> Float[Array, ""]:
        return self.loss(x)


class Weight(eqx.Module):
    """λ₁ or λ₂ of every coordinate of x, for the proximal operator."""

    penalty: Penalty
    like: Float[Array, "B 1 m"]
    order: int = eqx.field(static=True)

    def __call__(self, theta: Float[Array, "r p"]) -> Float[Array, "B d m"]:
        weight = self.penalty.l1(theta) if self.order == 1 else self.penalty.l2(theta)
        return weight * self.like


class Validation(eqx.Module):
    """The mean loss on the rows that validate, + ½ τ ‖θ - θ₀‖².

    The loss is that of sklearn.metrics: the mean squared error, or the log loss in nats."""

    loss: MomentLoss | RowLoss
    factor: Float[Array, ""]
    strength: Float[Array, ""]  # τ
    center: Float[Array, "r p"]  # θ₀

    def __call__(self, x: Float[Array, "B d m"], theta: Float[Array, "r p"]) -> Float[Array, ""]:
        away = jnp.sum(jnp.square(theta - self.center))
        return self.factor * self.loss(x) + 0.5 * self.strength * away
