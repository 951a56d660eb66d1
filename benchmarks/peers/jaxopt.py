"""jaxopt: a solver each, implicit differentiation inside."""

from collections.abc import Callable
from typing import Any

import jax
import jaxopt
from jaxopt import linear_solve

from benchmarks.problems import Case

ADJOINTS = {
    "CG": linear_solve.solve_cg,
    "normal CG": linear_solve.solve_normal_cg,
    "Cholesky": linear_solve.solve_cholesky,
    "BiCGSTAB": linear_solve.solve_bicgstab,
    "GMRES": linear_solve.solve_gmres,
}
PROX = {"l1": jaxopt.prox.prox_lasso, "elastic net": jaxopt.prox.prox_elastic_net}


def grid(case: Case) -> list[dict[str, str]]:
    if case.kind == "smooth":
        adjoints = ["CG", "Cholesky"] if case.x0.size <= 500 else ["CG"]
        solvers = ["LBFGS"]
    elif case.kind == "composite":
        adjoints, solvers = ["BiCGSTAB", "normal CG"], ["ProximalGradient"]
    else:
        adjoints, solvers = ["BiCGSTAB", "GMRES"], ["FixedPointIteration", "AndersonAcceleration"]
    return [{"solver": s, "adjoint": a} for s in solvers for a in adjoints]


def hypergradient(case: Case, choice: dict[str, str]) -> Callable:
    def gradient(f: Any, outer: Any, x0: Any, theta: Any, tol: Any, adjoint_tol: Any) -> Any:
        def value(theta: Any) -> Any:
            solver, start, parameters = make(f, x0, theta, tol, adjoint_tol)
            x = solver.run(start, **parameters).params
            return outer(x, theta)

        return jax.grad(value)(theta)

    def make(f: Any, x0: Any, theta: Any, tol: Any, adjoint_tol: Any) -> tuple[Any, Any, Any]:
        tuned: dict[str, Any] = {}
        if choice:
            adjoint = ADJOINTS[choice["adjoint"]]
            keywords = {} if choice["adjoint"] == "Cholesky" else {"tol": adjoint_tol}
            solve = lambda matvec, b, **_: adjoint(matvec, b, **keywords)
            tuned = {"tol": tol, "maxiter": 20_000, "implicit_diff_solve": solve}
        if case.kind == "smooth":
            return getattr(jaxopt, choice.get("solver", "LBFGS"))(f, **tuned), x0, {"theta": theta}
        if case.kind == "composite":
            step = {"stepsize": 1 / case.L} if choice else {}
            solver = jaxopt.ProximalGradient(
                lambda w, t: f(w, t), PROX[case.penalty], **tuned, **step
            )
            return solver, x0, {"hyperparams_prox": _penalty(case, theta), "t": theta}
        solver = getattr(jaxopt, choice.get("solver", "FixedPointIteration"))
        return solver(f, **tuned), x0, {"theta": theta}

    return gradient


def _penalty(case: Case, theta: Any) -> Any:
    """jaxopt's elastic net is λ₁ (‖x‖₁ + γ ½‖x‖²)."""
    weights = jax.numpy.exp(theta)
    return weights[0] if case.penalty == "l1" else (weights[0], weights[1] / weights[0])
