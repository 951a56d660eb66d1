"""What `ok` is worth on many kinds of problems: rows for calibration.py.

Each family of calibration_families.py is drawn many times. All draws of a family run in one
program, one after the other (`lax.map`), as they would alone. Truth comes from
calibration_oracle.py."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from calibration_families import FAMILIES, Family
from calibration_oracle import Truth, programs, truth

import dargmin
from dargmin.status import Status

Row = dict[str, Any]
Array = np.ndarray
SHARES = (1e-3, 0.1, 1.0, 100.0)  # how far from x* a claim is made, in units of ‖x*‖
NEAR = (1e-3, 1e-2)  # the same where there are other minima nearby
CLAIMS = ("exact", "ten percent off", "at the point", "sign flipped")


class Outer(eqx.Module):
    """φ(x, θ) = ½ w ‖F(x) - a‖² + qᵀF(x)."""

    features: Any = eqx.field(static=True)
    data: tuple
    a: Any
    q: Any
    w: Any

    def __call__(self, x: Any, theta: Any) -> Any:
        F = jnp.ravel(self.features(*self.data, x))
        return 0.5 * self.w * jnp.sum(jnp.square(F - self.a)) + jnp.sum(self.q * F)


class Batch(eqx.Module):
    """Many draws of a family in one precision, and the truth about each."""

    family: Family = eqx.field(static=True)
    data: tuple
    x0: Any
    theta: Any
    known: Truth
    nudged: list[Truth]  # with all inputs moved by rounding

    def __len__(self) -> int:
        return len(self.theta)


def draw(family: Family, dtype: Any, count: int, seed: int) -> Batch:
    """`count` problems that have a solution, as rounded to `dtype`."""
    rngs = [np.random.default_rng([seed, i]) for i in range(count)]
    data, x0, theta = stack([family.draw(rng) for rng in rngs], dtype)
    known = truth(family, wide(data), x0, wide(theta))
    keep = np.flatnonzero(known.valid)
    data, x0, theta, known = jax.tree.map(lambda u: u[keep], (data, x0, theta, known))
    return Batch(family, data, x0, theta, known, nudge(family, data, theta, known.x))


def nudge(family: Family, data: Any, theta: Any, x: Array) -> list[Truth]:
    """The truth for inputs that differ by their rounding, twice."""
    rng = np.random.default_rng(0)
    eps = np.finfo(theta.dtype).eps
    move = lambda u: wide(u) * (1 + eps * rng.choice([-1.0, 1.0], size=u.shape))
    return [truth(family, jax.tree.map(move, data), x, move(theta)) for _ in range(2)]


def stack(draws: list[Any], dtype: Any) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves).astype(dtype), *draws)


def wide(t: Any) -> Any:
    return jax.tree.map(lambda u: np.asarray(u, float), t)


def promise_rows(quick: bool, progress: Any) -> tuple[list[Row], list[Row]]:
    """Derivatives from elsewhere, and our own."""
    certified, own = [], []
    count = 6 if quick else 70
    for dtype in (np.float64, np.float32):
        families = FAMILIES[::3] if quick and dtype == np.float32 else FAMILIES
        for family in progress(list(families), np.dtype(dtype).name):
            batch = draw(family, dtype, count, FAMILIES.index(family))
            if len(batch):
                own += own_rows(batch)
                certified += certify_rows(batch)
            programs.cache_clear()
            jax.clear_caches()  # no two families share a program, and all of them fill the memory
    return certified, own


# ---- derivatives of our own ----------------------------------------------------------------------


def own_rows(batch: Batch) -> Iterator[Row]:
    single = batch.theta.dtype == np.float32
    rtols = (1e-2, 1e-3) if single else (1e-2, 1e-3, 1e-6)
    for kind in ("anywhere", "cancelling"):
        outer = aims(batch, kind)
        for rtol in rtols:
            g, error, status, x = hypergradients(batch, outer, rtol)
            known, nudged = at_found(batch, x)
            true = known.gradient(*outer)
            allowed = rounding(batch, true, [t.gradient(*outer) for t in nudged])
            yield from tabulate(batch, kind, rtol, g, error, status, true, allowed, known)
    if batch.family.features.__name__ in ("everything", "predictions"):
        yield from sensitivity_rows(batch, rtols)


def sensitivity_rows(batch: Batch, rtols: tuple) -> Iterator[Row]:
    for rtol in rtols:
        moved, error, status, x = sensitivities(batch, rtol)
        known, nudged = at_found(batch, x)
        for j in range(batch.theta.shape[1]):
            true = known.jacobian[:, :, j]
            allowed = rounding(batch, true, [t.jacobian[:, :, j] for t in nudged])
            yield from tabulate(
                batch, "sensitivity", rtol, moved[:, j], error[:, j], status, true, allowed, known
            )


def aims(batch: Batch, kind: str) -> tuple[Array, Array, Array]:
    """a, q and w of the outer function; `cancelling` leaves a hundredth of qᵀ∂F."""
    rng = np.random.default_rng(1)
    F, single = batch.known.features, lambda u: u.astype(batch.theta.dtype).astype(float)
    size = np.sqrt(np.mean(F**2, axis=1, keepdims=True)) + 1e-12
    a, q = size * rng.normal(size=F.shape), rng.normal(size=F.shape)
    if kind == "anywhere":
        return single(a), 0 * q, np.ones(len(F))
    moves = batch.known.slopes @ batch.known.jacobian
    seen = np.einsum("bkp,bpl,bl->bk", moves, np.linalg.pinv(moves), q)
    left = q - seen
    if F.shape[1] > 2 * batch.theta.shape[1]:
        left = left / np.linalg.norm(left, axis=1, keepdims=True)
        seen = 1e-2 * seen / np.maximum(np.linalg.norm(seen, axis=1, keepdims=True), 1e-300)
    return single(0 * a), single(left + seen), np.zeros(len(F))


def at_found(batch: Batch, x: Array) -> tuple[Truth, list[Truth]]:
    """The truth, also for nudged inputs. Of many minima, that at the one that was found; where none
    was, that at the one that the oracle found, with `valid` false."""
    if not batch.family.many:
        return batch.known, batch.nudged
    x = wide(np.where(np.isfinite(x), x, batch.known.x))
    found = truth(batch.family, wide(batch.data), x, wide(batch.theta))
    far = np.linalg.norm(found.x - x, axis=1) > 1e-2 * (1 + np.linalg.norm(x, axis=1))
    there = found.valid & ~far
    pick = lambda u, v: np.where(there.reshape(-1, *(u.ndim - 1) * [1]), u, v)
    known = Truth(*map(pick, found, batch.known))._replace(valid=there)
    return known, nudge(batch.family, batch.data, batch.theta, known.x)


def rounding(batch: Batch, true: Array, nudged: list[Array]) -> Array:
    """The relative error that rounding the inputs makes in this derivative, or ε κ if larger."""
    change = np.max([np.linalg.norm(n - true, axis=1) for n in nudged], axis=0)
    scale = np.maximum(np.linalg.norm(true, axis=1), 1e-300)
    return np.fmax(change / scale, np.finfo(batch.theta.dtype).eps * batch.known.condition)


def tabulate(
    batch: Batch, kind: str, rtol: float, value: Array, error: Array, status: Array, true: Array,
    noise: Array, known: Truth,
) -> Iterator[Row]:  # fmt: skip
    off = np.where(known.valid, relative(value, true), np.nan)
    for i in np.flatnonzero(np.linalg.norm(true, axis=1) > 1e-250):
        yield dict(
            family=batch.family.name, dtype=batch.theta.dtype.name, claim=kind, rtol=rtol,
            true=off[i], estimate=error[i], ok=status[i] == 0, said=said(status[i]),
            number=bool(np.isfinite(value[i]).any()), known=bool(known.valid[i]),
            rounding=noise[i], draw=int(i),
        )  # fmt: skip


def said(status: Any) -> str:
    return "ok" if status == 0 else Status._index_to_message[int(status)][:40]


def relative(value: Array, true: Array) -> Array:
    gap = np.linalg.norm(np.asarray(value, float) - true, axis=1)
    return gap / np.maximum(np.linalg.norm(true, axis=1), 1e-300)


def hypergradients(batch: Batch, outer: tuple, rtol: float) -> list[Array]:
    kind = batch.theta.dtype
    a, q, w = (jnp.asarray(u, kind) for u in outer)
    lanes = (batch.data, batch.x0, batch.theta, a, q, w)
    return list(map(np.asarray, _hypergradients(batch.family, lanes, jnp.asarray(rtol, kind))))


@eqx.filter_jit
def _hypergradients(family: Family, lanes: Any, rtol: Any) -> Any:
    def one(lane: Any) -> Any:
        data, x0, theta, a, q, w = lane
        outer = Outer(family.features, data, a, q, w)
        problem = family.build(*data)
        h = dargmin.hypergradient(outer, problem, x0, theta, rtol=rtol, throw=False)
        return h.gradient, h.certificate.error, h.status._value, h.x

    return jax.lax.map(one, jax.tree.map(jnp.asarray, lanes))


def sensitivities(batch: Batch, rtol: float) -> list[Array]:
    lanes = (batch.data, batch.x0, batch.theta)
    rtol = jnp.asarray(rtol, batch.theta.dtype)
    return list(map(np.asarray, _sensitivities(batch.family, lanes, rtol)))


@eqx.filter_jit
def _sensitivities(family: Family, lanes: Any, rtol: Any) -> Any:
    def one(lane: Any) -> Any:
        data, x0, theta = lane
        tangents = jnp.eye(theta.size, dtype=theta.dtype)
        problem = family.build(*data)
        s = dargmin.sensitivity(problem, x0, theta, tangents, rtol=rtol, throw=False)
        return s.tangent, s.certificate.error, s.status._value, s.x

    return jax.lax.map(one, jax.tree.map(jnp.asarray, lanes))


# ---- derivatives from elsewhere ------------------------------------------------------------------


def certify_rows(batch: Batch) -> Iterator[Row]:
    rng = np.random.default_rng(2)
    shape = batch.known.jacobian.shape
    outer = aims(batch, "anywhere")
    for share in NEAR if batch.family.many else SHARES:
        u = rng.normal(size=shape[:2])
        size = np.linalg.norm(batch.known.x, axis=1) / np.linalg.norm(u, axis=1)
        x = (batch.known.x + share * size[:, None] * u).astype(batch.theta.dtype)
        t = rng.normal(size=(len(batch), shape[2])).astype(batch.theta.dtype).astype(float)
        for k in range(2):
            names = [CLAIMS[(i + 2 * k + (i // 2) % 2) % 4] for i in range(len(batch))]
            claim = claims(batch, names, wide(x), rng)
            jvp, true = (np.einsum("bdp,bp->bd", J, t) for J in (claim, batch.known.jacobian))
            gradient = batch.known._replace(jacobian=claim).gradient(*outer)
            truths = {"tangent": (jvp, true)}
            if batch.family.features.__name__ not in ("everything", "predictions"):
                truths = {}  # many x* at once: only what they share has a derivative
            truths["outer"] = gradient, batch.known.gradient(*outer)
            for form, (value, right) in truths.items():
                error, status = judged(batch, x, t, outer, form, value)
                rounded = value.astype(batch.theta.dtype)
                off, big = relative(rounded, right), np.linalg.norm(right, axis=1) > 1e-250
                for i in np.flatnonzero(np.isfinite(off) & big):
                    yield dict(
                        family=batch.family.name, dtype=batch.theta.dtype.name, claim=names[i],
                        point=share, form=form, true=off[i], estimate=error[i],
                        ok=status[i] == 0, said=said(status[i]), draw=int(i),
                        rounding=np.finfo(batch.theta.dtype).eps * batch.known.condition[i],
                    )  # fmt: skip


def claims(batch: Batch, names: list[str], x: Array, rng: Any) -> Array:
    J = batch.known.jacobian
    noise = rng.normal(size=J.shape)
    sizes = [np.linalg.norm(u, axis=(1, 2), keepdims=True) for u in (J, noise)]
    there = at_the_point(batch, x)
    made = {
        "exact": J, "ten percent off": J + 0.1 * sizes[0] / sizes[1] * noise, "sign flipped": -J,
        "at the point": np.where(np.isfinite(there), there, 2 * J),
    }  # fmt: skip
    return np.stack([made[name][i] for i, name in enumerate(names)])


def at_the_point(batch: Batch, x: Array) -> Array:
    """The implicit derivative where the problem has not been solved."""
    moments = programs(batch.family)["moments"](wide(batch.data), x, wide(batch.theta))
    *_, slopes, mixed = map(np.asarray, moments)
    K = slopes if batch.family.f is not None else np.eye(x.shape[1]) - slopes
    sign = -1 if batch.family.f is not None else 1
    return sign * np.linalg.pinv(np.nan_to_num(K), rcond=1e-13) @ np.nan_to_num(mixed)


def judged(batch: Batch, x: Array, t: Array, outer: tuple, form: str, value: Array) -> list[Array]:
    lanes = (batch.data, x, batch.theta, t, *outer, value)
    lanes = jax.tree.map(lambda u: jnp.asarray(u, batch.theta.dtype), lanes)
    return list(map(np.asarray, _judged(batch.family, lanes, form)))


@eqx.filter_jit
def _judged(family: Family, lanes: Any, form: str) -> Any:
    def one(lane: Any) -> Any:
        data, x, theta, t, a, q, w, value = lane
        outer = Outer(family.features, data, a, q, w)
        pair = dict(tangent=t, jvp=value)
        if form == "outer":
            pair = dict(outer=outer, gradient=value)
        certificate = dargmin.certify(family.build(*data), x, theta, **pair)
        return certificate.error, certificate.status._value

    return jax.lax.map(one, lanes)
