"""dargmin: `solve` under `jax.grad`, or `hypergradient`, which comes with its certificate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import dargmin
from benchmarks.problems import Case
from dargmin import prox

METHODS = {
    "LBFGS": dargmin.LBFGS,
    "NewtonCG": dargmin.NewtonCG,
    "ConjugateGradient": dargmin.ConjugateGradient,
    "ProximalGradient": dargmin.ProximalGradient,
    "FixedPointIteration": dargmin.FixedPointIteration,
}


SMOOTH = ("LBFGS", "NewtonCG")


def grid(case: Case) -> list[dict[str, str]]:
    if case.kind == "fixed point":
        choices = [
            {"method": "FixedPointIteration"},
            {"method": "FixedPointIteration", "adjoint": "BiCGStab"},
        ]
    elif case.kind == "composite":
        given = {"step size": "given"}
        return [
            {"call": "hypergradient", **given},
            {"call": "solve", "method": "ProximalGradient", **given},
        ]
    else:
        choices = [{"method": m, **polish} for m in SMOOTH for polish in ({}, {"polish": "yes"})]
        if case.quadratic:
            choices += [{"method": "ConjugateGradient"}]
            choices += [{"method": "NewtonCG", "forcing": eta} for eta in ("1e-5", "1e-6")]
    return [{"call": "hypergradient"}, *({"call": "solve"} | choice for choice in choices)]


def hypergradient(case: Case, choice: dict[str, str]) -> Callable:
    def gradient(f: Any, outer: Any, x0: Any, theta: Any, tol: Any, adjoint_tol: Any) -> Any:
        problem = problem_of(case, f, "step size" in choice)
        if choice.get("call") != "solve":
            rtol = tol if choice else 1e-3
            return dargmin.hypergradient(outer, problem, x0, theta, rtol=rtol, throw=False).gradient
        forcing = {"forcing": float(choice["forcing"])} if "forcing" in choice else {}
        method = METHODS[choice["method"]](**forcing)
        solver = dargmin.linear.BiCGStab() if "adjoint" in choice else None
        mode = dargmin.Implicit(solver, polish="polish" in choice, rtol=adjoint_tol)

        def value(theta: Any) -> Any:
            x = dargmin.solve(
                problem, method, x0, theta, steps=20_000, tol=tol, mode=mode, throw=False
            ).x
            return jnp.asarray(outer(x, theta))

        return jax.grad(value)(theta)

    return gradient


def problem_of(case: Case, f: Any, step_size: bool = False) -> Any:
    """`step_size` gives a composite problem 1/L, as the other libraries are given it."""
    if case.kind == "fixed point":
        return dargmin.FixedPoint(f)
    if case.kind == "smooth":
        return dargmin.Objective(f)
    first, second = (lambda t: jnp.exp(t[0])), (lambda t: jnp.exp(t[1]))
    penalty = prox.l1(first) if case.penalty == "l1" else prox.elastic_net(first, second)
    return dargmin.Composite(f, penalty, 1 / case.L if step_size else None)


def report(case: Case) -> Callable:
    """What `hypergradient` says of itself, as it comes: (estimated error, ok, cost)."""

    def run(f: Any, outer: Any, x0: Any, theta: Any) -> Any:
        h = dargmin.hypergradient(outer, problem_of(case, f), x0, theta, throw=False)
        return h.certificate.error, h.ok, h.cost

    return run
