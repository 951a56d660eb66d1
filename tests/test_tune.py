"""`dargmin tune` and `dargmin predict`: against scikit-learn, interrupted, and given bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from typer.testing import CliRunner

from dargmin.cli import app
from dargmin.studies.tune.compare import Rival, compared
from dargmin.studies.tune.encoding import encode
from dargmin.studies.tune.options import Options
from dargmin.studies.tune.table import read_split
from dargmin.studies.tune.watch import Watch

MAIN = "from dargmin.cli import main; main()"
TUNE = "--model logistic --target churn --penalty group --cv 3 --max-iter 4 --seed 3"


def run(command, *more):
    return CliRunner().invoke(app, [*command.split(), *map(str, more)])


def shop(rows=160):
    """Customers: numbers and text, some of it missing, rare, constant or of no use."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": rng.integers(18, 80, rows).astype(float),
            "spent": rng.lognormal(3, 1, rows),
            "colour": rng.choice(["red", "green", "blue"], rows),
            "sex": rng.choice(["f", "m"], rows),
            "member": rng.choice([True, False], rows),
            "shop": 1,
            "customer": [f"c{i}" for i in range(rows)],
        }
    )
    score = 0.06 * (table.age - 50) + 1.5 * (table.colour == "red") - (table.sex == "m")
    table["churn"] = np.where(rng.uniform(size=rows) < 1 / (1 + np.exp(-score)), "yes", "no")
    table.loc[::9, "age"] = np.nan
    table.loc[::7, "colour"] = None
    table.loc[:3, "colour"] = "mauve"
    return table


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    home = tmp_path_factory.mktemp("tune")
    shop().to_csv(home / "shop.csv", index=False)
    result = run(f"tune {home / 'shop.csv'} {TUNE} --out", home / "out")
    assert result.exit_code == 0, result.output
    return result, home


def test_the_coefficients_are_those_of_scikit_learn_on_features_divided_by_root_alpha(tuned):
    _, home = tuned
    table, pipeline = shop(), joblib.load(home / "out" / "model.joblib")
    train, _ = train_test_split(
        np.arange(160), test_size=0.25, random_state=3, stratify=table.churn
    )
    features = pipeline[:-1].transform(pd.read_csv(home / "shop.csv").iloc[np.sort(train)])
    found = pd.read_csv(home / "out" / "coefficients.csv")
    root = np.sqrt(found.penalty.to_numpy())
    oracle = LogisticRegression(tol=1e-10, max_iter=10_000)
    oracle.fit(features.to_numpy() / root, table.churn.iloc[np.sort(train)])
    assert list(found.feature) == list(features.columns)
    assert_allclose(found.coefficient, oracle.coef_[0] / root, rtol=1e-4, atol=1e-6)
    # one group has one penalty, and the columns of the table are the groups
    assert (found.groupby("column").penalty.nunique() == 1).all()
    assert list(found.group) == list(found.column)


def test_the_comparison_is_on_rows_that_were_held_out(tuned):
    _, home = tuned
    result = run(f"predict {home / 'out'} {home / 'shop.csv'} --out", home / "new.csv")
    assert result.exit_code == 0, result.output
    table, predicted = shop(), pd.read_csv(home / "new.csv")
    _, test = train_test_split(np.arange(160), test_size=0.25, random_state=3, stratify=table.churn)
    chance = np.where(table.churn == "yes", predicted.probability_yes, predicted.probability_no)
    about = json.loads((home / "out" / "run.json").read_text())
    first = about["comparison"][0]
    assert_allclose(first["loss"], -np.log(chance[test]).mean(), rtol=1e-9)
    assert first["score"] == np.mean(predicted.prediction[test] == table.churn[test])
    assert about["status"] == "finished" and not (home / "out" / "checkpoints").exists()
    assert "its rows are no test" in result.output
    assert f"accuracy {np.mean(predicted.prediction == table.churn):.3f}" in result.output


class Constant:
    def __init__(self, value):
        self.value = value

    def predict(self, X):
        return np.full(len(X), self.value)


def test_a_difference_has_the_standard_error_of_paired_rows():
    y = np.array([0.0, 1.0, 3.0])
    tuned, other = compared(
        Rival("a", Constant(1.0), 0.1), [Rival("b", Constant(2.0), 0.1)], y[:, None], y, False
    )
    gaps = np.array([4 - 1, 1 - 0, 1 - 4])
    assert_allclose([tuned.loss, other.loss], [5 / 3, 2])
    assert_allclose(tuned.score, 1 - (5 / 3) / np.var(y))
    assert_allclose(other.difference, gaps.mean())
    assert_allclose(other.standard_error, gaps.std(ddof=1) / np.sqrt(3))
    assert not other.apart


