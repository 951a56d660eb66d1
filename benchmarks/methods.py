"""Burn-in and speed of unrolled derivatives, method by method: writes methods.md and methods.csv.

    python benchmarks/methods.py [--out DIR] [--quick]

The problems are those of methods_cases.py, the tables those of methods_report.py. Quadratics run
exactly, by the residual polynomials in the eigenbasis; logistic regressions through
dargmin.loop.trace, against an accurate Jacobian."""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from methods_cases import (
    BEYOND,
    CONDITIONS,
    DIRECTIONS,
    TARGETS,
    LogisticCase,
    Quadratic,
    logistic,
    quadratics,
)
from methods_report import LIMIT, WARM, Row, report

from dargmin import Chebyshev, GradientDescent, HeavyBall, Nesterov, Objective, Sobolev
from dargmin import polynomials as poly
from dargmin.loop import trace
from dargmin.methods import AbstractMethod
from dargmin.theory import hindsight_error

jax.config.update("jax_enable_x64", True)

PENALTIES = (-3.0, -5.0, -7.0)
PILOTS = (3, 10, 30, 100)


class Contender(NamedTuple):
    """A method, and (steps) -> its residual polynomials, which come from other code."""

    method: AbstractMethod
    family: Callable[[int], Any]


def contenders(mu: float, L: float, eta: float) -> dict[str, Contender]:
    """The methods, tuned to a spectrum; `eta` is the true ‖c‖² / ‖a‖²."""
    found = {}
    for name, weight in (("μL", mu * L), ("true", eta)):
        for alpha in (0.0, 0.25, 0.5, 1.0):
            found[f"Sobolev(α={alpha:g}, η={name})"] = Contender(
                Sobolev(mu, L, alpha, weight), partial(poly.sobolev, mu, L, alpha, weight)
            )
    h, root = (2 / (L**0.5 + mu**0.5)) ** 2, (mu / L) ** 0.5
    beta = (1 - root) / (1 + root)
    return found | {
        "Chebyshev": Contender(Chebyshev(mu, L), partial(poly.chebyshev, mu, L)),
        "heavy ball, plain": Contender(
            HeavyBall.tuned(mu, L, start="plain"),
            lambda steps: poly.heavy_ball(h, beta**2, steps, start="plain"),
        ),
        "heavy ball, corrected": Contender(
            HeavyBall.tuned(mu, L), lambda steps: poly.heavy_ball(h, beta**2, steps)
        ),
        "Nesterov": Contender(Nesterov.tuned(mu, L), partial(poly.nesterov, 1 / L, beta)),
        "gradient descent, 1/L": Contender(
            GradientDescent(1 / L), partial(poly.gradient_descent, 1 / L)
        ),
        "gradient descent, 2/(L+μ)": Contender(
            GradientDescent(2 / (L + mu)), partial(poly.gradient_descent, 2 / (L + mu))
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="the well-conditioned problems only")
    arguments = parser.parse_args()
    conditions, penalties = (CONDITIONS[:1], PENALTIES[:1]) if arguments.quick else (
        CONDITIONS, PENALTIES,
    )  # fmt: skip
    begin = time.perf_counter()
    rows, pilots = [], []
    for families in quadratics(TARGETS | BEYOND, conditions):
        rows += quadratic_rows(families)
        pilots += [row for q in families if q.target in TARGETS for row in pilot_rows(q)]
    for case in logistic(penalties):
        rows += logistic_rows(case)
        pilots += warm_rows(case)
    command = "python benchmarks/methods.py" + (" --quick" if arguments.quick else "")
    report(arguments.out, command, rows, pilots, agreement())
    print(f"{len(rows)} runs in {time.perf_counter() - begin:.0f} s")


def measure(times: np.ndarray, errors: np.ndarray) -> Row:
    """The peak, and when the error falls below 1e-1 and 1e-3 for good; NaN if it does not."""
    relative = errors / errors[0]

    def below(level: float) -> float:
        above = np.flatnonzero(~(relative <= level))
        last = above[-1] if above.size else -1
        return float(times[last + 1]) if last + 1 < times.size else float("nan")

    return {"peak": float(np.max(relative)), "to 1e-1": below(1e-1), "to 1e-3": below(1e-3)}


# ---- quadratics ----------------------------------------------------------------------------------


def quadratic_rows(families: list[Quadratic]) -> Iterator[Row]:
    """All families of one spectrum: the polynomials that do not depend on η are shared."""
    lam = families[0].lam
    shared: dict[str, Any] = {}
    for q in families:
        group = "quadratic" if q.target in TARGETS else "beyond"
        about = {"problem": group, "data": q.spectrum, "κ": q.kappa, "target": q.target}
        for name, contender in contenders(lam[0], lam[-1], q.eta).items():
            if "true" in name:
                times, P, dP = values(name, contender, lam)
            else:
                if name not in shared:
                    shared[name] = values(name, contender, lam)
                times, P, dP = shared[name]
            errors = np.linalg.norm(P * q.a + dP * q.c, axis=1)
            yield about | {"method": name} | measure(times, errors)
        least = hindsight_error(lam, q.a, q.c, 2 * lam.size)
        yield about | {"method": LIMIT} | measure(np.arange(least.size), least)


def values(name: str, contender: Contender, lam: np.ndarray) -> tuple[np.ndarray, ...]:
    """t, P_t(λ) and P_t'(λ), long enough for every error to fall to 1e-3.

    Gradient descent takes up to 30/κ steps: P_t = P_1^t, at times 1 % apart."""
    kappa = lam[0] / lam[-1]
    descent = name.startswith("gradient descent")
    steps = 1 if descent else int(25 / np.sqrt(kappa))
    P, dP = map(np.asarray, poly.evaluate(contender.family(steps), lam))
    if not descent:
        return np.arange(steps + 1), P, dP
    times = np.unique(np.r_[0:200, np.geomspace(200, 30 / kappa, 1200).astype(int)])
    t = times[:, None]
    return times, P[1] ** t, t * dP[1] * P[1] ** np.maximum(t - 1, 0)


def pilot_rows(q: Quadratic) -> Iterator[Row]:
    """η̂ / η with v = dx_n of a short unrolled run of the default method, dx_0 = 0."""
    P, dP = poly.evaluate(poly.sobolev(q.lam[0], q.lam[-1], 0.5, q.lam[0] * q.lam[-1], 100), q.lam)
    for n in PILOTS:
        error = np.asarray(P[n] * q.a + dP[n] * q.c)  # v - dx*
        A, C = np.linalg.norm(error - q.a), np.linalg.norm(q.lam * error + q.c)
        eta = np.clip((C / A) ** 2, q.lam[0] ** 2, q.lam[-1] ** 2)
        yield {"v": f"dx_n of the default, n = {n}", "ratio": float(eta / q.eta)}


def agreement() -> float:
    """The largest difference between the two ways, over all methods on one family.

    ½ Σ (λ + θ) x² - Λ²a·x from 0 has x* = Λa, dx* = -a and c = -Λa."""
    q = next(quadratics({"c = -Λa": TARGETS["c = -Λa"]}, CONDITIONS))[0]
    lam, b = jnp.asarray(q.lam), jnp.asarray(q.lam**2 * q.a)
    problem = Objective(lambda x, theta: jnp.sum((lam + theta) * x**2 / 2 - b * x), quadratic=True)
    worst = 0.0
    for contender in contenders(q.lam[0], q.lam[-1], q.eta).values():
        _, dxs = trace(problem, contender.method, jnp.zeros_like(lam), 0.0, 1.0, steps=150)
        P, dP = poly.evaluate(contender.family(150), q.lam)
        difference = dxs + q.a - (P * q.a + dP * q.c)  # dx* = -a
        worst = max(worst, float(np.max(np.linalg.norm(difference, axis=1))))
    return worst / float(np.linalg.norm(q.a))


# ---- logistic regression -------------------------------------------------------------------------


def logistic_rows(case: LogisticCase) -> Iterator[Row]:
    mu, L = case.spectrum
    about = {"problem": "logistic", "κ": mu / L, "start": case.start}
    for k, direction in enumerate(DIRECTIONS):
        tangent, exact = jax.tree.map(lambda u, k=k: u[k], (case.tangents, case.derivatives))
        for name, contender in contenders(mu, L, weight(case, tangent, exact)).items():
            descent = name.startswith("gradient descent")
            steps = int(20 * L / mu if descent else 40 * np.sqrt(L / mu))
            errors = np.asarray(errors_along(case, contender.method, tangent, exact, steps))
            found = measure(np.arange(steps + 1), errors)
            yield about | {"data": direction, "method": name} | found


@eqx.filter_jit
def errors_along(
    case: LogisticCase, method: AbstractMethod, tangent: Any, exact: Any, steps: int
) -> Any:
    """‖dx_t - dx*‖ for t = 0..steps."""
    _, dxs = trace(case.problem, method, case.x0, case.theta, tangent, steps=steps)
    return jnp.linalg.norm(dxs - exact, axis=1)


def weight(case: LogisticCase, tangent: Any, derivative: Any) -> float:
    """η from a known derivative."""
    method = Sobolev.from_derivative(
        case.problem, case.x0, case.theta, tangent, derivative, *case.spectrum
    )
    return float(method.recurrence.eta)


def warm_rows(case: LogisticCase) -> Iterator[Row]:
    """η̂ / η with the derivative at another θ, as a previous outer step would leave it."""
    for k in range(len(DIRECTIONS)):
        tangent, exact, nearby = jax.tree.map(
            lambda u, k=k: u[k], (case.tangents, case.derivatives, case.nearby)
        )
        ratio = weight(case, tangent, nearby) / weight(case, tangent, exact)
        yield {"v": WARM, "ratio": ratio}


if __name__ == "__main__":
    main()
