"""Three examples in small: what each of them is there to show, and its figure."""

import importlib.util
from pathlib import Path

import jax
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax counts on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_a_learnt_start_adapts_better_than_a_jointly_trained_one(tmp_path):
    rows = ("joint training", "Unrolled, 1 step")
    numbers = load("meta_learning").run(tmp_path, iterations=150, rate=1e-2, tests=100, rows=rows)
    joint, learnt = (numbers[name] for name in rows)
    assert learnt[1] < 0.8 * joint[1]  # after one step; the standard errors are about 6 %
    assert learnt[1] < learnt[0] < numbers["random"][0]
    assert numbers["one-step derivative"] == 0  # the last step does not see where the first began
    assert (tmp_path / "meta_learning.png").stat().st_size > 10_000


@pytest.mark.slow
def test_learnt_weights_denoise_unseen_crops_better_than_the_best_single_weight(tmp_path):
    name = "cosine synthesis"
    numbers = load("denoising").run(tmp_path, train=4, test=4, size=16, steps=3, models=(name,))
    assert numbers[f"{name}, 63 weights"] > numbers[f"{name}, one weight"] + 0.1
    assert numbers[f"{name}, one weight"] > numbers["noisy"] + 2
    assert numbers[f"{name}: largest certified error"] < 1 / 3  # every direction descends
    assert (tmp_path / "denoising.png").stat().st_size > 10_000


@pytest.mark.slow
def test_an_equilibrium_layer_learns_digits_by_certified_gradients(tmp_path):
    rows = ("logistic regression", "Implicit, GMRES")
    numbers = load("equilibrium").run(tmp_path, rows=rows, epochs=3, seeds=1)
    accuracy = {name: numbers[f"{name}: accuracy"] for name in rows}
    assert accuracy["Implicit, GMRES"] > accuracy["logistic regression"]
    assert numbers["Implicit, GMRES: gradient error"] < 1e-4
    assert (tmp_path / "equilibrium.png").stat().st_size > 10_000
