"""The study runner: what is missing is run, and only that; killed workers and parents lose nothing.

Time goes into starting processes: most tests share one cluster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest
import toy_studies as toy
from distributed import LocalCluster

from dargmin.studies.errors import DataError
from dargmin.studies.runner import HOLDS, Store, Verdict, fingerprint, run_tasks, task_key
from dargmin.studies.runner.schedule import ALLOWED_DEATHS, ONE_THREAD
from dargmin.studies.runner.store import as_frame

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def scheduler():
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        "distributed.nanny.pre-spawn-environ": ONE_THREAD,
    }
    with (
        dask.config.set(settings),
        LocalCluster(2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def run(study, store, **how):
    return run_tasks(store.missing(study, False), store, **{"jobs": 0, **how})


def test_results_are_read_with_one_call_in_the_order_of_the_tasks(store):
    study = toy.study("double", toy.double, [{"x": x} for x in (3, 1, 2)])
    assert run(study, store).done == 3
    frame = store.read(study)
    assert frame["x"].tolist() == [3, 3, 1, 1, 2, 2]
    assert frame["double"].tolist() == [6.0, 6.0, 2.0, 2.0, 4.0, 4.0]
    assert store.seconds(study) > 0


def test_a_rerun_does_what_is_missing_and_only_that(store):
    study = toy.study("double", toy.double, [{"x": x} for x in range(4)])
    run(study, store)
    paths = [store.path(task) for task in store.tasks(study, False)]
    before = [path.stat().st_mtime_ns for path in paths]
    paths[2].unlink()
    assert run(study, store).done == 1
    after = [path.stat().st_mtime_ns for path in paths]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, True, False, True]
    assert run(study, store).done == 0


def test_missing_results_are_said_with_the_command_that_makes_them(store):
    study = toy.study("double", toy.double, [{"x": 1}, {"x": 2}])
    with pytest.raises(DataError, match=r"2 of 2 tasks .* dargmin study run double"):
        store.read(study)


def test_a_part_file_is_there_whole_or_not_at_all(store, monkeypatch):
    study = toy.study("double", toy.double, [{"x": 1}])
    (task,) = store.tasks(study, False)
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write(task, {"y": [1.0]}, 0.1)
    assert store.missing(study, False) == [task]
    assert len(list(store.path(task).parent.iterdir())) == 1  # the half-written one
    monkeypatch.undo()
    path = store.write(task, {"y": [1.0]}, 0.1)
    assert list(path.parent.iterdir()) == [path]


def test_a_task_that_fails_is_reported_and_the_rest_goes_on(store):
    study = toy.study("fail", toy.fail, [{"x": x} for x in range(3)])
    outcome = run(study, store)
    assert outcome.done == 2
    (reason,) = outcome.failed.values()
    assert "ArithmeticError: one is not allowed" in reason and "toy_studies.py" in reason


def test_workers_run_in_float64_on_one_thread(store, scheduler):
    study = toy.study("precision", toy.precision, [{}])
    assert run(study, store, scheduler=scheduler).done == 1
    row = store.read(study).iloc[0]
    assert row["dtype"] == "float64"
    assert row["pid"] != os.getpid()
    assert row["threads"] < 12  # dask's own; XLA would add one for each core


def test_a_killed_worker_is_retried(store, scheduler, tmp_path):
    once = str(tmp_path / "killed")
    study = toy.study("die", toy.die, [{"x": x, "once": once} for x in range(10, 16)])
    outcome = run(study, store, scheduler=scheduler)
    assert (outcome.done, outcome.failed) == (6, {})
    assert Path(once).exists()
    assert store.read(study)["y"].tolist() == list(range(10, 16))


@pytest.mark.slow
def test_a_task_that_keeps_killing_workers_is_reported_and_the_rest_finishes(store, scheduler):
    study = toy.study("die", toy.die, [{"x": x} for x in range(10, 16)])
    outcome = run(study, store, scheduler=scheduler)
    assert outcome.done == 5
    assert outcome.failed == {"die(x=13)": "it kills the workers that run it"}
    assert [task.parameters["x"] for task in store.missing(study, False)] == [13]


def start(directory, seconds=0.5):
    """`run_tasks` with its own cluster, in a process group of its own."""
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from pathlib import Path\n"
        "import toy_studies as toy\n"
        "from dargmin.studies.runner import Interrupted, Store, run_tasks\n"
        "if __name__ == '__main__':\n"
        f"    store, study = Store(Path({str(directory)!r})), toy.waiting({seconds})\n"
        "    try:\n"
        "        run_tasks(store.missing(study, False), store, jobs=2)\n"
        "    except Interrupted as interrupt:\n"
        "        sys.exit(100 + interrupt.outcome.done)\n"
    )
    script = directory / "program.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, str(script)], env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_results(process, study, store, n):
    deadline = time.monotonic() + 90
    while 40 - len(store.missing(study, False)) < n:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def in_group(group):
    """The processes of that session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
