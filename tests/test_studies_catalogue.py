"""Every study in small: it runs, decides, draws; and what it leans on is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from dargmin.cli import app
from dargmin.methods import HeavyBall
from dargmin.modes import LateStart
from dargmin.problems import zoo
from dargmin.solve import solve
from dargmin.studies.catalogue import STUDIES
from dargmin.studies.catalogue.common import late_starts, steps_to, times
from dargmin.studies.catalogue.quadratic_pair import PENALTY, tikhonov
from dargmin.studies.catalogue.turning_points import _reverse
from dargmin.studies.runner import HOLDS, LIMITS, Store, run_tasks

FAST = ("suboptimality", "sobolev", "sensitivity", "turning-points", "no-curse")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in STUDIES]
)
def test_a_quick_study_runs_decides_and_draws(name, tmp_path):
    study, store = STUDIES[name], Store(tmp_path)
    outcome = run_tasks(store.missing(study, True), store, jobs=0)
    assert outcome.failed == {}
    frame = store.read(study, True)
    verdict = study.verdict(frame)
    assert verdict.sentence.endswith(".") and "nan" not in verdict.sentence
    assert all(isinstance(value, float | int) for value in verdict.numbers.values())
    # other-maps in small has no burn-in to remove
    assert verdict.status in (HOLDS, LIMITS) or name == "other-maps"
    assert study.figure(frame).to_dict()["width"] == "container"


def test_late_starts_are_those_of_the_mode():
    instance, theta = zoo.quadratic(np.geomspace(0.1, 1, 5)), jnp.asarray(0.0)
    method, x0 = HeavyBall.tuned(0.1, 1.0), jnp.ones(5)
    xs, dxs = late_starts(
        instance.problem, method, x0, theta, jnp.ones(()), jnp.asarray([0, 7]), steps=10
    )
    for i, K in enumerate((0, 7)):
        x = lambda theta, K=K: (
            solve(instance.problem, method, x0, theta, steps=10, mode=LateStart(start=K)).x
        )
        assert_allclose(dxs[10, i], jax.jacfwd(x)(theta), rtol=1e-10)
    assert_allclose(xs[10], x(theta), rtol=1e-12)


def test_the_reverse_sums_are_those_of_the_mode():
    case, theta, w = tikhonov(3, 0), jnp.asarray(PENALTY), jnp.asarray([1.0, -2.0, 0.5])
    starts = jnp.asarray([0])
    xs, _ = late_starts(case.problem, case.method, case.x0, theta, theta, starts, steps=12)
    sums = _reverse(case.problem, case.alpha, xs[:12][::-1], theta, w)
    value = lambda theta: (
        w @ solve(case.problem, case.method, case.x0, theta, steps=12, mode=LateStart(last=4)).x
    )
    assert_allclose(sums[3], jax.grad(value)(theta), rtol=1e-10)


def test_steps_and_times():
    assert steps_to(np.array([1.0, 0.1, 2.0, 0.1, 0.05]), 0.1) == 3
    assert np.isnan(steps_to(np.array([1.0, np.nan]), 0.1))
    assert times(5).tolist() == [0, 1, 2, 3, 4, 5]
    assert times(10_000)[-1] == 10_000 and len(times(10_000)) < 50


def command(words, out):
    return CliRunner().invoke(app, [*words.split(), "--out", str(out)])


def test_the_commands_run_show_list_and_report_a_study(tmp_path):
    ran = command("study run sensitivity --quick --jobs 0", tmp_path)
    assert ran.exit_code == 0 and "1 of 1" in ran.stdout and "1 task run, 0 done" in ran.stdout
    again = command("study run sensitivity --quick --jobs 0", tmp_path)
    assert "0 tasks run, 1 done before" in again.stdout
    assert "1 of 1" in command("study list --quick", tmp_path).stdout
    shown = command("study show sensitivity --quick", tmp_path)
    assert "claim: Sobolev methods" in shown.stdout and "rows:" in shown.stdout
    made = command("report --quick", tmp_path)
    assert made.exit_code == 0
    assert str(tmp_path / "report.html") in made.stdout
    assert "too few cases to decide" in (tmp_path / "results.md").read_text()
    assert pd.read_csv(tmp_path / "tables" / "sensitivity.csv")["knob"].nunique() == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("study run", "Name the studies to run, or say --all"),
        ("study run sobolew", "did you mean 'sobolev'?"),
        ("study run sobolev --jobs -1", "--jobs must be at least 0, but is -1"),
        ("study show nothing", "There is no study 'nothing'"),
        ("report", "No study has been run into"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, words, said):
    result = command(words, tmp_path)
    assert result.exit_code == 2
    assert said in result.stderr and result.stderr.count("\n") == 1
