"""Run the tasks that are missing, on dask.distributed: what is done is on the disk."""

import contextlib
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
from dask import config as dask_config
from distributed import Client, Future, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from dargmin.studies.errors import DataError
from dargmin.studies.runner.code import fingerprint
from dargmin.studies.runner.store import Store, Task
from dargmin.studies.runner.study import Parameters, Table

__all__ = ["Interrupted", "Outcome", "execute", "run_tasks"]

ALLOWED_DEATHS = 1  # of workers at one task, before it is set aside and tried again alone
ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "NPROC": "1",  # XLA's thread pools
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
IGNORE_INTERRUPTS = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
"""Ctrl-C reaches every process of a terminal, but stopping the workers is up to their parent."""

Advance = Callable[[Task, int], None]


@dataclass
class Outcome:
    """What became of the tasks: how many are done, and why the others are not."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)


class Interrupted(Exception):
    """Ctrl-C, after the workers have been stopped; `outcome` says what was finished."""

    def __init__(self, outcome: Outcome):
        super().__init__(f"Interrupted after {outcome.done} tasks.")
        self.outcome = outcome


def execute(run: Callable[..., Table], parameters: Parameters, code: str) -> tuple[Table, float]:
    """Run one task in float64, and say how many seconds it took.

    Raises
    ------
    RuntimeError
        If the code here is not the one that the result would be filed under."""
    if fingerprint(run) != code:
        raise RuntimeError("this worker has another version of dargmin, JAX, NumPy or SciPy")
    jax.config.update("jax_enable_x64", True)
    begin = time.perf_counter()
    table = run(**parameters)
    return table, time.perf_counter() - begin


def run_tasks(
    tasks: list[Task],
    store: Store,
    *,
    jobs: int | None = None,
    scheduler: str | None = None,
    advance: Advance = lambda task, done: None,
) -> Outcome:
    """Run every task and file its result; one that fails is reported, and the rest goes on.

    Parameters
    ----------
    tasks : list of Task
    store : Store
    jobs : int, optional
        Worker processes, of one thread each; as many as there are cores if None. 0: no workers,
        and everything in this process.
    scheduler : str, optional
        Address of a dask scheduler whose workers are used instead.
    advance : callable (task, tasks finished)
        Called after each.

    Raises
    ------
    DataError
        If there is no scheduler at that address, or it has no worker.
    Interrupted
        On Ctrl-C."""
    outcome = Outcome()
    if not tasks:
        return outcome
    try:
        if jobs == 0 and scheduler is None:
            _run_here(tasks, store, outcome, advance)
            return outcome
        with _client(min(jobs or os.cpu_count() or 1, len(tasks)), scheduler) as client:
            width = max(_threads(client), 1)
            suspects = _run_there(client, tasks, width, store, outcome, advance)
            # Dask blames all tasks that a dying worker held. Alone, only the guilty die again.
            guilty = _run_there(client, suspects, 1, store, outcome, advance)
            for task in guilty:
                outcome.failed[task.label] = "it kills the workers that run it"
                advance(task, outcome.done + len(outcome.failed))
    except KeyboardInterrupt:
        raise Interrupted(outcome) from None
    return outcome


def _run_here(tasks: list[Task], store: Store, outcome: Outcome, advance: Advance) -> None:
    for task in tasks:
        code = fingerprint(task.study.run)
        try:
            store.write(task, *execute(task.study.run, task.parameters, code))
            outcome.done += 1
        except Exception as error:
            outcome.failed[task.label] = _brief(error)
        advance(task, outcome.done + len(outcome.failed))


def _run_there(
    client: Client, tasks: list[Task], width: int, store: Store, outcome: Outcome, advance: Advance
) -> list[Task]:
    """Keep `width` tasks in flight; returns those at which too many workers died."""
    waiting, suspects = iter(tasks), []
    running: dict[Future, Task] = {}

    def submit() -> Iterator[Future]:
        for task in waiting:
            run = task.study.run
            future = client.submit(
                execute, run, task.parameters, fingerprint(run), pure=False, retries=0
            )
            running[future] = task
            yield future
            return

    first = [future for _ in range(width) for future in submit()]
    finished = as_completed(first, with_results=False)
    for future in finished:
        task = running.pop(future)
        try:  # a result can be lost with its worker, and computed again, until it is here
            table, seconds = future.result()
            store.write(task, table, seconds)
            outcome.done += 1
        except KilledWorker:
            suspects.append(task)
        except Exception as error:
            outcome.failed[task.label] = _brief(error)
        future.release()
        if task not in suspects:
            advance(task, outcome.done + len(outcome.failed))
        for following in submit():
            finished.add(following)
    return suspects


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Client]:
    """A client of the scheduler at that address, or of a cluster of our own."""
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        "distributed.nanny.pre-spawn-environ": ONE_THREAD,
        "distributed.comm.timeouts.connect": "10s",
    }
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with (
        dask_config.set(settings),
        tempfile.TemporaryDirectory(prefix="dargmin-", ignore_cleanup_errors=True) as scratch,
    ):
        if scheduler is not None:
            with _connect(scheduler) as client:
                yield client
            return
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1",
            dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL,
            local_directory=scratch, preload=IGNORE_INTERRUPTS,
        )  # fmt: skip
        client = Client(cluster)
        try:
            yield client
        finally:
            # A worker that does not stop in time is killed with this process, whose child it is.
            with contextlib.suppress(TimeoutError):
                client.close()
                cluster.close(timeout=20)


def _connect(scheduler: str) -> Client:
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise DataError(
            f"No dask scheduler answers at --scheduler {scheduler} ({_brief(error)}): start one "
            "with `dask scheduler`, and give the address that it prints."
        ) from None
    if not _threads(client):
        client.close()
        raise DataError(
            f"The scheduler at {scheduler} has no worker: start some with `dask worker {scheduler}`"
        )
    return client


def _threads(client: Client) -> int:
    counts: Any = client.nthreads()
    return sum(counts.values())


def _brief(error: BaseException) -> str:
    """The last line of a traceback, and where in dargmin it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    words = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {words[0]}{place}"
