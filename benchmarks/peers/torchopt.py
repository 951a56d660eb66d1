"""torchopt: gradient descent with momentum inside a differentiable layer, CG for the adjoint.

Smooth problems only: it has no prox, and its implicit gradients take the optimality condition of a
minimum. Needs benchmarks/requirements-torch.txt; the data are handed over as NumPy arrays."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchopt

from benchmarks.measure import Program
from benchmarks.problems import Case

torch.set_num_threads(1)
MOST = 20_000


def grid(case: Case) -> list[dict[str, str]]:
    if case.kind != "smooth" or type(case.f).__name__ not in OBJECTIVES:
        return []
    adjoints = ["cg", *(["inv"] if case.x0.size <= 1000 else [])]
    return [{"solver": "Nesterov", "adjoint": adjoint} for adjoint in adjoints]


def hypergradient(case: Case, choice: dict[str, str]) -> Callable:
    """(tol, adjoint_tol) -> gradient; the data are bound when it is made."""
    outer = _objective(case.outer)
    layer = functools.cache(functools.partial(_layer, case, choice))

    def gradient(tol: float, adjoint_tol: float) -> np.ndarray:
        theta = torch.tensor(np.asarray(case.theta), requires_grad=True)
        inner = layer(adjoint_tol)(theta, tol).solve()
        (found,) = torch.autograd.grad(outer(inner.x, theta), theta)
        return found.numpy()

    return gradient


def _layer(case: Case, choice: dict[str, str], adjoint_tol: float) -> Any:
    """A layer whose output is the minimiser: tuned, or 100 steps with momentum 0.9 and the default
    adjoint."""
    f, root = _objective(case.f), case.condition**0.5
    momentum = (root - 1) / (root + 1) if choice else 0.9
    solve = {
        "cg": torchopt.linear_solve.solve_cg(rtol=adjoint_tol, maxiter=MOST),
        "inv": torchopt.linear_solve.solve_inv(),
    }.get(choice.get("adjoint", ""))

    class Inner(torchopt.nn.ImplicitMetaGradientModule, linear_solve=solve):
        def __init__(self, theta: Any, tol: float):
            super().__init__()
            self.theta, self.tol = theta, tol
            self.x = torch.nn.Parameter(torch.zeros(case.x0.size, dtype=torch.float64))

        def objective(self) -> Any:
            return f(self.x, self.theta)

        def solve(self) -> Any:
            optimizer = torch.optim.SGD(
                [self.x], lr=1 / case.L, momentum=momentum, nesterov=momentum > 0
            )
            with torch.enable_grad():
                for _ in range(MOST if choice else 100):
                    (self.x.grad,) = torch.autograd.grad(self.objective(), (self.x,))
                    if choice and float(self.x.grad.norm()) <= self.tol:
                        break
                    optimizer.step()
            return self

    return Inner


def compile_program(function: Callable, case: Case) -> Program:
    """Nothing to compile: the first run is what the first call costs."""
    begin = time.process_time()
    function(1.0, 1.0)
    return Program(
        lambda tol, adjoint_tol: lambda: function(tol, adjoint_tol),
        time.process_time() - begin,
        float("nan"),
    )


def _ridge(X: Any, y: Any, group: Any) -> Callable:
    group = group.long()
    return lambda w, t: 0.5 * (((X @ w - y) ** 2).mean() + (t.exp()[group] * w**2).sum())


def _logistic(X: Any, y: Any) -> Callable:
    loss = torch.nn.functional.softplus
    return lambda w, t: loss(-y * (X @ w)).mean() + 0.5 * (t.exp() * w**2).sum()


def _softmax(X: Any, labels: Any, penalty: Any) -> Callable:
    def f(w: Any, t: Any) -> Any:
        scores = X @ w.reshape(X.shape[1], -1)
        losses = scores.logsumexp(1) - (labels * scores).sum(1)
        return (t.sigmoid() * losses).mean() + 0.5 * penalty * (w @ w)

    return f


def _squares(X: Any, y: Any) -> Callable:
    return lambda w, t: 0.5 * ((X @ w - y) ** 2).mean()


def _validation(X: Any, y: Any) -> Callable:
    return lambda w, t: torch.nn.functional.softplus(-y * (X @ w)).mean()


def _softmax_validation(X: Any, labels: Any) -> Callable:
    def f(w: Any, t: Any) -> Any:
        scores = X @ w.reshape(X.shape[1], -1)
        return (scores.logsumexp(1) - (labels * scores).sum(1)).mean()

    return f


OBJECTIVES = {
    "Ridge": _ridge,
    "Logistic": _logistic,
    "Softmax": _softmax,
    "LeastSquares": _squares,
    "_Validation": _validation,
    "_SoftmaxValidation": _softmax_validation,
}


def _objective(f: Any) -> Callable:
    """The same function in torch, on the same data."""
    arrays = [torch.tensor(np.asarray(value)) for value in vars(f).values()]
    return OBJECTIVES[type(f).__name__](*arrays)
