"""The README's Python, run as a reader would run it."""

import pathlib
import re

import numpy as np
import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def session():
    """The names that are left after every Python block has run, in order."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 7
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README block {number}", "exec"), names)
    return names


def test_the_snippets_run_and_agree_with_each_other(session):
    # Snippet 1 differentiates a 400-step solve, snippet 2 the exact solution: 1e-6 apart at most.
    np.testing.assert_allclose(session["gradient"], session["h"].gradient, rtol=1e-6)
    np.testing.assert_allclose(session["jacobian"].T, session["s"].tangent, rtol=1e-5, atol=1e-9)
    assert session["h"].certificate.ok and session["h"].certificate.error <= 1e-3


def test_the_unrolled_derivative_of_the_third_snippet_is_as_wrong_as_it_says(session):
    derivative = session["jacobian"] @ session["direction"]
    error = np.linalg.norm(session["derivative"] - derivative) / np.linalg.norm(derivative)
    np.testing.assert_allclose(session["certificate"].error, error, rtol=0.05)
    np.testing.assert_allclose(error, 0.62, atol=0.005)
