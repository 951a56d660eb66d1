"""Checkpoints of the outer loop: what differs is named, what is foreign is refused."""

import os
import stat
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dargmin import Objective
from dargmin.bilevel import LBFGSB, minimize
from dargmin.bilevel.checkpoint import Checkpoint
from dargmin.bilevel.progress import Display

AIM = Objective(lambda x, t: jnp.sum(jnp.cosh(x - t)))
START = np.asarray([0.05, -0.08])


def outer(x, theta):
    return jnp.sum((x - 1) ** 2 * jnp.asarray([1.0, 9.0])) + jnp.sum(x) ** 4


def run(path, start=START, optimizer="lbfgs", steps=3, f=outer, **more):
    return minimize(f, AIM, jnp.zeros(2), jnp.asarray(start), optimizer=optimizer, steps=steps,
                    checkpoint=path, **more)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(bounds=(-0.1, 0.1)), r"its bounds is .*inf.*here it is \[\[-0.1, -0.1\]"),
        (dict(start=[0.05, 0.3]), r"its theta0 is \[0.05, -0.08\], and here it is \[0.05, 0.3\]"),
        (dict(f=lambda x, t: 2 * outer(x, t)), "its objective, outer function or data is a diff"),
        (dict(optimizer=LBFGSB(memory=3)), r"its optimizer is LBFGSB\(memory=10.*memory=3"),
        (dict(rtol=1e-3), "its rtol is adaptive, and here it is 0.001"),
        (dict(warm_start=False), "its inner solve is .*warm_start=True"),
    ],
)
def test_a_run_is_resumed_only_as_it_began(tmp_path, changed, message):
    run(tmp_path / "a.npz", steps=0)
    with pytest.raises(ValueError, match=f"different problem: {message}"):
        run(tmp_path / "a.npz", **changed)


def test_other_settings_of_an_optax_transformation_are_seen_although_they_hide_in_closures(
    tmp_path,
):
    path = tmp_path / "a.npz"
    run(path, optimizer=optax.adam(0.1), steps=1)
    with pytest.raises(ValueError, match="its optimizer is Optax with steps of"):
        run(path, optimizer=optax.adam(0.2))
    assert len(run(path, optimizer=optax.adam(0.1), steps=2).history) == 3


@pytest.mark.parametrize("stop", [2, 5])
def test_a_line_search_that_was_interrupted_takes_the_steps_that_it_would_have_taken(
    tmp_path, stop
):
    bounds = (-1.0, 0.75)
    whole = run(None, steps=50, bounds=bounds)
    run(tmp_path / "a.npz", steps=stop, bounds=bounds)
    resumed = run(tmp_path / "a.npz", steps=50, bounds=bounds)
    assert whole.ok and resumed.ok and np.all(resumed.theta <= 0.75)
    np.testing.assert_array_equal(resumed.theta, whole.theta)
    for name in ("value", "hypergradients", "step_norm"):
        np.testing.assert_array_equal(resumed.history[name], whole.history[name])


def foreign(path, kind):
    if kind == "array":
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    elif kind == "no label":
        np.savez(path, a=np.ones(3))
    elif kind == "label":
        np.savez(path, label=np.asarray("7"))
    elif kind == "empty":
        path.touch()
    elif kind == "pickle":
        np.savez(path, label=np.asarray({"a": 1}, object))
    else:
        run(path, steps=1)
        with np.load(path) as file:
            stored = dict(file)
        if kind == "old":
            stored["format"] = np.asarray(1)
        elif kind == "cut":
            path.write_bytes(path.read_bytes()[:-100])
            return
        elif kind == "missing":
            del stored["leaf_3"]
        elif kind == "more":
            stored["leaf_999"] = np.ones(2)
            stored[f"leaf_{sum(name.startswith('leaf') for name in stored) - 1}"] = np.ones(2)
        elif kind == "kinds":
            stored["leaf_0"] = np.asarray(["a", "b"])
        elif kind == "probe":
            stored["probe theta0"] = np.asarray("a")
        np.savez(path, **stored)


KINDS = ["array", "no label", "label", "empty", "pickle"]
KINDS += ["old", "cut", "missing", "more", "kinds", "probe"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_foreign_or_altered_gets_one_sentence(tmp_path, kind):
    foreign(tmp_path / "a.npz", kind)
    with pytest.raises(ValueError, match=r"^checkpoint='.*(no checkpoint|different problem)") as e:
        run(tmp_path / "a.npz")
    assert len(str(e.value).splitlines()) == 1


def test_what_killed_runs_left_is_removed_and_what_others_write_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = Checkpoint(tmp_path / "a.npz", {}, {})
    left, others = (
        tmp_path / f"{here._prefix}{process}.tmp" for process in (ended.pid, os.getppid())
    )
    mine = tmp_path / "a.npz.notes.tmp"
    for path in (left, others, mine):
        path.touch()
    run(tmp_path / "a.npz", steps=0)
    assert {p.name for p in tmp_path.iterdir()} == {"a.npz", others.name, mine.name}


@pytest.mark.parametrize("where", ["/proc/none.npz", "."])
def test_a_place_where_nothing_can_be_written_is_found_before_the_first_step(where):
    seen = []
    with pytest.raises(ValueError, match=r"^checkpoint='"):
        run(where, callback=seen.append)
    assert not seen


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_found_before_the_first_step(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ValueError, match="nothing can be written"):
        run(tmp_path / "a.npz")


def test_what_a_callback_raises_carries_the_result():
    def fail(solution):
        if len(solution.history) == 3:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        run(None, callback=fail)
    assert len(caught.value.result.history) == 3
    assert caught.value.result.gradient.shape == (2,)


def test_a_line_of_progress_fits_on_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    display = Display(100_000)
    display.begin -= 10
    display.cost = 1.2345678e9
    texts = []

    class Line:
        def update(self, text):
            texts.append(text)

    display.line = Line()
    display.show(
        dict(step=99_999.0, value=-1.234567e-103, gradient_norm=1.2e-101, error=1.3e-110,
             inner_cost=1e8, adjoint_cost=3.0)
    )  # fmt: skip
    assert len(texts) == 1 and len(texts[0]) + 2 <= 80  # a spinner and a space come first
