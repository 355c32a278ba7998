import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import told
from golden_recipe import unpack_bits

from prosam_jax.errors import UserError
from prosam_jax.evaluation.metrics import Areas, IoU, areas


@pytest.mark.parametrize("case", ["ignore_on", "ignore_off", "no_ignore_key"])
def test_counts_and_percentages_are_the_references(golden, case):
    arrays = golden("evaluation")
    meta = json.loads(str(arrays["meta"]))
    pred, gt, ignore = (unpack_bits(arrays, x) for x in ("pred", "gt", "ignore"))
    if case != "ignore_on":
        ignore = np.zeros_like(ignore)
    found = jax.jit(areas)(*map(jnp.asarray, (pred, gt, ignore)))
    np.testing.assert_array_equal(found.intersection.T, arrays[f"{case}/inter"])
    np.testing.assert_array_equal(found.union.T, arrays[f"{case}/union"])
    iou, size = IoU(), meta["bsz"]
    for i, running in enumerate(arrays[f"{case}/running_miou_fbiou"]):
        part = slice(i * size, (i + 1) * size)
        iou.add(Areas(*(x[part] for x in found)), arrays["class_id"][part])
        scores = iou.scores()
        # Before every class was seen the reference counts the missing ones as 0.
        seen = len(scores.per_class) / len(meta["class_ids"])
        np.testing.assert_allclose(100 * scores.miou * seen, running[0], atol=1e-4)
        np.testing.assert_allclose(100 * scores.fb_iou, running[1], atol=1e-4)
    assert list(scores.per_class) == meta["class_ids"]


def test_areas_add_up_before_the_division():
    iou = IoU()
    iou.add(Areas(np.array([[5, 1]]), np.array([[10, 10]])), np.array([3]))
    iou.add(Areas(np.array([[5, 9], [8, 0]]), np.array([[10, 10], [8, 0]])), np.array([3, 4]))
    scores = iou.scores()
    assert scores.per_class == {3: 0.5, 4: 0.0}
    assert scores.miou == 0.25
    assert scores.fb_iou == pytest.approx((18 / 28 + 10 / 20) / 2)


def test_nothing_has_no_score():
    with pytest.raises(UserError) as error:
        IoU().scores()
    told(error, "no episode")
