"""`dargmin curse`: its numbers against NumPy, its files, its words, its answers to bad input."""

import io
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from rich.console import Console
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from typer.testing import CliRunner

from dargmin import __version__
from dargmin.cli import app
from dargmin.studies.data import load
from dargmin.studies.figures import curse_figure
from dargmin.studies.models import fit
from dargmin.studies.report import report
from dargmin.studies.results import CurseStudy, MethodRun, ModeError
from dargmin.studies.verdict import headline, number, verdict

RIDGE = "curse --data diabetes --model ridge --penalty 0.2 --steps 60 --late-start 20 --seed 3"
LOGISTIC = "curse --model logistic --penalty 0.05 --steps 25 --start zeros --methods gd"


def run(command, out=None):
    return CliRunner().invoke(app, command.split() + ([] if out is None else ["--out", str(out)]))


def standardised(columns):
    return (columns - columns.mean(axis=0)) / columns.std(axis=0)


@pytest.fixture(scope="module")
def ridge(tmp_path_factory):
    out = tmp_path_factory.mktemp("ridge")
    result = run(RIDGE, out)
    assert result.exit_code == 0, result.output
    return result, out


def ridge_oracle(penalty=0.2, seed=3):
    """The same ridge problem in NumPy: H, b, and w0, w*, dw*/dlog(penalty)."""
    data = load_diabetes()
    X, y = standardised(data.data), standardised(data.target)
    H, b = X.T @ X / len(X) + penalty * np.eye(X.shape[1]), X.T @ y / len(X)
    w = np.linalg.solve(H, b)
    w0 = np.random.default_rng(seed).standard_normal(X.shape[1])
    return H, b, w0, w, -penalty * np.linalg.solve(H, w)


def momentum_errors(steps, method, penalty=0.2):
    """Errors of iterate and derivative of a method with momentum, by its joint recurrence."""
    H, b, x, solution, derivative = ridge_oracle(penalty)
    values = np.linalg.eigvalsh(H)
    mu, L = values[0], values[-1]
    z0, root = -(L + mu) / (L - mu), np.sqrt(mu / L)
    units = np.linalg.norm(x - solution), np.linalg.norm(derivative)
    v, previous, delta, errors = np.zeros_like(x), (x, np.zeros_like(x)), 1 / z0, []
    for t in range(steps + 1):
        # Nesterov's iterate is x_t, the last gradient step; x and v hold y_t, the next start.
        at, along = previous if method == "nesterov" else (x, v)
        errors.append((np.linalg.norm(at - solution), np.linalg.norm(along - derivative)))
        g, dg = H @ x - b, H @ v + penalty * x
        if method == "nesterov":
            h, m, now = 1 / L, (1 - root) / (1 + root), (x - g / L, v - dg / L)
            following = [(1 + m) * u - m * p for u, p in zip(now, previous, strict=True)]
        else:
            if method == "chebyshev":
                delta = delta if t == 0 else 1 / (z0 - (0.5 if t == 1 else 0.25) * delta)
                h, m = -2 * delta / (L - mu), delta * z0 - 1
            else:
                m = ((1 - root) / (1 + root)) ** 2
                h = (2 / (np.sqrt(L) + np.sqrt(mu))) ** 2 / (1 + m if t == 0 else 1)
            now = x, v
            following = [
                u - h * d + m * (u - p) for u, d, p in zip(now, (g, dg), previous, strict=True)
            ]
        previous, (x, v) = now, following
    return np.array(errors).T / np.array(units)[:, None]


@pytest.mark.parametrize("method", ["gd", "gd-optimal"])
def test_gradient_descent_on_ridge_follows_its_closed_form(ridge, method):
    H, _, w0, solution, derivative = ridge_oracle()
    values, vectors = np.linalg.eigh(H)
    h = 1 / values[-1] if method == "gd" else 2 / (values[0] + values[-1])
    t, rate = np.arange(61)[:, None], 1 - h * values
    # x_t - x* = P_t (x_0 - x*) and dx_t - dx* = P_t a + P_t' c, with P_t = (1 - hλ)^t
    distance, a = vectors.T @ (w0 - solution), -vectors.T @ derivative
    iterate = np.linalg.norm(rate**t * distance, axis=1)
    unrolled = np.linalg.norm(
        rate**t * a - t * h * rate ** np.maximum(t - 1, 0) * 0.2 * distance, axis=1
    )
    traces = pd.read_parquet(ridge[1] / "curse-diabetes-ridge-traces.parquet")
    saved = traces[traces["method"] == method]
    assert_allclose(saved["iterate_error"], iterate / np.linalg.norm(distance), rtol=1e-9)
    assert_allclose(saved["derivative_error"], unrolled / np.linalg.norm(derivative), rtol=1e-9)


