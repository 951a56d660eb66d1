"""Kinks are seen where the error of x reaches them, and nowhere else.

Where they are is known from the formulas; each problem is looked at on its kink and beside it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp, xlogy
from jax.tree_util import Partial

from dargmin import Composite, FixedPoint, Objective, Root, prox
from dargmin.kinks import nonsmooth_within
from dargmin.problems.structure import piecewise

T = jnp.array([1.0, 0.5, -0.3])
MASK = np.array([True, False, True])


def apart(x, t):
    return 0.5 * jnp.sum((x - t) ** 2)


# ---- what the program shows ----------------------------------------------------------------------

QUADRATIC = {
    "data that are compared": lambda x, t: jnp.sum(jnp.where(t > 0, x, 2 * x) ** 2 * jnp.abs(t)),
    "mask": lambda x, t: apart(jnp.where(MASK, x, 0), t) + jnp.sum(x[np.array([2, 0])] ** 2),
    "scan": lambda x, t: jax.lax.scan(lambda c, a: (c + a**2, None), 0.0, x)[0] + t @ x,
    "cond": lambda x, t: jax.lax.cond(t[0] > 0, lambda: 1.0, lambda: 2.0) * apart(x, t),
    "checkpoint": lambda x, t: jax.checkpoint(apart)(x, t),
    "solve": lambda x, t: x @ jnp.linalg.solve(jnp.diag(t), x),
    "unused": lambda x, t: (apart(x, t), jnp.max(x))[0],
}
PIECES = {
    "abs": lambda x, t: apart(x, t) + jnp.sum(jnp.abs(x)),
    "hinge": lambda x, t: apart(x, t) + jnp.sum(jnp.maximum(0.0, 1 - x)),
    "where": lambda x, t: apart(x, t) + jnp.sum(jnp.where(x > 0, x, -x)),
    "max": lambda x, t: apart(x, t) + jnp.max(x),
    "sort": lambda x, t: apart(x, t) + jnp.sort(x) @ t,
    "clip": lambda x, t: apart(jnp.clip(x, -1.0, 1.0), t),
    "relu": lambda x, t: apart(x, t) + jnp.sum(jax.nn.relu(x)),
    "floor": lambda x, t: apart(x, t) + jnp.sum(jnp.floor(x)),
    "argmax": lambda x, t: apart(x, t) + x[jnp.argmax(x)],
    "in a scan": lambda x, t: jax.lax.scan(lambda c, a: (c + jnp.abs(a), None), 0.0, x)[0],
    "cond": lambda x, t: jax.lax.cond(x[0] > 0, lambda: 1.0, lambda: 2.0) * apart(x, t),
    "median": lambda x, t: apart(x, t) + jnp.median(x),
}  # fmt: skip


@pytest.mark.parametrize("f", QUADRATIC.values(), ids=QUADRATIC)
def test_decisions_by_data_leave_a_quadratic_quadratic(f):
    assert Objective(f).is_quadratic(T, T)


@pytest.mark.parametrize("f", PIECES.values(), ids=PIECES)
def test_what_has_pieces_is_not_proved_quadratic(f):
    assert not Objective(f).is_quadratic(T, T)


def steps_until_large(x, t):
    large = lambda c: c[0] < 10
    return jax.lax.while_loop(large, lambda c: (c[0] + 1 + x[0] ** 2, 2 * c[1]), (0.0, x))[1]


def test_a_program_is_piecewise_if_it_decides_anything_by_x():
    assert piecewise(steps_until_large, T, T)
    assert piecewise(lambda x, t: x[(3 * x[0]).astype(int)], T, T)
    assert piecewise(lambda x, t: jnp.linalg.norm(x), T, T)  # its kink is at 0
    for smooth in (
        lambda x, t: jax.nn.softplus(x),  # computed by cases
        lambda x, t: jax.nn.log_sigmoid(x * t),
        lambda x, t: jnp.linalg.solve(jnp.eye(3) + jnp.outer(x, x), t),  # with pivots
        lambda x, t: jnp.where(jnp.isfinite(x), x, 0),
        lambda x, t: jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y), x),
    ):
        assert not piecewise(smooth, T, T)
        assert not piecewise(jax.jacrev(smooth), T, T)


# ---- jumps ---------------------------------------------------------------------------------------


def absolute(x, t):
    return apart(x, t) + jnp.sum(jnp.abs(x))


def squared_hinge(x, t):
    """The curvature jumps from 1 to 3 where x falls below t."""
    return 0.5 * jnp.sum((x - 2) ** 2) + jnp.sum(jnp.maximum(0.0, t - x) ** 2)


def largest(x, t):
    return apart(x, t) + jnp.max(x)


def kinked_map(x, t):
    """Kinks where 2x = t."""
    return 0.3 * jnp.maximum(2 * x, t) + 0.1


def kinked_root(x, t):
    """Kinks where x₀ + ... = t₀ + ..."""
    return 2 * x + jnp.abs(jnp.sum(x - t)) * jnp.arange(1.0, 4.0)


def group(x, t):
    return 0.5 * jnp.sum((x - t) ** 2) + jnp.linalg.norm(x[:2])


compiled = eqx.filter_jit(nonsmooth_within)


def look(problem, x, theta, radius):
    return compiled(problem, x, theta, jax.tree.map(jnp.asarray, radius))


CASES = {
    "abs": (Objective(absolute), T, T.at[1].set(0)),
    "squared hinge": (Objective(squared_hinge), T, T + jnp.array([1.0, 0, 2])),
    "max": (Objective(largest), T, jnp.array([0.4, 0.4, -0.3])),
    "fixed point": (FixedPoint(kinked_map), T, T / 2 + jnp.array([1.0, 0, 2])),
    "root": (Root(kinked_root), T, T + jnp.array([1.0, -3, 2])),
    "smooth part": (Composite(absolute, prox.box(-5, 5), 0.1), T, T.at[1].set(0)),
}


@pytest.mark.parametrize(("problem", "theta", "kink"), CASES.values(), ids=CASES)
def test_a_jump_within_the_error_of_x_is_seen_and_one_beyond_it_is_not(problem, theta, kink):
    aside = jnp.array([0.5, 1.0, 1.0])
    assert look(problem, kink, theta, 0.0)  # rounding is allowed for
    for distance in (1e-9, 1e-3):
        for sign in (-1, 1):
            x = kink + sign * distance * aside
            assert look(problem, x, theta, distance)
            assert not look(problem, x, theta, distance / 100)
    assert not look(problem, kink + 1e-3 * aside, theta, jnp.inf)  # nothing is known of x


def test_a_norm_has_a_kink_at_zero_alone():
    problem, kink = Objective(group), jnp.array([0.0, 0.0, -0.3])
    assert look(problem, kink, T, 0.0)
    assert not look(problem, kink + 1e-3, T, 1e-5)


def test_a_radius_for_each_coordinate_is_kept_to():
    problem, x = Objective(absolute), jnp.array([1.0, 1e-6, 1e-6])
    assert look(problem, x, T, jnp.array([0.0, 1e-6, 0.0]))
    assert not look(problem, x, T, jnp.array([1e-3, 1e-9, 1e-9]))


def in_units(q, x, t):
    """Kinks where q x = 0."""
    return 0.5 * jnp.sum((q * x - t) ** 2) + jnp.sum(jnp.abs(q * x))


def test_one_radius_is_meant_in_the_units_of_each_coordinate():
    q = jnp.array([1e-6, 1e6, 1.0])
    problem = Objective(Partial(in_units, q))
    x = jnp.array([1.0, 1.0, -0.5]) / q
    assert not look(problem, x, T, 1e-3)  # a billionth of the largest, but not of the smallest
    assert look(problem, x.at[1].set(1e-15), T, 1e-3)


def relu_network(inputs, targets, x, decay):
    W, v = x["W"], x["v"]
    error = jax.nn.relu(inputs @ W) @ v - targets
    return jnp.mean(error**2) + decay * (jnp.sum(W**2) + jnp.sum(v**2))


def huber(X, y, x, t):
    off = jnp.abs(X @ x - y)
    return jnp.mean(jnp.where(off < t, 0.5 * off**2, t * (off - 0.5 * t)))


def by_cases(x, t):
    """Smooth, though its program takes maxima and compares: ties are no kinks."""
    p, top = jax.nn.softmax(x), jnp.maximum(jnp.max(x), 0)
    stabilised = jnp.log(jnp.sum(jnp.exp(x - top))) + top
    widened = jnp.sqrt(0.01 + jnp.sum((x - t) ** 2))
    return jnp.sum(xlogy(p, p)) + logsumexp(x) + stabilised + widened + 0.5 * jnp.sum((x - t) ** 2)


def generic(kind):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 6)).astype(kind), rng.normal(size=40).astype(kind)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), kind)
    X, y = jnp.asarray(X), jnp.asarray(y)
    weights = {"W": draw(6, 5), "v": draw(5)}
    tied, one = jnp.zeros(6, kind), jnp.ones((), kind)
    return {
        "relu network": (Objective(Partial(relu_network, X, y)), weights, 0.1 * one, 1e-6),
        "huber": (Objective(Partial(huber, X, y)), draw(6), one, 1e-6),
        "by cases": (Objective(by_cases), tied, draw(6), 1e-3),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [("relu network", np.float64), ("huber", np.float32)]
    + [("by cases", kind) for kind in (np.float64, np.float32)],
)
def test_no_jump_is_seen_where_there_is_none(name, kind):
    problem, x, theta, largest = generic(kind)[name]
    for radius in (0.0, 1e-9, largest):
        assert not look(problem, x, theta, np.asarray(radius, kind))


def ordered(v, theta, step):
    """The projection on {x₀ <= x₁}."""
    return jnp.where(v[0] > v[1], jnp.mean(v) * jnp.ones(2), v)


def test_the_edge_of_a_half_space_is_a_kink_of_its_projection():
    problem = Composite(apart, ordered, 1.0)
    for t, kink in ((jnp.ones(2), True), (jnp.array([1.0, 1.001]), False)):
        assert look(problem, t, t, 1e-9) == kink
