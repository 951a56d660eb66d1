"""Plain JAX: what one writes in an afternoon, by `jax.numpy`, `jax.lax` and `jax.scipy` alone.

As it comes it is a hundred steps of gradient descent, unrolled. Tuned, it is written by someone who
knows what fits: conjugate gradients or one dense solve for a quadratic, Newton's method, and the
implicit function theorem by hand."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import bicgstab, cg

from benchmarks.problems import Case

MOST = 20_000


def grid(case: Case) -> list[dict[str, str]]:
    if case.kind == "composite":
        return [{"solver": "FISTA", "adjoint": "CG on the support"}]
    if case.kind == "fixed point":
        return [{"solver": "iteration", "adjoint": "BiCGSTAB"}]
    choices = [{"solver": "Nesterov", "adjoint": "CG"}, {"solver": "Newton-CG", "adjoint": "CG"}]
    if case.quadratic:
        choices.append({"solver": "CG", "adjoint": "CG"})
    if case.x0.size <= 500:
        choices.append({"solver": "Newton", "adjoint": "dense"})
    return choices


def hypergradient(case: Case, choice: dict[str, str]) -> Callable:
    if not choice:
        return lambda f, outer, x0, theta, *_: jax.grad(_unrolled(case, f, outer, x0))(theta)

    def gradient(f: Any, outer: Any, x0: Any, theta: Any, tol: Any, adjoint_tol: Any) -> Any:
        F = _residual(case, f)
        x = SOLVERS[choice["solver"]](case, f, F, x0, theta, tol)
        cotangent, direct = jax.grad(lambda x, t: outer(x, t), (0, 1))(x, theta)
        _, product = jax.linearize(lambda x: F(x, theta), x)
        how = choice["adjoint"]
        if how == "dense":
            adjoint = jnp.linalg.solve(jax.hessian(f)(x, theta), cotangent)
        elif how == "CG on the support":
            support = x != 0
            _, product = jax.linearize(jax.grad(lambda x: _smooth(case, f)(x, theta)), x)
            reduced = lambda v: jnp.where(support, product(jnp.where(support, v, 0)), v)
            masked = jnp.where(support, cotangent, 0)
            adjoint = cg(reduced, masked, tol=adjoint_tol, maxiter=MOST)[0]
        elif how == "BiCGSTAB":
            transposed = jax.linear_transpose(product, x)
            back = lambda v: transposed(v)[0]
            adjoint = bicgstab(back, cotangent, tol=adjoint_tol, maxiter=MOST)[0]
        else:
            adjoint = cg(product, cotangent, tol=adjoint_tol, maxiter=MOST)[0]
        _, pullback = jax.vjp(lambda t: F(x, t), theta)
        return direct - pullback(adjoint)[0]

    return gradient


def _smooth(case: Case, f: Any) -> Callable:
    """f with the differentiable part of the penalty."""
    if case.penalty == "elastic net":
        return lambda x, t: f(x, t) + 0.5 * jnp.exp(t[1]) * jnp.vdot(x, x)
    return f


def _residual(case: Case, f: Any) -> Callable:
    """F(x, θ), zero at the solution; off the support of a sparse one it does not matter."""
    if case.kind == "fixed point":
        return lambda x, t: x - f(x, t)
    gradient = jax.grad(_smooth(case, f))
    if case.kind == "composite":
        return lambda x, t: gradient(x, t) + jnp.exp(t[0]) * jnp.sign(x)
    return gradient


def _loop(step: Callable, start: Any, tol: Any) -> Any:
    """state, size = step(state) until size <= tol."""

    def body(carry: Any) -> Any:
        state, _, count = carry
        state, size = step(state)
        return state, size, count + 1

    unfinished = lambda carry: (carry[1] > tol) & (carry[2] < MOST)
    return jax.lax.while_loop(unfinished, body, (start, jnp.asarray(jnp.inf), 0))[0]


def _nesterov(case: Case, f: Any, F: Any, x0: Any, theta: Any, tol: Any) -> Any:
    root = case.condition**0.5
    momentum = (root - 1) / (root + 1)

    def step(state: Any) -> Any:
        x, y = state
        g = F(y, theta)
        following = y - g / case.L
        return (following, following + momentum * (following - x)), jnp.linalg.norm(g)

    return _loop(step, (x0, x0), tol)[0]


def _fista(case: Case, f: Any, F: Any, x0: Any, theta: Any, tol: Any) -> Any:
    h, gradient = 1 / case.L, jax.grad(f)
    l1 = jnp.exp(theta[0])
    shrink = 1 / (1 + h * jnp.exp(theta[1])) if case.penalty == "elastic net" else 1.0

    def step(state: Any) -> Any:
        x, y, s = state
        v = y - h * gradient(y, theta)
        z = shrink * jnp.sign(v) * jnp.maximum(jnp.abs(v) - h * l1, 0)
        restart = jnp.vdot(y - z, z - x) > 0
        following = jnp.where(restart, 1.0, (1 + jnp.sqrt(1 + 4 * s**2)) / 2)
        beta = jnp.where(restart, 0.0, (s - 1) / following)
        return (z, z + beta * (z - x), following), jnp.linalg.norm(y - z) / h

    return _loop(step, (x0, x0, jnp.asarray(1.0)), tol)[0]


def _newton_with(solve: Callable) -> Callable:
    """Newton's method, with half the step as long as f does not fall."""

    def run(case: Case, f: Any, F: Any, x0: Any, theta: Any, tol: Any) -> Any:
        def step(x: Any) -> Any:
            g = F(x, theta)
            d = solve(f, F, x, theta, g)
            value = f(x, theta)
            rises = lambda a: (f(x - a * d, theta) > value) & (a > 1e-6)
            a = jax.lax.while_loop(rises, lambda a: a / 2, jnp.asarray(1.0))
            following = x - a * d
            return following, jnp.linalg.norm(F(following, theta))

        return _loop(step, x0, tol)

    return run