@pytest.mark.parametrize("method", ["heavy-ball", "nesterov", "chebyshev"])
def test_accelerated_methods_on_ridge_follow_their_recurrences(ridge, method):
    iterate, unrolled = momentum_errors(60, method)
    traces = pd.read_parquet(ridge[1] / "curse-diabetes-ridge-traces.parquet")
    saved = traces[traces["method"] == method]
    assert_allclose(saved["iterate_error"], iterate, rtol=1e-8, atol=1e-13)
    assert_allclose(saved["derivative_error"], unrolled, rtol=1e-8, atol=1e-12)


def test_the_saved_burn_in_is_that_of_the_traces(ridge):
    traces = pd.read_parquet(ridge[1] / "curse-diabetes-ridge-traces.parquet")
    table = pd.read_parquet(ridge[1] / "curse-diabetes-ridge-burn-in.parquet").set_index("method")
    for method, rows in traces.groupby("method"):
        error = rows["derivative_error"].to_numpy()
        assert table.loc[method, "peak_height"] == error.max()
        assert error[table.loc[method, "peak_iteration"]] == error.max()
        end = table.loc[method, "end"]
        assert pd.isna(end) == (error[-1] > 1)
        assert pd.isna(end) or error[int(end) - 1] > 1 >= error[int(end) :].max()
        assert table.loc[method, "derivative_error"] == error[-1]


def test_the_prediction_stands_beside_the_measurement(ridge):
    result, out = ridge
    traces = pd.read_parquet(out / "curse-diabetes-ridge-traces.parquet")
    assert_allclose(traces["predicted"], traces["derivative_error"], rtol=1e-6, atol=1e-9)
    assert (traces["worst_case"] >= traces["derivative_error"] * (1 - 1e-9)).all()
    assert "the heights of all 6 burn-ins are exact" in " ".join(result.stdout.split())


def test_modes_at_the_last_iterate_match_numpy(ridge):
    H, b, w, _, derivative = ridge_oracle()
    h, v, u = 1 / np.linalg.eigvalsh(H)[-1], np.zeros(10), np.zeros(10)
    for t in range(60):
        # the late start freezes what happens before t = 20
        v = np.zeros(10) if t < 20 else v - h * (H @ v + 0.2 * w)
        w = w - h * (H @ w - b)
    for _ in range(40):
        u = u - h * (H @ u + 0.2 * w)
    expected = {"late start": v, "Neumann": u, "implicit": -0.2 * np.linalg.solve(H, w)}
    modes = pd.read_parquet(ridge[1] / "curse-diabetes-ridge-modes.parquet")
    rows = modes[modes["method"] == "gd"].set_index("mode")
    for mode, value in expected.items():
        error = np.linalg.norm(value - derivative) / np.linalg.norm(derivative)
        # the Neumann series takes its own, estimated step
        assert_allclose(rows.loc[mode, "error"], error, rtol=0.1 if mode == "Neumann" else 1e-6)


def test_certificates_are_close_to_the_truth(ridge):
    modes = pd.read_parquet(ridge[1] / "curse-diabetes-ridge-modes.parquet")
    assert len(modes) == 24
    assert (modes["status"] == "ok").all()
    visible = modes[modes["error"] > 1e-9]
    assert len(visible) > 10
    assert_allclose(visible["estimate"], visible["error"], rtol=0.5)


def test_logistic_regression_matches_numpy(tmp_path):
    assert run(LOGISTIC, tmp_path).exit_code == 0
    data = load_breast_cancer()
    X, sign = standardised(data.data), 1.0 - 2.0 * data.target  # malignant is 1
    n, d = X.shape
    h = 1 / (np.linalg.eigvalsh(X.T @ X / n)[-1] / 4 + 0.05)
    sigmoid = lambda z: 1 / (1 + np.exp(-z))

    def gradient(w):
        return -X.T @ (sign * sigmoid(-sign * (X @ w))) / n + 0.05 * w

    def hessian(w):
        z = X @ w
        return (X.T * sigmoid(z) * sigmoid(-z)) @ X / n + 0.05 * np.eye(d)

    solution = np.zeros(d)
    for _ in range(30):
        solution = solution - np.linalg.solve(hessian(solution), gradient(solution))
    derivative = -np.linalg.solve(hessian(solution), 0.05 * solution)
    w, v, errors = np.zeros(d), np.zeros(d), []
    for _ in range(26):
        errors.append((np.linalg.norm(w - solution), np.linalg.norm(v - derivative)))
        w, v = w - h * gradient(w), v - h * (hessian(w) @ v + 0.05 * w)
    saved = pd.read_csv(tmp_path / "curse-breast_cancer-logistic-traces.csv")
    units = np.linalg.norm(solution), np.linalg.norm(derivative)
    assert_allclose(
        saved[["iterate_error", "derivative_error"]], errors / np.array(units), rtol=1e-8
    )


