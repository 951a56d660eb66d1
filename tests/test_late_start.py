"""The automatic late start: where it begins, and what that gains."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
from scenarios import LOGISTIC

import dargmin
from dargmin import LateStart, Nesterov

STEPS = 300


def least_squares(x, theta, data):
    A, b = data
    return 0.5 * jnp.sum((A @ x - b) ** 2) + 0.5 * theta * jnp.sum(x**2)


def ridges(d):
    """20 random ridge problems, with conditions up to 200, from a random start."""
    rng = np.random.default_rng(d)
    A, b = rng.normal(size=(20, d, d)), rng.normal(size=(20, d))
    largest = np.linalg.norm(A, 2, axis=(1, 2)) ** 2
    return A, b, largest / rng.uniform(30, 200, 20), rng.normal(size=(20, d))


@jax.jit
@jax.vmap
def automatic(A, b, theta, x0, step_size):
    problem = dargmin.Objective(jax.tree_util.Partial(least_squares, data=(A, b)))
    method, mode = dargmin.GradientDescent(step_size), LateStart(start="auto")

    def last_iterate(theta):
        solution = dargmin.solve(problem, method, x0, theta, steps=STEPS, mode=mode, throw=False)
        return solution.x, solution.start

    dx, start = jax.jacfwd(last_iterate, has_aux=True)(theta)
    return dx, start, jax.grad(lambda theta: last_iterate(theta)[0] @ dx)(theta)


def late_starts(A, b, theta, x0, step_size):
    """‖dx_t - dx*‖ / ‖dx*‖ for t = K..T and every start K, by the recursion itself."""
    d = x0.size
    H = A.T @ A + theta * np.eye(d)
    solution = np.linalg.solve(H, A.T @ b)
    truth = -np.linalg.solve(H, solution)
    xs = [x0]
    for _ in range(STEPS):
        xs.append(xs[-1] - step_size * (H @ xs[-1] - A.T @ b))
    dx, traces = np.zeros((STEPS, d)), np.full((STEPS, STEPS + 1), np.nan)
    for t in range(STEPS):
        traces[t, t] = 1
        dx[: t + 1] -= step_size * (dx[: t + 1] @ H + xs[t])
        norms = np.linalg.norm(dx[: t + 1] - truth, axis=1) / np.linalg.norm(truth)
        traces[: t + 1, t + 1] = norms
    return traces


def test_an_automatic_late_start_has_no_burn_in_and_is_nearly_the_best():
    peaks, errors, best, never = [], [], [], []
    for d in (2, 5, 10):
        problems = ridges(d)
        A, _, theta, _ = problems
        values = np.linalg.svd(A, compute_uv=False) ** 2
        step_size = 2 / (values[:, 0] + values[:, -1] + 2 * theta)
        dx, starts, product = automatic(*map(jnp.asarray, (*problems, step_size)))
        assert_allclose(product, np.sum(np.square(dx), axis=1), rtol=1e-9)  # jvp = vjp
        for k, start in enumerate(np.asarray(starts)):
            traces = late_starts(*(part[k] for part in problems), step_size[k])
            peaks.append(np.nanmax(traces[start]))
            errors.append(traces[start, -1])
            best.append(np.min(traces[:, -1]))
            never.append(np.max(traces[0]))
    assert np.max(never) > 10  # without a late start, there is a burn-in
    assert np.max(peaks) <= 1 + 1e-9
    assert np.median(np.divide(errors, best)) <= 1.15


def test_an_automatic_late_start_works_in_every_transformation_and_under_a_tolerance():
    def last_iterate(theta, **arguments):
        mode = LateStart(start="auto", checkpoint="sqrt")
        method = Nesterov(0.4, 0.5)
        return dargmin.solve(
            LOGISTIC.problem, method, LOGISTIC.x0, theta, steps=60, mode=mode, **arguments
        )

    solution = last_iterate(LOGISTIC.theta, tol=1e-4)
    assert 0 <= solution.start < solution.steps < 60
    x = lambda theta: last_iterate(theta, tol=1e-4).x
    fixed = LateStart(start=int(solution.start))
    same = lambda theta: (
        dargmin.solve(
            LOGISTIC.problem, Nesterov(0.4, 0.5), LOGISTIC.x0, theta, steps=60, tol=1e-4, mode=fixed
        ).x
    )
    assert_allclose(x(LOGISTIC.theta), same(LOGISTIC.theta), rtol=1e-12)
    jacobian = jax.jacfwd(same)(LOGISTIC.theta)
    assert_allclose(jax.jacfwd(x)(LOGISTIC.theta), jacobian, rtol=1e-9, atol=1e-12)
    assert_allclose(jax.jacrev(x)(LOGISTIC.theta), jacobian, rtol=1e-9, atol=1e-12)
