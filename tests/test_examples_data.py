"""The examples on data: each shows, on a small scale, what its docstring says."""

import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
CERTIFIED = 1 / 3  # true errors are at most three times the certified ones: then -g descends


def run_of(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["run"]


def check_figure(path):
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 10_000


@pytest.mark.slow
def test_learnt_weights_find_wrong_labels_and_beat_training_on_all_of_them(tmp_path):
    found = run_of("hyper_cleaning")(
        out=tmp_path, n=200, steps=8, seeds=1, penalties=np.exp([-6.0, -8.0])
    )
    assert found["AUC, learnt weights"] > 0.8
    assert found["accuracy, learnt weights"] > found["accuracy, all samples"] + 0.05
    assert found["of these wrong"] > 0.7 * found["weights at zero"] > 0
    assert found["largest certified error"] < CERTIFIED
    check_figure(tmp_path / "hyper_cleaning.png")


def test_a_penalty_for_each_feature_pays_off_on_many_rows_and_overfits_few(tmp_path):
    studies = run_of("feature_penalties")(
        out=tmp_path, sizes=(60, 480), real=(330,), seeds=1, steps=10
    )
    for found in studies.values():
        assert found["a penalty for each"][-1] < found["one penalty"][-1]
        assert (found["a penalty for each, cross-validated"] < found["a penalty for each"]).all()
        assert found["certified error"].max() < CERTIFIED
    few, many = studies["10 useful features, 40 useless"]["a penalty for each"]
    assert few > 1.5 * many  # the noise alone makes 1
    check_figure(tmp_path / "feature_penalties.png")


@pytest.mark.slow
def test_ten_learnt_images_train_better_than_ten_centroids_or_real_ones(tmp_path):
    found = run_of("distillation")(
        out=tmp_path, per_class=(1,), steps=15, draws=2, seeds=1, penalties=np.exp([-3.0, -6.0])
    )
    assert found["learnt"] > found["k-means centroids"] + 0.03
    assert found["k-means centroids"] > found["real, at random"]
    assert found["learnt"] > found["all 1,000 images"] - 0.03
    assert found["certified error"] < CERTIFIED
    check_figure(tmp_path / "distillation.png")
