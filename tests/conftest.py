"""What holds in every test: float64, strict promotion, and annotations that are checked.

Warnings are errors through pyproject.toml. Nothing here may import dargmin: the hook has to come
first, because it checks only what is imported after it."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the same numbers everywhere, unless asked otherwise
os.environ.setdefault("MPLBACKEND", "agg")
# Tests compile more than they compute: two fifths of the compile time go without optimisation.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# Many tests compile the same programs, and a second run all those of the first.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
install_import_hook("dargmin", "beartype.beartype")

# A first example compiles, which no deadline should count; a failure has to come back on every run.
hypothesis.settings.register_profile("dargmin", deadline=None, derandomize=True)
hypothesis.settings.load_profile("dargmin")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Files share few programs, and all of them together take gigabytes."""
    yield
    jax.clear_caches()
