"""Compile, run, time: what every library goes through alike."""

import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import Case

SHORTEST = 2e-3
"""Seconds that one repetition takes at least: short programs are run several times in it."""


class Program(NamedTuple):
    """A compiled program and what it took to make."""

    bind: Callable  # (tol, adjoint_tol) -> a function without arguments, which runs it
    compile_seconds: float  # tracing, lowering and compiling
    temporaries: float  # MB that XLA sets aside, beside arguments and results


def compile_program(function: Callable, case: Case) -> Program:
    """The function of `hypergradient`, as one program whose data are arguments."""
    arrays, static = eqx.partition((case.f, case.outer), eqx.is_array)

    def run(arrays: Any, x0: Any, theta: Any, tol: Any, adjoint_tol: Any) -> Any:
        f, outer = eqx.combine(arrays, static)
        return function(f, outer, x0, theta, tol, adjoint_tol)

    begin = time.process_time()
    arguments = arrays, case.x0, case.theta
    compiled = jax.jit(run).lower(*arguments, jnp.asarray(0.0), jnp.asarray(0.0)).compile()
    seconds = time.process_time() - begin
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 1e6

    def bind(tol: float, adjoint_tol: float) -> Callable:
        bound = *arguments, jnp.asarray(tol), jnp.asarray(adjoint_tol)
        return lambda: jax.block_until_ready(compiled(*bound))

    return Program(bind, seconds, temporaries)


def gradient_program(case: Case) -> Callable:
    """One evaluation of the residual: the unit of gradient-equivalents."""
    arrays, static = eqx.partition(case.f, eqx.is_array)
    whole = lambda a: eqx.combine(a, static)
    if case.kind == "fixed point":
        program = jax.jit(lambda a, x, t: x - whole(a)(x, t))
    else:
        program = jax.jit(lambda a, x, t: jax.grad(whole(a))(x, t))
    return lambda: jax.block_until_ready(program(arrays, case.x0, case.theta))


def bandwidth(case: Case) -> tuple[float, float] | None:
    """GB/s at which products with the Jacobian read the problem's arrays (a product reads them
    twice), and at which a long vector is read and written; None without arrays worth the name."""
    arrays, static = eqx.partition(case.f, eqx.is_array)
    bytes_read = 2 * sum(a.nbytes for a in jax.tree.leaves(arrays))
    if bytes_read < 1e6:
        return None
    count = 10

    def products(arrays: Any, x: Any, theta: Any) -> Any:
        f = eqx.combine(arrays, static)
        inner = f if case.kind == "fixed point" else jax.grad(f)
        _, product = jax.linearize(lambda x: inner(x, theta), x)
        return jax.lax.fori_loop(0, count, lambda _, v: product(v / jnp.max(jnp.abs(v))), x + 1)

    program = jax.jit(products)
    reading = seconds_of(lambda: jax.block_until_ready(program(arrays, case.x0, case.theta)), 5)
    block = jnp.ones(2**24)
    scale = jax.jit(lambda a: jax.lax.fori_loop(0, count, lambda _, u: 1.5 - 0.5 * u, a))
    copying = seconds_of(lambda: jax.block_until_ready(scale(block)), 5)
    return count * bytes_read / reading / 1e9, count * 2 * block.nbytes / copying / 1e9


def relative_error(value: np.ndarray, case: Case) -> float:
    truth = np.asarray(case.truth)
    error = np.linalg.norm(np.asarray(value).reshape(truth.shape) - truth) / np.linalg.norm(truth)
    return float(error) if np.isfinite(error) else float("inf")


def seconds_of(call: Callable, repeats: int = 3) -> float:
    """The shortest of a few repetitions, after a call that does not count."""
    call()
    loops = max(1, round(SHORTEST / _timed(call, 1)))
    return min(_timed(call, loops) for _ in range(repeats))


def interleaved(calls: dict[Any, Callable], budget: float) -> dict[Any, list[float]]:
    """Times of each, a repetition of all after the other in random order, for `budget` seconds."""
    loops, total = {}, 0.0
    for name, call in calls.items():
        call()
        once = _timed(call, 1)
        loops[name] = max(1, round(SHORTEST / once))
        total += once * loops[name]
    repeats = int(np.clip(budget / total, 3, 41))
    times: dict[Any, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for _ in range(repeats):
        for name in order.sample(list(calls), len(calls)):
            times[name].append(_timed(calls[name], loops[name]))
    return times


def summary(times: list[float]) -> tuple[float, float]:
    """The median in ms, and half the distance between the quartiles, relative to it."""
    middle = statistics.median(times)
    low, high = np.quantile(times, [0.25, 0.75])
    return 1e3 * middle, float(high - low) / 2 / middle


def _timed(call: Callable, loops: int) -> float:
    """Seconds of one call: of processor time where that computes, which on a core of its own is
    what the clock would say if nothing else ran on the machine; else by the clock."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    begin = clock()
    for _ in range(loops):
        call()
    return (clock() - begin) / loops