def test_columns_become_features_by_their_kind(tmp_path):
    shop().to_csv(tmp_path / "shop.csv", index=False)
    split = read_split(str(tmp_path / "shop.csv"), "churn", Options("logistic", test_size=0.0))
    encoded = encode(split)
    assert list(encoded.X.columns) == [
        "age", "spent", "member", "missingindicator_age",
        "colour=blue", "colour=green", "colour=missing", "colour=red", "colour=(rare)", "sex=m",
    ]  # fmt: skip
    assert encoded.columns == ["age", "spent", "member", "age", *["colour"] * 5, "sex"]
    assert_allclose(encoded.X.mean(), 0, atol=1e-12)
    assert_allclose(encoded.X.std(ddof=0), 1)
    median = (shop().age.median() - shop().age.fillna(shop().age.median()).mean()) / (
        shop().age.fillna(shop().age.median()).std(ddof=0)
    )
    assert_allclose(encoded.X.age[::9], median)
    notes = " ".join([*split.notes, *encoded.notes])
    assert "constant column: shop" in notes and "rows or more: customer" in notes


def test_a_text_column_that_is_nearly_one_of_numbers_is_pointed_out(tmp_path):
    table = shop().assign(weight=[*["?"] * 5, *np.arange(155).astype(str)])
    table.to_csv(tmp_path / "shop.csv", index=False)
    split = read_split(str(tmp_path / "shop.csv"), "churn", Options("logistic"))
    assert any("'weight' was read as text, because it holds '?'" in note for note in split.notes)


def test_the_summary_is_one_page_that_needs_nothing_else(tuned):
    result, home = tuned
    page = (home / "out" / "summary.html").read_text(encoding="utf-8")
    assert "http" not in page and "<script" not in page
    assert page.count("data:image/png;base64,") == 6  # three figures, each light and dark
    assert page.count('alt="') == 3 and "prefers-color-scheme: dark" in page
    assert "LogisticRegressionCV, grid search" in page and "guard" in page
    names = {path.name for path in (home / "out").iterdir()}
    assert names == {Path(line).name for line in result.output.split() if "/" in line}
    history = pd.read_csv(home / "out" / "history.csv")
    assert {"scalar", "guard 1, scalar"} <= set(history.stage) and (history.time >= 0).all()


def interrupt(monkeypatch, calls):
    """Press Ctrl-C at a call of the watch."""
    own, seen = Watch.__call__, []

    def call(self, stage, solution):
        seen.append(stage)
        own(self, stage, solution)
        if len(seen) == calls:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "__call__", call)
    return seen


def test_a_run_that_is_interrupted_is_usable_and_ends_the_same_when_resumed(
    tuned, tmp_path, monkeypatch
):
    _, home = tuned
    command = f"tune {home / 'shop.csv'} {TUNE} --out {tmp_path / 'out'}"
    with monkeypatch.context() as patch:
        seen = interrupt(patch, 12)
        result = run(command)
    assert seen[-1].startswith("guard")  # in the middle: one penalty is known, others are not
    assert result.exit_code == 130 and "--resume" in result.output, result.output
    assert "best so far" in (tmp_path / "out" / "summary.html").read_text()
    shop().drop(columns=["churn", "shop"]).to_csv(tmp_path / "new.csv", index=False)
    result = run(f"predict {tmp_path / 'out'} {tmp_path / 'new.csv'} --out {tmp_path / 'p.csv'}")
    assert result.exit_code == 0 and "was interrupted" in result.output, result.output
    again = run(command)
    assert again.exit_code == 2 and "say --resume" in again.output
    other = run(command.replace("--seed 3", "--seed 4"), "--resume")
    assert other.exit_code == 2 and "--seed was 3, and is 4" in other.output
    resumed = run(command, "--resume")
    assert resumed.exit_code == 0, resumed.output
    first, second = (pd.read_csv(d / "out" / "coefficients.csv") for d in (home, tmp_path))
    assert_allclose(second.coefficient, first.coefficient, rtol=1e-6)
    finished = run(command, "--resume")
    assert finished.exit_code == 0 and "nothing to resume" in finished.output


def test_a_run_that_is_interrupted_at_once_says_so(tuned, tmp_path, monkeypatch):
    _, home = tuned

    def refuse(self, X, y):
        raise KeyboardInterrupt

    monkeypatch.setattr("dargmin.estimators.TunedLogisticRegression.fit", refuse)
    result = run(f"tune {home / 'shop.csv'} {TUNE} --out", tmp_path / "out")
    assert result.exit_code == 130 and "nothing was learnt yet" in result.output
    result = run(f"predict {tmp_path / 'out'} {home / 'shop.csv'}")
    assert result.exit_code == 2 and "holds no model yet" in result.output


