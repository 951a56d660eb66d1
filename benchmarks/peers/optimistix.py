"""optimistix: a solver, and an implicit adjoint that lineax solves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx

from benchmarks.problems import Case

SOLVERS = {
    "BFGS": optx.BFGS,
    "LBFGS": optx.LBFGS,
    "Newton": optx.Newton,
    "FixedPointIteration": optx.FixedPointIteration,
}
DEFAULT_TOL = 1e-3  # rtol and atol have no defaults; the accuracy that is asked of everyone


def grid(case: Case) -> list[dict[str, str]]:
    if case.kind == "composite":
        return []  # optimistix has no prox
    dense = case.x0.size <= 500
    if case.kind == "fixed point":
        return [{"solver": "FixedPointIteration", "adjoint": "GMRES"}]
    choices = [{"solver": "LBFGS", "adjoint": "CG"}]
    if dense:
        choices += [{"solver": s, "adjoint": "dense"} for s in ("LBFGS", "BFGS", "Newton")]
    return choices


def hypergradient(case: Case, choice: dict[str, str]) -> Callable:
    fixed_point = case.kind == "fixed point"
    name = choice.get("solver", "FixedPointIteration" if fixed_point else "BFGS")

    def gradient(f: Any, outer: Any, x0: Any, theta: Any, tol: Any, adjoint_tol: Any) -> Any:
        adjoint = optx.ImplicitAdjoint()
        if choice.get("adjoint") == "CG":
            adjoint = optx.ImplicitAdjoint(lx.CG(adjoint_tol, adjoint_tol))
        elif choice.get("adjoint") == "GMRES":
            adjoint = optx.ImplicitAdjoint(lx.GMRES(adjoint_tol, adjoint_tol))
        asked = tol if choice else DEFAULT_TOL
        options: dict[str, Any] = {"adjoint": adjoint, "throw": False}
        if choice:
            options["max_steps"] = 20_000
        if choice and not fixed_point:
            options["tags"] = frozenset({lx.positive_semidefinite_tag})

        def value(theta: Any) -> Any:
            solver = SOLVERS[name](rtol=asked, atol=asked)
            if fixed_point:
                x = optx.fixed_point(f, solver, x0, theta, **options).value
            elif name == "Newton":
                x = optx.root_find(jax.grad(f), solver, x0, theta, **options).value
            else:
                x = optx.minimise(f, solver, x0, theta, **options).value
            return jnp.asarray(outer(x, theta))

        return jax.grad(value)(theta)

    return gradient
