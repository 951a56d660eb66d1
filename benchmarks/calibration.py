"""How far the error estimates are from the true errors: writes calibration.md, .csv and _worst.csv.

    python benchmarks/calibration.py [--out DIR] [--quick] [--only promise | curse]

Two questions. What does `certify` say of derivatives that come from elsewhere: unrolled, or
implicit at a point that has not converged? And do `hypergradient` and `sensitivity` keep their
promise, on derivatives of their own? They are asked twice: on the many kinds of problems of
calibration_families.py, by calibration_promise.py; and along the iterations of quadratic and linear
models, where the curse is (calibration_cases.py)."""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from calibration_cases import Case, Outer, cases
from calibration_promise import promise_rows
from calibration_report import report

import dargmin
from dargmin.loop import trace
from dargmin.status import describe

jax.config.update("jax_enable_x64", True)

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases, to try it out")
    parser.add_argument("--only", choices=("promise", "curse"), help="one half of it")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    certified: list[Row] = []
    own: list[Row] = []
    rng = np.random.default_rng(0)
    promise: tuple[list[Row], list[Row]] = [], []
    if arguments.only != "curse":
        promise = promise_rows(arguments.quick, progress)
    for dtype in (np.float64, np.float32) if arguments.only != "promise" else ():
        for case in progress(list(cases(dtype, arguments.quick)), np.dtype(dtype).name):
            certified += certify_rows(case, rng)
            own += own_rows(case, rng)
    command = "python benchmarks/calibration.py" + (" --quick" if arguments.quick else "")
    command += f" --only {arguments.only}" if arguments.only else ""
    report(arguments.out, command, certified, own, *promise)
    counts = [len(certified) + len(promise[0]), len(own) + len(promise[1])]
    print(f"{counts[0]} + {counts[1]} estimates in {time.perf_counter() - begin:.0f} s")


def progress(items: list[Any], name: str) -> Iterator[Any]:
    for i, item in enumerate(items):
        what = getattr(item, "family", None) or item.name
        print(f"\r{name}: {i + 1}/{len(items)} {what:<30}", end="", file=sys.stderr, flush=True)
        yield item
    print(file=sys.stderr)


# ---- derivatives from elsewhere ------------------------------------------------------------------


@eqx.filter_jit
def unrolled(problem: Any, method: Any, x0: Any, theta: Any, steps: int) -> Any:
    """x_t and ∂x_t/∂θ for t = 0..steps, stacked."""
    along = partial(trace, problem, method.prepare(problem, x0, theta), x0, theta, steps=steps)
    return jax.vmap(along, out_axes=(None, -1))(jnp.eye(theta.size, dtype=theta.dtype))


@eqx.filter_jit
def jacobians(problem: Any, x: Any, theta: Any) -> Any:
    """∂ₓF and ∂_θF, dense."""
    return jax.jacfwd(problem.residual, (0, 1))(x, theta)


def certify_rows(case: Case, rng: np.random.Generator) -> Iterator[Row]:
    for name, method in case.methods.items():
        xs, dxs = map(np.asarray, unrolled(case.problem, method, case.x0, case.theta, case.steps))
        for point, t in points(case, xs, dxs):
            claims = {"unrolled": dxs[t]}
            if case.x0.size < 1000:
                in_x, in_theta = jacobians(case.problem, xs[t], case.theta)
                claims["implicit"] = -np.linalg.solve(in_x, in_theta)
            for (kind, claim), form in itertools.product(claims.items(), FORMS):
                true, certificate = FORMS[form](case, xs[t], claim, rng)
                yield describe_case(case, method=name, point=point, claim=kind, form=form) | dict(
                    true=true,
                    estimate=float(certificate.error),
                    status=describe(certificate.status)[:40],
                )


def points(case: Case, xs: np.ndarray, dxs: np.ndarray) -> Iterator[tuple[str, int]]:
    """Where the derivative is worst, where the iterate is half there, and the last iterate."""
    far = np.linalg.norm(xs - case.solution, axis=1)
    wrong = np.linalg.norm(dxs - case.jacobian, axis=(1, 2))
    usable = np.flatnonzero(np.isfinite(far) & np.isfinite(wrong) & (far <= 10 * far[0]))[1:]
    if not usable.size:
        return
    yield "burnt in", int(usable[np.argmax(wrong[usable])])
    halfway = np.sqrt(far[0] * max(np.min(far[usable]), 1e-12 * far[0]))
    yield "half converged", int(usable[np.argmin(np.abs(np.log(far[usable] / halfway + 1e-300)))])
    yield "last", int(usable[-1])


