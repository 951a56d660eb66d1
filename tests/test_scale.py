"""Rows spread over devices and processes: the same gradient, and no device that holds them all."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "scale" / "sharded.py"
# A proxy, which many institutes prescribe, must not come between processes on one machine.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT / "src"),
    "http_proxy": "http://127.0.0.1:9",
    "no_proxy": "",
}


def megabytes(text):
    return float(text.removesuffix(" MB"))


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_on_four_devices_give_the_gradient_of_one(processes):
    rows, features = 2000, 20
    options = dict(rows=rows, features=features, devices=4, processes=processes, timeout=120)
    done = subprocess.run(
        [sys.executable, SCRIPT, *(f"--{name}={value}" for name, value in options.items())],
        env=os.environ | ENVIRONMENT,
        capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    title, _, _, *lines = done.stdout.splitlines()
    assert f"on 4 cpu devices of {processes} process" in title
    table = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert [row[0] for row in table] == ["ridge", "ridge", "logistic", "logistic"]
    X = rows * features * 8 / 1e6
    held = 2 * (X + rows * 8 / 1e6)  # to train on, and held out
    for alone, shared in zip(table[::2], table[1::2], strict=True):
        assert alone[1:3] == ["1", "2,000"] and shared[1:3] == ["4", "500"]
        assert megabytes(alone[3]) == pytest.approx(held, abs=1e-3)
        assert megabytes(shared[3]) == pytest.approx(held / 4, abs=1e-3)
        # XᵀSX takes a scaled copy or two of a device's rows, and what is d x d is small
        assert megabytes(shared[4]) < 2 * X / 4 + 0.1 < X
        # the d x d Hessian travels, and no device's rows do
        assert 0 < megabytes(shared[5]) <= 1.1 * features**2 * 8 / 1e6 < X / 8
        assert float(shared[6]) < 1e-10


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--processes=0", "--processes 0 must be positive"),
        ("--rows=1001", "--rows 1001 cannot be shared equally by 4 devices"),
        ("--processes=3", "--devices 4 cannot be shared equally by 3 processes"),
    ],
)
def test_shares_that_are_not_equal_are_refused_in_a_sentence(given, said, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("sharded", SCRIPT)
    sharded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sharded)
    monkeypatch.setattr(sys, "argv", ["sharded.py", given])
    with pytest.raises(SystemExit, match="2"):
        sharded.main()
    assert said in capsys.readouterr().err
