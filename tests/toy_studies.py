"""Studies that take no time, for the runner's tests; workers import this file by its name."""

import os
import signal
import time
from pathlib import Path

from dargmin.studies.runner import HOLDS, Study, Verdict

SCALE = 2.0


def study(name, run, tasks):
    return Study(
        name=name, title=name, claim="None.", source="No one.", settings="None.",
        tasks=lambda quick: tasks[:1] if quick else tasks, run=run,
        verdict=lambda frame: Verdict(HOLDS, f"{len(frame)} rows.", {"rows": len(frame)}),
        figure=lambda frame: None, description="Nothing.",
    )  # fmt: skip


def double(x):
    """Twice x; a docstring is not code."""
    return {"x": [x, x], "double": [_twice(x), _twice(x)]}


def _twice(x):
    return SCALE * x


def precision():
    import jax.numpy as jnp

    threads = len(os.listdir(f"/proc/{os.getpid()}/task"))
    jnp.ones((300, 300)) @ jnp.ones((300, 300))
    return {"dtype": [str(jnp.ones(1).dtype)], "threads": [threads], "pid": [os.getpid()]}


def die(x, once=None):
    """Kill the worker, every time or (where a file can say so) only the first."""
    if x == 13 and not (once and Path(once).exists()):
        if once:
            Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return {"y": [x]}


def fail(x):
    if x == 1:
        raise ArithmeticError("one is not allowed")
    return {"y": [x]}


def wait(x, seconds):
    time.sleep(seconds)
    return {"y": [x]}


def waiting(seconds, n=40):
    return study("wait", wait, [{"x": x, "seconds": seconds} for x in range(n)])
