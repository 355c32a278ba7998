import numpy as np
import pytest

from prosam_jax.run_lengths import as_text, mask_of, run_lengths


def masks():
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = rng.integers(1, 300, 2).tolist()
        mask = rng.random((height, width)) < rng.choice([0, 0.001, 0.5, 0.999, 1])
        mask[: height // 2] = rng.random() < 0.5  # long runs, too
        yield mask


def test_masks_come_back():
    for mask in masks():
        counts = run_lengths(mask)
        assert sum(counts) == mask.size and all(counts[1:])
        np.testing.assert_array_equal(mask_of(counts, mask.shape), mask)


def test_a_run_goes_down_a_column_and_background_is_first():
    assert run_lengths(np.array([[False, True], [True, True]])) == [1, 3]
    assert run_lengths(np.array([[True, False], [False, False]])) == [0, 1, 3]


def test_text_is_that_of_pycocotools():
    codec = pytest.importorskip("pycocotools.mask")
    for mask in masks():
        theirs = codec.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        assert as_text(run_lengths(mask)) == theirs