def tangent_form(case: Case, x: np.ndarray, claim: np.ndarray, rng: Any) -> Any:
    t = rounded(rng.normal(size=case.theta.size), case)
    certificate = dargmin.certify(
        case.problem, like(x, case), case.theta, tangent=like(t, case), jvp=like(claim @ t, case)
    )
    return relative(claim @ t, case.jacobian @ t), certificate


def cotangent_form(case: Case, x: np.ndarray, claim: np.ndarray, rng: Any) -> Any:
    w = rounded(rng.normal(size=x.size), case)
    certificate = dargmin.certify(
        case.problem, like(x, case), case.theta, cotangent=like(w, case), vjp=like(w @ claim, case)
    )
    return relative(w @ claim, w @ case.jacobian), certificate


def outer_form(case: Case, x: np.ndarray, claim: np.ndarray, rng: Any) -> Any:
    a = rounded(rng.normal(size=x.size), case)
    direct = (np.asarray(case.theta, float) - 1) / 10
    gradient, truth = (x - a) @ claim + direct, (case.solution - a) @ case.jacobian + direct
    certificate = dargmin.certify(
        case.problem, like(x, case), case.theta, gradient=like(gradient, case),
        outer=Outer(like(a, case), jnp.asarray(0.1, case.x0.dtype)),
    )  # fmt: skip
    return relative(gradient, truth), certificate


FORMS: dict[str, Callable] = {
    "tangent": tangent_form, "cotangent": cotangent_form, "outer": outer_form,
}  # fmt: skip


# ---- derivatives of our own ----------------------------------------------------------------------


def own_rows(case: Case, rng: np.random.Generator) -> Iterator[Row]:
    single = case.x0.dtype == np.float32
    noise = rng.normal(size=case.x0.size)
    near = case.solution * (1 + (1e-2 if single else 1e-4) * noise)
    aims = {"anywhere": noise, "near the outer optimum": near}
    ways = {"default": (None, 10_000), "100 steps": (next(iter(case.methods.values())), 100)}
    for rtol in (1e-2, 1e-3) if single else (1e-2, 1e-3, 1e-6, 1e-9):
        for (point, aim), how in itertools.product(aims.items(), ways):
            h, truth = hypergradient(case, rounded(aim, case), rtol, *ways[how])
            row = dict(method=how, claim="hypergradient", point=point, rtol=rtol)
            yield describe_case(case, **row) | dict(
                true=relative(h.gradient, truth),
                estimate=float(h.certificate.error),
                status=describe(h.status)[:40],
            )
        s = dargmin.sensitivity(
            case.problem, case.x0, case.theta, jnp.eye(case.theta.size, dtype=case.theta.dtype),
            rtol=rtol, throw=False,
        )  # fmt: skip
        for j in range(case.theta.size):
            yield describe_case(case, method="default", claim="sensitivity", rtol=rtol) | dict(
                true=relative(s.tangent[j], case.jacobian[:, j]),
                estimate=float(s.certificate.error[j]),
                status=describe(s.status)[:40],
            )


def hypergradient(case: Case, aim: np.ndarray, rtol: float, method: Any, steps: int) -> Any:
    """What comes back, and the truth."""
    h = dargmin.hypergradient(
        Outer(like(aim, case), jnp.asarray(0.0, case.x0.dtype)), case.problem, case.x0, case.theta,
        rtol=rtol, method=method, steps=steps, throw=False,
    )  # fmt: skip
    return h, (case.solution - aim) @ case.jacobian


def describe_case(case: Case, **more: Any) -> Row:
    row = dict(family=case.family, name=case.name, dtype=str(case.x0.dtype))
    size = dict(condition=case.condition, rounding=case.rounding)
    return row | size | more


def like(array: np.ndarray, case: Case) -> Any:
    return jnp.asarray(array, case.x0.dtype)


def rounded(array: np.ndarray, case: Case) -> np.ndarray:
    """As the computation sees it, in float64."""
    return array.astype(case.x0.dtype).astype(float)


def relative(value: Any, truth: np.ndarray) -> float:
    error, scale = np.linalg.norm(np.asarray(value, float) - truth), np.linalg.norm(truth)
    return float(error / scale) if scale else (0.0 if error == 0 else math.inf)


if __name__ == "__main__":
    main()