@pytest.mark.slow
def test_ctrl_c_leaves_a_usable_run(tuned, tmp_path):
    _, home = tuned
    command = f"tune {home / 'shop.csv'} {TUNE} --out {tmp_path}".split()
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "200"},
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "checkpoints" / "scalar.npz").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and b"--resume" in output, output
    result = run(f"predict {tmp_path} {home / 'shop.csv'} --out", tmp_path / "p.csv")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("--target chrn", "did you mean 'churn'?"),
        ("--target sex --model ridge", "use --model logistic for labels"),
        ("--target spent", "use --model ridge"),
        ("--target shop", "only one class, 1"),
        ("--target age --model ridge", "missing values, the first in row 1"),
        ("--model rigde", "did you mean 'ridge'?"),
        ("--penalty features", "did you mean 'feature'?"),
        ("--penalty scalar --groups g.csv", "--groups needs --penalty group"),
        ("--groups nowhere.csv", "There is no file nowhere.csv"),
        ("--test-size 1.5", "a share of the rows"),
        ("--test-size 0.9 --cv 9", "16 are left to learn from"),
        ("--cv 1", "--cv must be from 2"),
        ("--max-iter 0", "--max-iter must be at least 1"),
        ("--seed -1", "--seed must be from 0"),
        ("--out /proc/none", "Nothing can be written"),
    ],
)
def test_bad_input_gets_one_clear_sentence(tuned, tmp_path, change, complaint):
    _, home = tuned
    result = run(f"tune {home / 'shop.csv'} {TUNE} --out {tmp_path} {change}")
    assert result.exit_code == 2 and complaint in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (shop().head(3), "has 3 rows"),
        (shop().assign(churn=["maybe", "maybe", *shop().churn[2:]]), "Class 'maybe' has only"),
        (shop()[["shop", "churn"]], "no column that varies"),
        (shop()[["customer", "churn"]], "no number to learn from"),
        (shop().assign(churn=[None, *shop().churn[1:]]), "1 missing value, the first in row 1"),
        (shop().assign(spent=[np.inf, *shop().spent[1:]]), "infinite values"),
    ],
)
def test_a_table_that_cannot_be_learnt_from_gets_one_clear_sentence(tmp_path, table, complaint):
    table.to_csv(tmp_path / "t.csv", index=False)
    result = run(f"tune {tmp_path / 't.csv'} {TUNE} --out", tmp_path / "out")
    assert result.exit_code == 2 and complaint in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1


def test_groups_can_be_named_in_a_file(tuned, tmp_path):
    _, home = tuned
    groups = pd.DataFrame({"feature": ["age", "spent", "sex=m"], "group": ["n", "n", "s"]})
    groups.to_csv(tmp_path / "groups.csv", index=False)
    groups.assign(feature="agee").to_csv(tmp_path / "wrong.csv", index=False)
    from dargmin.studies.tune.encoding import read_groups

    options = Options("logistic", "group", groups="file", test_size=0.0)
    encoded = encode(read_split(str(home / "shop.csv"), "churn", options))
    found = read_groups(str(tmp_path / "groups.csv"), encoded)
    assert found == ["n", "n", "member", "n", *["colour"] * 5, "s"]
    result = run(
        f"tune {home / 'shop.csv'} {TUNE} --out {tmp_path / 'out'} --groups", tmp_path / "wrong.csv"
    )
    assert result.exit_code == 2 and "did you mean 'age'?" in result.output


def test_predict_says_what_does_not_fit(tuned, tmp_path):
    _, home = tuned
    out, new = home / "out", tmp_path / "new.csv"
    shop().drop(columns=["age", "sex"]).to_csv(new, index=False)
    result = run(f"predict {out} {new}")
    assert result.exit_code == 2 and "lacks the columns age, sex" in result.output
    shop().assign(age="old").to_csv(new, index=False)
    result = run(f"predict {out} {new}")
    assert result.exit_code == 2 and "must hold numbers, as in training" in result.output
    shop().assign(sex="x", churn="new", more=1).to_csv(new, index=False)
    result = run(f"predict {out} {new} --out {tmp_path / 'p.csv'}")
    said = " ".join(result.output.split())
    assert result.exit_code == 0 and "Not used by the model: shop, customer, more." in said
    assert "has not seen: 'x'" in said and "no target that the model knows" in said
    assert len(pd.read_csv(tmp_path / "p.csv")) == len(shop())
    assert run(f"predict {out} {new} --out {new}").exit_code == 2
    assert "holds no run" in run(f"predict {tmp_path} {new}").output