def test_several_outputs_have_the_right_solution_and_derivative():
    data = load_wine()
    X, Y = standardised(data.data), np.eye(3)[data.target]
    theta, n = np.log(0.3), len(X)
    fitted = fit(load("wine"), "ridge", theta)
    H = X.T @ X / n + 0.3 * np.eye(13)
    W = np.linalg.solve(H, X.T @ (Y - Y.mean(axis=0)) / n)
    assert_allclose(fitted.solution, W, rtol=1e-9)
    assert_allclose(fitted.derivative, -0.3 * np.linalg.solve(H, W), rtol=1e-9)

    def gradient(W, penalty):
        odds = np.exp(X @ W)
        return X.T @ (odds / odds.sum(axis=1, keepdims=True) - Y) / n + penalty * W

    fitted = fit(load("wine"), "logistic", theta)
    assert_allclose(gradient(fitted.solution, 0.3), 0, atol=1e-12)
    # moving along the derivative keeps the gradient zero, to second order in the step of 1e-5
    moved = fitted.solution + 1e-5 * fitted.derivative
    assert_allclose(gradient(moved, 0.3 * np.exp(1e-5)), 0, atol=1e-9)


def test_figure_and_tables_are_written(ridge):
    result, out = ridge
    printed = [line for line in result.stdout.splitlines() if "curse-diabetes-ridge" in line]
    assert {path.name for path in out.iterdir()} == {line.split("/")[-1] for line in printed}
    assert (out / "curse-diabetes-ridge.png").read_bytes().startswith(b"\x89PNG")
    assert ET.parse(out / "curse-diabetes-ridge.svg").getroot().tag.endswith("svg")
    for name in ("traces", "burn-in", "modes"):
        csv = pd.read_csv(out / f"curse-diabetes-ridge-{name}.csv")
        parquet = pd.read_parquet(out / f"curse-diabetes-ridge-{name}.parquet")
        pd.testing.assert_frame_equal(csv, parquet, check_dtype=False)
        assert (parquet["penalty"] == 0.2).all() and (parquet["late_start"] == 20).all()


def test_what_is_printed_is_readable_and_quiet(ridge):
    result, _ = ridge
    report = result.stdout.split("curse-diabetes-ridge")[0].splitlines()[:-1]
    assert max(map(len, report)) <= 80
    assert result.stderr == ""  # no progress bar where there is no terminal
    assert "Burn-in with 6 of 6 methods" in result.stdout
    assert "Certificates: all" in result.stdout


