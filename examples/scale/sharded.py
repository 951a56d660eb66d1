"""Data that no single device holds: hypergradients with the rows spread over a mesh.
================================================================================

::

    w*(θ) = argmin_w mean ℓ(Xw, y) + ½ Σ_j exp(θ_j) w_j²,   φ(θ) = mean ℓ(X'w*(θ), y')

for the squared and the logistic loss. The rows of X and of the held-out X' lie on the devices of a
mesh, an equal share on each; w and θ are on all of them. Nothing in the call changes::

    f = Partial(penalised(loss), X, y)      # X and y are leaves of f
    dargmin.hypergradient(outer, dargmin.Objective(f), w0, theta)

XLA splits the products with X by where the rows are and adds up d numbers, or d x d where one
Cholesky factor serves all solves (XᵀX = Σ X_kᵀX_k). The data must be leaves of f, by `Partial` or
an `equinox.Module`, or arguments of an outer `jit`: a function that merely closes over them hands
them to the compiler as constants, which JAX refuses for arrays that span several processes.

What to look at, each problem being solved once more on one device: `difference`, the relative
distance of the two gradients, is rounding; `data each` and `temporaries`, the bytes on a device,
fall with the number of devices (the temporaries are a scaled copy or two of X, for XᵀSX; with CG,
above 2,048 features at the latest, they are a few vectors); `largest message`, the largest array
in any collective operation of the compiled program, is d x d numbers at most, never the data.

::

    python examples/scale/sharded.py                   4 virtual devices of one process
    python examples/scale/sharded.py --processes 2     2 processes with 2 devices each, on loopback
    python examples/scale/sharded.py --features 2500   conjugate gradients, nothing d x d

On several GPUs of one machine: `JAX_PLATFORMS=cuda`, and as many `--devices`. On a cluster, every
host runs a program that calls `jax.distributed.initialize()` (Slurm, Cloud TPU and others need no
arguments), reads its own rows into `jax.make_array_from_process_local_data(rows, block)`, and goes
on as `compare` does here. The processes should be of one kind: all take the same number of steps
because all compute the same bits from the same sums."""

import argparse
import math
import multiprocessing
import multiprocessing.connection
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.tree_util import Partial

import dargmin

MESSAGES = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


def squared(X: Any, y: Any, w: Any) -> Any:
    return 0.5 * jnp.mean((X @ w - y) ** 2)


def logistic(X: Any, y: Any, w: Any) -> Any:
    return jnp.mean(jax.nn.softplus(-jnp.sign(y) * (X @ w)))


def penalised(loss: Callable) -> Callable:
    return lambda X, y, w, theta: loss(X, y, w) + 0.5 * jnp.exp(theta) @ w**2


def data(rows: int, features: int, sharding: Sharding) -> tuple[Any, Any]:
    """(X, y) and (X', y'), made where they are to lie; the same numbers whatever the sharding."""

    def make(key: Any) -> tuple[Any, Any]:
        for_X, for_y = jax.random.split(key)
        X = jax.random.normal(for_X, (rows, features))
        truth = jnp.where(jnp.arange(features) % 4 == 0, 2.0, 0.0) / math.sqrt(features)
        return X, X @ truth + jax.random.normal(for_y, (rows,))

    make = jax.jit(make, out_shardings=sharding)
    return make(jax.random.key(0)), make(jax.random.key(1))


def gradient(f: Any, outer: Any, theta: Any) -> Any:
    """d φ(w*(θ)) / dθ, and whether it is as accurate as was asked for."""
    w0 = jnp.zeros_like(theta)
    result = dargmin.hypergradient(
        outer, dargmin.Objective(f), w0, theta, rtol=1e-8, throw=False
    )  # fmt: skip
    return result.gradient, result.ok


def measure(loss: Callable, train: Any, held_out: Any) -> tuple[Any, dict]:
    """The gradient at θ = -4, and what it takes of each device of this process."""
    f = Partial(penalised(loss), *train)
    outer = Partial(lambda X, y, w, theta: loss(X, y, w), *held_out)
    arguments = f, outer, np.full(train[0].shape[1], -4.0)
    program = jax.jit(gradient).lower(*arguments).compile()
    value, ok = program(*arguments)
    if not bool(ok):
        raise SystemExit("The accuracy of 1e-8 was not reached: the numbers would mean nothing.")
    memory = program.memory_analysis()  # None where a backend keeps no account
    return np.asarray(value), {
        "devices": train[0].sharding.num_devices,
        "rows": max(shard.data.shape[0] for shard in train[0].addressable_shards),
        "data": max(held(*train, *held_out).values()),
        "temporaries": math.nan if memory is None else memory.temp_size_in_bytes,
        "largest message": largest_message(program.as_text() or ""),
    }


def held(*arrays: Any) -> Counter:
    """Bytes of these arrays on each device of this process."""
    total: Counter = Counter()
    for array in arrays:
        for shard in array.addressable_shards:
            total[shard.device] += shard.data.nbytes
    return total