def test_a_killed_parent_loses_nothing_that_was_finished_and_leaves_no_process(store, tmp_path):
    process, study = start(tmp_path), toy.waiting(0.5)
    wait_for_results(process, study, store, 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 30
    while in_group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert in_group(process.pid) == []
    missing = store.missing(study, False)
    assert 3 <= 40 - len(missing) < 40
    for task in store.tasks(study, False):  # what is there is whole
        if task not in missing:
            assert len(store.read(toy.study("wait", toy.wait, [task.parameters]))) == 1
    fast = toy.waiting(0.5, n=40 - len(missing) + 2)  # two more than are done
    assert run(fast, store).done == 2


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_and_keeps_what_is_done(store, tmp_path):
    process, study = start(tmp_path), toy.waiting(0.5)
    wait_for_results(process, study, store, 2)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    _, errors = process.communicate(timeout=60)
    done = 40 - len(store.missing(study, False))
    assert process.returncode == 100 + done
    assert 2 <= done < 40
    assert errors == ""


def test_the_key_moves_with_the_code_that_is_run_and_with_nothing_else(tmp_path, monkeypatch):
    """Each change is made to a copy of the toys."""
    text = (HERE / "toy_studies.py").read_text()
    changes = {
        "same": text,
        "constant": text.replace("SCALE = 2.0", "SCALE = 3.0"),
        "helper": text.replace("return SCALE * x", "return x * SCALE"),
        "docstring": text.replace("Twice x; a docstring is not code.", "Something else."),
        "comment": text.replace("SCALE = 2.0", "SCALE = 2.0  # twice"),
        "another": text.replace("time.sleep(0.05)", "time.sleep(0.06)"),
    }
    monkeypatch.syspath_prepend(str(tmp_path))
    keys = {}
    for name, changed in changes.items():
        (tmp_path / f"toys_{name}.py").write_text(changed)
        module = __import__(f"toys_{name}")
        keys[name] = task_key("study", {"x": 1}, module.double)
    assert keys["docstring"] == keys["comment"] == keys["another"] == keys["same"]
    assert len({keys["same"], keys["constant"], keys["helper"]}) == 3
    assert task_key("study", {"x": 2}, toy.double) != task_key("study", {"x": 1}, toy.double)


def test_the_key_depends_on_the_numerical_modules_of_the_library(tmp_path, monkeypatch):
    from dargmin.studies.runner import code

    text = "import dargmin\ndef run():\n    return dargmin.solve\n"
    (tmp_path / "uses_dargmin.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = __import__("uses_dargmin").run
    imports = code._reached(tmp_path / "uses_dargmin.py", "run")[1]
    names = {path.relative_to(code.ROOT).as_posix() for path in code._closure(imports)}
    assert {"solve.py", "linear/cg.py", "methods/first_order.py"} <= names
    assert not any(name.startswith(("studies", "bilevel", "cli")) for name in names)
    before = fingerprint(run)
    fingerprint.cache_clear()
    monkeypatch.setattr(code, "_file_hash", lambda path: str(path == code.ROOT / "solve.py"))
    assert fingerprint(run) != before
    fingerprint.cache_clear()


def test_parameters_become_columns_and_a_verdict_is_one_of_three():
    frame = as_frame({"y": [1, 2]}, {"name": "a", "many": [1, 2]})
    assert frame.columns.tolist() == ["name", "y"]
    with pytest.raises(ValueError, match="A verdict is 'holds'"):
        Verdict("perhaps", "")
    assert Verdict(HOLDS, "yes").numbers == {}