def _dense(f: Any, F: Any, x: Any, theta: Any, g: Any) -> Any:
    return jnp.linalg.solve(jax.hessian(f)(x, theta), g)


def _inexact(f: Any, F: Any, x: Any, theta: Any, g: Any) -> Any:
    _, product = jax.linearize(lambda x: F(x, theta), x)
    return cg(product, g, tol=0.1, maxiter=500)[0]


def _cg(case: Case, f: Any, F: Any, x0: Any, theta: Any, tol: Any) -> Any:
    b, product = jax.linearize(lambda x: F(x, theta), x0)
    return x0 - cg(product, b, tol=0.0, atol=tol, maxiter=MOST)[0]


def _iterate(case: Case, f: Any, F: Any, x0: Any, theta: Any, tol: Any) -> Any:
    def step(x: Any) -> Any:
        following = f(x, theta)
        return following, jnp.linalg.norm(following - x)

    return _loop(step, x0, tol)


SOLVERS = {
    "Nesterov": _nesterov,
    "FISTA": _fista,
    "Newton": _newton_with(_dense),
    "Newton-CG": _newton_with(_inexact),
    "CG": _cg,
    "iteration": _iterate,
}


def _unrolled(case: Case, f: Any, outer: Any, x0: Any) -> Callable:
    """A hundred plain steps, differentiated through."""

    def value(theta: Any) -> Any:
        def step(x: Any, _: None) -> tuple[Any, None]:
            if case.kind == "fixed point":
                return f(x, theta), None
            v = x - jax.grad(f)(x, theta) / case.L
            if case.kind == "composite":
                v = jnp.sign(v) * jnp.maximum(jnp.abs(v) - jnp.exp(theta[0]) / case.L, 0)
                if case.penalty == "elastic net":
                    v = v / (1 + jnp.exp(theta[1]) / case.L)
            return v, None

        return outer(jax.lax.scan(step, x0, None, length=100)[0], theta)

    return value