BAD = [
    ("--data brest_cancer", "did you mean 'breast_cancer'?"),
    ("--data diabetes --target bmy", "did you mean 'bmi'?"),
    ("--data not_there.csv --target y", "There is no file not_there.csv"),
    ("--data diabetes --model logistic", "logistic needs class labels"),
    ("--model rigde", "did you mean 'ridge'?"),
    ("--methods gd,heavyball", "did you mean 'heavy-ball'?"),
    ("--methods ,", "--methods is empty"),
    ("--start nowhere", "choose from random, zeros"),
    ("--penalty -1", "--penalty must be a number from 1e-8 to 1e6"),
    ("--penalty 0", "but is 0"),
    ("--penalty nan", "but is nan"),
    ("--penalty inf", "but is inf"),
    ("--steps 0", "--steps must be at least 1, but is 0"),
    ("--steps -5", "--steps must be at least 1, but is -5"),
    ("--steps 100000000", "would not fit in memory"),
    ("--steps 10 --late-start 10", "--late-start must come before the end, T = 10"),
    ("--late-start -1", "--late-start must be at least 0"),
    ("--seed -1", "--seed must be from 0"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=[options for options, _ in BAD])
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, options, words):
    result = run(f"curse {options}", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert words in result.stderr
    assert result.stdout == "" and list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_to_is_found_out_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("curse", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "Nothing can be written to --out" in result.stderr


def test_an_option_of_the_wrong_type_is_refused():
    result = run("curse --steps many")
    assert result.exit_code == 2
    assert "--steps" in result.stderr


def test_version_and_help():
    assert run("--version").stdout == f"dargmin {__version__}\n"
    help_text = run("curse --help").stdout
    assert "--penalty" in help_text and "--late-start" in help_text


@pytest.mark.parametrize("package", ["typer", "matplotlib"])
def test_a_missing_extra_is_named(package):
    program = (
        f"import sys; sys.modules['{package}'] = None; sys.argv = ['dargmin', 'curse']\n"
        "from dargmin.cli import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"dargmin's command line needs {package}, which is not installed: "
        "pip install 'dargmin[studies]'\n"
    )


def study_of(derivative_error, iterate_error=(1.0, 0.5, 0.2, 0.1), estimate=0.1, status="ok"):
    """A study with one method and hand-made numbers."""
    modes = (ModeError("unrolled", 0.1, estimate, status), ModeError("implicit", 0.01, 0.01, "ok"))
    run = MethodRun(
        "gd",
        "gradient descent 1/L",
        "GD 1/L",
        np.array(iterate_error),
        np.array(derivative_error),
        modes,
    )
    return CurseStudy(
        data="made", model="ridge", start="random", rows=9, columns=2, coefficients=2,
        penalty=0.1, mu=0.1, L=10.0, steps=3, late_start=1, seed=0, drive=3.0, upper_share=None,
        runs=(run,),
    )  # fmt: skip


def test_the_burn_in_is_found_and_said():
    study = study_of([1.0, 2.0, 1.5, 0.9])
    burn_in = study.runs[0].burn_in
    assert (burn_in.height, burn_in.peak, burn_in.end) == (2.0, 1, 3)
    assert "2.0 times as wrong as returning zero" in headline(study)
    assert "at t = 1 its unrolled derivative is 2.0 times" in verdict(study)[0]
    assert "from t = 3 on it is better than zero" in verdict(study)[0]
    assert "closer to the solution than the start" in verdict(study)[0]
    assert "would become 1.54 times as wrong" in verdict(study)[1]  # q e^{1/q - 1} at q = 3
    assert "implicit is 10 times closer" in verdict(study)[2]


def test_a_burn_in_that_outlasts_the_run_is_said_to():
    study = study_of([1.0, 1.2, 1.5, 1.3], iterate_error=[1.0, 1.4, 0.5, 0.2])
    assert study.runs[0].burn_in.end is None
    assert "not better than zero by t = 3, the end of the run" in verdict(study)[0]
    assert "overshoot too, to 1.40 times" in verdict(study)[0]


def test_no_burn_in_is_said_with_a_reason():
    study = study_of([1.0, 1.02, 0.5, 0.1])
    assert "never more than 5 %" in headline(study)
    assert "No burn-in" in verdict(study)[0]
    # the bound q e^{1/q - 1} at q = 3
    assert "would become 1.54 times as wrong" in verdict(study)[1]
    assert "too little for any burn-in" in verdict(replace(study, drive=0.5))[1]
    from_zero = verdict(replace(study, start="zeros", upper_share=0.25))
    assert "25 % of ‖dw*‖² lies in the upper half" in from_zero[1]
    assert "well conditioned" in verdict(replace(study, L=0.2))[2]


def test_divergence_and_bad_certificates_are_said():
    diverged = study_of([1.0, 1e3, np.inf, np.nan], iterate_error=[1.0, 1e3, np.inf, np.nan])
    assert "diverges" in headline(diverged)
    assert "Gradient descent 1/L diverged" in verdict(diverged)[0]
    wrong = study_of([1.0, 0.9, 0.8, 0.7], estimate=0.02, status="The linear solve failed.")
    assert "1 of 2 estimates are within a factor 2" in verdict(wrong)[-2]
    assert "by a factor 5.00, is that of unrolled after gradient descent 1/L" in verdict(wrong)[-2]
    assert verdict(wrong)[-1] == "Marked with !: The linear solve failed."
    for study in (diverged, wrong):  # both can be shown
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(report(study))
        assert "GD 1/L" in console.export_text()
        curse_figure(study).canvas.draw()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (37.2, "37"),
        (8.04, "8.0"),
        (0.7, "0.70"),
        (0.0123, "0.012"),
        (3.24e-5, "3.2e-5"),
        (0.0, "0"),
        (1e-9, "1e-9"),
        (2e7, "2.0e7"),
        (np.inf, "diverged"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text
