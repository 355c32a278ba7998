import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import told
from golden_recipe import unpack_bits

from prosam_jax.errors import UserError
from prosam_jax.evaluation import metrics
from prosam_jax.evaluation.metrics import confusion, scores


@pytest.mark.parametrize("case", ["ignore_on", "ignore_off", "no_ignore_key"])
def test_counts_and_percentages_are_the_references(golden, case):
    arrays = golden("evaluation")
    meta = json.loads(str(arrays["meta"]))
    pred, gt, ignore = (unpack_bits(arrays, x) for x in ("pred", "gt", "ignore"))
    if case != "ignore_on":
        ignore = np.zeros_like(ignore)
    found = np.asarray(jax.jit(confusion)(*map(jnp.asarray, (pred, gt, ignore))))
    tp, fp, fn, tn = found.T
    np.testing.assert_array_equal([tn, tp], arrays[f"{case}/inter"])
    np.testing.assert_array_equal([tn + fp + fn, tp + fp + fn], arrays[f"{case}/union"])
    for i, running in enumerate(arrays[f"{case}/running_miou_fbiou"]):
        part = slice((i + 1) * meta["bsz"])
        # The reference counts classes as 0 until they are seen.
        one = scores(found[part], arrays["class_id"][part], absent=meta["class_ids"])
        np.testing.assert_allclose(100 * one.miou, running[0], atol=1e-4)
        np.testing.assert_allclose(100 * one.fb_iou, running[1], atol=1e-4)
    assert list(one.per_class) == meta["class_ids"]


def test_pixels_add_up_before_the_division():
    counts = np.array([[1, 4, 5, 5], [9, 1, 0, 5], [0, 0, 0, 8]])
    one = scores(counts, np.array([3, 3, 4]))
    assert one.per_class == {3: 0.5, 4: 0.0}
    assert one.miou == 0.25
    assert one.fb_iou == pytest.approx((18 / 28 + 10 / 20) / 2)
    assert scores(counts, np.array([3, 3, 4]), absent=[3, 9]).miou == pytest.approx(0.5 / 3)


def test_rates_are_of_their_own_pixels_and_shares_of_all():
    one = scores(np.array([[30, 40, 10, 120]]), np.array([1]))
    assert one.rates == pytest.approx((30 / 40, 120 / 160, 40 / 160, 10 / 40))
    assert one.shares == pytest.approx((0.15, 0.2, 0.05, 0.6))
    nothing = scores(np.array([[0, 0, 0, 9]]), np.array([1]))
    assert nothing.rates == (0, 1, 0, 0)


def test_lists_count_equally():
    a = scores(np.array([[1, 1, 0, 0], [1, 0, 0, 0]]), np.array([1, 2]))
    b = scores(np.array([[0, 3, 1, 4]]), np.array([1]))
    both = metrics.mean([a, b])
    assert both.miou == pytest.approx((0.75 + 0) / 2)
    assert both.per_class == {1: 0.25, 2: 1.0}
    assert both.fb_iou == pytest.approx((a.fb_iou + b.fb_iou) / 2)
    assert sum(both.shares) == pytest.approx(1)


def test_nothing_has_no_score():
    with pytest.raises(UserError) as error:
        scores(np.zeros((0, 4), int), np.zeros(0, int))
    told(error, "no episode")
