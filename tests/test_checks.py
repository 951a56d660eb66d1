"""Arguments that do not fit: a ValueError that names them, in every public function alike."""

import jax.numpy as jnp
import pytest

import dargmin
from dargmin import certify, hypergradient, sensitivity

THETA, X0 = jnp.asarray([1.0, 2.0]), jnp.zeros(2)
ARRAY = dargmin.Objective(lambda x, theta: jnp.sum((x - theta) ** 2))
DICT = dargmin.Objective(lambda x, theta: jnp.sum((x["w"] - theta) ** 2))
LASSO = dargmin.Composite(lambda x, theta: jnp.sum((x - theta) ** 2), dargmin.prox.l1(0.1))
MAP = dargmin.FixedPoint(lambda x, theta: 0.5 * x + theta)
STEP = dargmin.GradientDescent(0.1)


def outer(x, theta):
    return jnp.sum(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hypergradient(lambda x, t: x, ARRAY, X0, THETA), r"outer must return one real"),
        (lambda: hypergradient(lambda x, t: None, ARRAY, X0, THETA), r"it returned None"),
        (lambda: hypergradient(lambda x, t: jnp.sum(x > 0), ARRAY, X0, THETA), r"int64\[\]"),
        (lambda: hypergradient(lambda x, t: x["w"], ARRAY, X0, THETA), r"outer cannot take x"),
        (
            lambda: hypergradient(
                outer, ARRAY, X0, THETA, warm_start=dargmin.WarmStart.zeros(jnp.zeros(3))
            ),
            r"warm_start does not fit x0",
        ),
        (lambda: hypergradient(outer, DICT, X0, THETA), r"cannot take x0 .* float64\[2\]"),
        (lambda: sensitivity(ARRAY, {"w": X0}, THETA, THETA), r"cannot take x0 .*\['w'\]"),
        (lambda: sensitivity(LASSO, {"w": X0}, THETA, THETA), r"Composite cannot take x0"),
        (lambda: sensitivity(MAP, jnp.zeros(3), THETA, THETA), r"FixedPoint cannot take x0"),
        (lambda: dargmin.solve(ARRAY, STEP, {"w": X0}, THETA, steps=2), r"cannot take x0"),
        (lambda: dargmin.attach(ARRAY, {"w": X0}, THETA), r"cannot take x and theta"),
        (lambda: dargmin.plan(ARRAY, {"w": X0}, THETA, steps=2), r"cannot take x0"),
        (lambda: certify(ARRAY, X0, THETA, outer=lambda x, t: x, gradient=THETA), r"outer must"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_errors_that_have_another_cause_stay_what_they_are():
    def broken(x, theta):
        return jnp.sum(x) if x[0] > 0 else 0.0

    with pytest.raises(TypeError, match="boolean"):
        hypergradient(broken, ARRAY, X0, THETA)
    with pytest.raises(TypeError, match="missing"):
        hypergradient(outer, ARRAY)


def test_a_certificate_raises_where_that_is_asked_for():
    wrong = dict(outer=outer, gradient=jnp.zeros(2), rtol=1e-3)
    assert not certify(ARRAY, THETA, THETA, **wrong).ok
    with pytest.raises(dargmin.DargminError, match="accuracy") as caught:
        certify(ARRAY, THETA, THETA, **wrong, throw=True)
    assert float(caught.value.result.error) == pytest.approx(1)
    assert certify(ARRAY, THETA, THETA, outer=outer, gradient=jnp.ones(2), throw=True).ok
