"""Strict settings for every test: four devices, no rank promotion, shapes and types checked."""

import importlib.metadata
import importlib.util
import os
import re

# Most of a test's time is compilation. Without LLVM's own optimisation it takes less than half, and
# what XLA itself does to a program stays as it is for users. XLA's older code for fusions takes
# less again; its flag is for the pinned version, because XLA ends at one that it does not know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jax").startswith("0.10."),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests and processes compile the same, and a user's folder is not theirs.
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": os.path.join(os.path.dirname(__file__), "../.pytest_cache/jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}

import collections
import pathlib

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

from prosam_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"

# `make test-newest` has no PyTorch: files of tests that import it are left out, and tests marked
# "torch" are skipped.
HAS_TORCH = importlib.util.find_spec("torch") is not None
USES_TORCH = re.compile(
    r"^(from|import) (torch|torch_models|segment_anything|transformers|benchmarks)\b"
    r"|^(from|import) (golden_modules|hugging_face|sam_pairs)\b"
    r"|^from prosam_jax(\.convert| import .*convert)|^import efficientnet",
    re.MULTILINE,
)
collect_ignore = [
    str(file)
    for file in sorted((ROOT / "tests").glob("test_*.py"))
    if not HAS_TORCH and USES_TORCH.search(file.read_text())
]


# All that handles arrays. For good, not as a context: the tests import it later.
install_import_hook(
    [
        f"prosam_jax.{name}"
        for name in (
            "backbone",
            "curvature",
            "data",
            "equations",
            "equations_fast",
            "feature_cache",
            "images",
            "inference",
            "layers",
            "model",
            "prompt",
            "resize",
            "run_lengths",
            "sam",
            "segment_files",
            "segmenter",
            "training",
            "types",
        )
    ],
    "typecheck.checked",
)

# No test asks the real hub; those that need one have it on this machine (`fake_hub`).
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # the discard port, where nothing listens

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that no worker is left alone with one of them at the end."""
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker("slow")
        if not HAS_TORCH and item.get_closest_marker("torch"):
            item.add_marker(pytest.mark.skip(reason="PyTorch is not installed"))
    slow = collections.Counter(x.path for x in items if x.get_closest_marker("slow"))
    items.sort(key=lambda x: -slow[x.path])


def told(error, *words):
    """What a user relies on of an error: one line that names the value, and what mends it.

    Args:
        error: What `pytest.raises` gave, or all that a command wrote to stderr.
        words: Values, files, settings and commands that stand in it, in any order.
    """
    if isinstance(error, str):
        assert error.startswith("error: ") and error.endswith("\n"), error
        message = error.removesuffix("\n")
    else:
        assert isinstance(error.value, UserError)
        message = str(error.value)
    assert_lines(message, words)


def assert_lines(text, *lines):
    """Of each line of a report, in order, words that stand in it."""
    for line, words in zip(text.splitlines(), lines, strict=True):
        for word in words:
            assert str(word) in line, f"{word!s} is not in: {line}"


@pytest.fixture
def golden():
    """Opens `tests/golden/<name>.npz` as a dict of arrays."""

    def load(name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            return dict(file)

    return load


@pytest.fixture
def outside_data():
    """Folder of real images and further reference numbers; skips where it is not given."""
    folder = os.environ.get("PROSAM_TEST_DATA", "")
    if not folder:
        pytest.skip("PROSAM_TEST_DATA names no folder of real images")
    return pathlib.Path(folder)