def largest_message(program: str) -> int:
    """Bytes of the largest array that a collective operation of a compiled program puts out."""
    lines = re.findall(rf"= (.*?) (?:{MESSAGES})(?:-start)?\(", program)
    arrays = [found for line in lines for found in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", line)]
    sizes = [math.prod(map(int, filter(None, shape.split(",")))) for _, shape in arrays]
    return max((int(bits) // 8 * n for (bits, _), n in zip(arrays, sizes, strict=True)), default=0)


def compare(rows: int, features: int) -> None:
    """Each problem on the mesh of all devices of all processes, and on one device; the table."""
    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
    shared = data(rows, features, NamedSharding(mesh, PartitionSpec("rows")))
    alone = None
    if jax.process_index() == 0:  # what one device computes is no business of the others
        alone = data(rows, features, SingleDeviceSharding(jax.local_devices()[0]))
        print(
            f"{rows:,} x {features:,} numbers to train on and as many held out, on "
            f"{jax.device_count()} {jax.default_backend()} devices of {jax.process_count()} "
            f"process{'es' if jax.process_count() > 1 else ''}.\n\n"
            f"{'problem':10}{'devices':>7}{'rows each':>12}{'data each':>13}{'temporaries':>13}"
            f"{'largest message':>17}{'difference':>12}",
            flush=True,
        )
    for name, loss in {"ridge": squared, "logistic": logistic}.items():
        value, numbers = measure(loss, *shared)
        if alone is not None:
            reference, single = measure(loss, *alone)
            difference = np.linalg.norm(value - reference) / np.linalg.norm(reference)
            show(name, single, "")
            show(name, numbers, f"{difference:.1e}")


def show(name: str, numbers: dict, difference: str) -> None:
    size = lambda key: f"{numbers[key] / 1e6:,.3f} MB"
    print(
        f"{name:10}{numbers['devices']:>7}{numbers['rows']:>12,}{size('data'):>13}"
        f"{size('temporaries'):>13}{size('largest message'):>17}{difference:>12}",
        flush=True,
    )


def work(arguments: argparse.Namespace, index: int = 0, port: int = 0) -> None:
    """What one process does. The devices are settled before JAX looks for any."""
    jax.config.update("jax_enable_x64", True)
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", arguments.devices // arguments.processes)
    if arguments.processes > 1:
        sys.stdout = os.fdopen(os.dup(1), "w")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # gloo would write between the rows
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"127.0.0.1:{port}", arguments.processes, index,
            cluster_detection_method="deactivate", initialization_timeout=60,
        )  # fmt: skip
    if jax.device_count() != arguments.devices:
        raise SystemExit(
            f"--devices {arguments.devices} was asked for, but JAX has {jax.device_count()} "
            f"{jax.default_backend()} devices here: ask for that many."
        )
    compare(arguments.rows, arguments.features)


def launch(arguments: argparse.Namespace) -> None:
    """All processes, on this machine; none outlives another that failed, or the time allowed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]  # gRPC would ask the proxy for 127.0.0.1, and wait for ever
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that runs JAX may hang
    workers = [
        spawn.Process(target=work, args=(arguments, i, port), daemon=True)
        for i in range(arguments.processes)
    ]
    for worker in workers:
        worker.start()
    deadline, running = time.monotonic() + arguments.timeout, workers
    while running and all(worker.exitcode in (None, 0) for worker in workers):
        left = deadline - time.monotonic()
        if not multiprocessing.connection.wait([w.sentinel for w in running], max(left, 0)):
            break
        running = [worker for worker in running if worker.is_alive()]
    for worker in running:
        worker.kill()
    for worker in workers:
        worker.join()
    if any(worker.exitcode != 0 for worker in workers):
        late = "did not end in time" if time.monotonic() > deadline else "failed"
        sys.exit(f"A process {late}, and the others were stopped: exit codes "
                 f"{[worker.exitcode for worker in workers]}.")  # fmt: skip


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=40_000, help="rows to train on")
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--devices", type=int, default=4, help="devices of all processes together")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600, help="seconds, for several processes")
    a = parser.parse_args()
    for name in ("rows", "features", "devices", "processes", "timeout"):
        if getattr(a, name) <= 0:
            parser.error(f"--{name} {getattr(a, name)} must be positive.")
    if a.devices % a.processes:
        parser.error(
            f"--devices {a.devices} cannot be shared equally by {a.processes} processes: give a "
            f"multiple, such as {a.processes * (a.devices // a.processes + 1)}."
        )
    if a.rows % a.devices:
        parser.error(
            f"--rows {a.rows} cannot be shared equally by {a.devices} devices: give a multiple, "
            f"such as {a.devices * (a.rows // a.devices + 1)} (own data: leave rows out, or pad "
            "them and give the padding weight zero)."
        )
    return a


def main() -> None:
    arguments = read_arguments()
    if arguments.processes == 1:
        work(arguments)
    else:
        launch(arguments)


if __name__ == "__main__":
    main()
