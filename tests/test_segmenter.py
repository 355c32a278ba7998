"""The segmenter against the model it wraps, and what it says of mistakes."""

import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image
from small import prompt_encoder_file

import prosam_jax
from prosam_jax import Segmenter, model, resize
from prosam_jax.data.transforms import resize_image, resize_mask
from prosam_jax.errors import UserError
from prosam_jax.types import Episode
from prosam_jax.weights import pretrained

SIDE = 64
TARGETS = [(64, 64), (50, 81), (131, 47)]  # height, width


def picture(seed, height, width):
    """Noise on blocks, so that a mask of random networks has parts."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 200, (5, 4, 3)).repeat(-(-height // 5), 0).repeat(-(-width // 4), 1)
    noise = rng.integers(0, 56, (height, width, 3))
    return (blocks[:height, :width] + noise).astype(np.uint8)


def disc(height, width, y, x, radius):
    rows, cols = np.ogrid[:height, :width]
    return (rows - y) ** 2 + (cols - x) ** 2 < radius**2


REFERENCES = {
    "disc": [
        (picture(1, 90, 70), disc(90, 70, 40, 30, 22)),
        (picture(2, 64, 64), disc(64, 64, 20, 40, 15)),
    ],
    "rim": [
        (picture(3, 75, 75), ~disc(75, 75, 30, 40, 30)),
        (picture(4, 64, 99), ~disc(64, 99, 32, 50, 28)),
    ],
}
IMAGES = [picture(5 + i, *size) for i, size in enumerate(TARGETS)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of random numbers."""
    return prompt_encoder_file(tmp_path_factory.mktemp("model") / "shapes.safetensors")


@pytest.fixture(scope="module")
def seg(file):
    """Two classes, each shown twice; loaded as the default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pretrained.PACKAGED_ENCODERS, "prosam-shapes", file)
        made = Segmenter.from_pretrained()
    for label, pairs in REFERENCES.items():
        for image, mask in pairs:
            made.add_reference(image, mask=mask, label=label)
    assert made.classes == ("disc", "rim")
    return made


@pytest.fixture(scope="module")
def found(seg):
    return list(seg.segment(IMAGES, uncertainty=True, batch_size=4))


@pytest.mark.slow
def test_masks_are_the_models(seg, found):
    """Logits up to 1; scores and masks to float32's noise."""
    squares = [resize_image(x, SIDE) for x in IMAGES]
    predict = jax.jit(model.ProSAM.predict)
    low = []
    for pairs in REFERENCES.values():
        shown = np.stack([resize_image(image, SIDE) for image, _ in pairs])
        marked = np.stack([resize_mask(mask, SIDE) for _, mask in pairs])
        query = np.stack(squares)
        b = len(query)
        none = np.zeros((b, SIDE, SIDE), np.bool_)
        episode = Episode(
            np.stack([shown] * b), np.stack([marked] * b), query, none, none,
            np.zeros(b, np.int32), np.arange(b, dtype=np.int32), np.ones(b, np.bool_),
            np.full((b, 2), SIDE, np.int32),
        )  # fmt: skip
        low.append(predict(seg.model, episode))
    low = jnp.stack(low)  # classes, images
    for i, (image, one) in enumerate(zip(IMAGES, found, strict=True)):
        size = image.shape[:2]
        logits = resize.bilinear(low[:, i, :, :, None], size, align_corners=True)[..., 0]
        sure = np.abs(logits) > 1e-4
        assert one.masks.shape == (2, *size) and one.masks.dtype == np.bool_
        assert sure.mean() > 0.99 and 0.02 < one.masks.mean() < 0.98
        np.testing.assert_array_equal(one.masks[sure], (logits > 0)[sure])
        labels = np.where(logits.max(0) > 0, logits.argmax(0) + 1, 0)
        clear = (np.abs(logits[0] - logits[1]) > 1e-4) & sure.all(0)
        np.testing.assert_array_equal(one.label_map[clear], labels[clear])
        mask = low[:, i] > 0
        p = jax.nn.sigmoid(low[:, i])
        expected = (p * mask).sum((1, 2)) / jnp.where(mask, 1, p).sum((1, 2))
        np.testing.assert_allclose(one.expected_iou, expected, atol=1e-5)
        p = jax.nn.sigmoid(logits)
        bits = scipy.stats.entropy([p, 1 - p], base=2)
        np.testing.assert_allclose(one.uncertainty, bits, atol=1e-4)


@pytest.mark.slow
def test_a_batch_is_one_by_one(seg, found):
    (last,) = seg.segment([IMAGES[2]], uncertainty=True, batch_size=4)
    for name in ("masks", "label_map", "expected_iou", "uncertainty"):
        one, other = getattr(last, name), getattr(found[2], name)
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=name)
    both = list(seg.segment(iter([IMAGES[2]] * 5), batch_size=4))
    assert len(both) == 5 and both[4].uncertainty is None
    np.testing.assert_array_equal(both[4].masks, last.masks)


@pytest.mark.slow
def test_uncertainty_lies_between_its_ends(seg, found):
    for image, one in zip(IMAGES, found, strict=True):
        assert one.uncertainty.shape == (2, *image.shape[:2])
        assert 0 <= one.uncertainty.min() < one.uncertainty.max() <= 1
        assert one.uncertainty.max() > 0.5


@pytest.mark.slow
def test_every_mark_counts_and_the_last_set_stays(seg):
    image, mask = REFERENCES["disc"][0]
    marks = {
        "mask": mask,
        "points": [[30, 40], [25, 44]],
        "box": [8, 18, 53, 63],
        "scribble": disc(90, 70, 45, 30, 3),
    }
    ours = Segmenter(seg.model, SIDE)
    shown = {}
    for name, value in marks.items():
        ours.set_reference(image, **{name: value})
        shown[name] = np.asarray(ours._references["object"].mask)
        assert shown[name].shape[0] == 1
    # 64 pixels are 8 cells of the features: nearest for regions, coverage for points and strokes.
    np.testing.assert_array_equal(shown["mask"][0], resize_mask(resize_mask(mask, SIDE), 8))
    box = np.zeros((8, 8))
    box[2:6, 1:7] = 1
    np.testing.assert_array_equal(shown["box"][0], box)
    np.testing.assert_array_equal(np.argwhere(shown["points"][0]), [[3, 2], [3, 3]])
    assert 1 < (shown["scribble"] > 0).sum() <= 4
    ours.set_reference(Image.fromarray(image), mask=Image.fromarray(mask))
    np.testing.assert_array_equal(ours._references["object"].mask, shown["mask"])
    with pytest.raises(UserError, match="8 x 8"):
        ours.set_reference(image, box=[3, 3, 4, 4])
    np.testing.assert_array_equal(ours._references["object"].mask, shown["mask"])
    ours.reset()
    assert ours.classes == ()


@pytest.mark.slow
def test_pictures_of_an_iterable_come_one_by_one(seg, found):
    """No more than a batch is read ahead, and the references are those of the call."""
    ours = Segmenter(seg.model, SIDE)
    for image, mask in REFERENCES["disc"]:
        ours.add_reference(image, mask=mask)
    read = []

    def pictures():
        for i in range(9):
            read.append(i)
            yield IMAGES[i % 3]

    come = ours.segment(pictures(), batch_size=4)
    assert read == []
    ours.reset()
    first = next(come)
    assert len(read) == 4
    np.testing.assert_array_equal(first.masks[0], found[0].masks[0])
    assert first.classes == ("object",)
    assert len(list(come)) == 8 and len(read) == 9


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1, 4, 5])
@pytest.mark.parametrize("fault", ["nothing.png", RuntimeError("theirs")])
def test_what_comes_before_a_bad_picture_is_given(seg, before, fault):
    def pictures():
        yield from (IMAGES[i % 3] for i in range(before))
        if isinstance(fault, Exception):
            raise fault
        yield fault
        raise AssertionError("read on")

    come = seg.segment(pictures(), batch_size=4)
    for i in range(before):
        np.testing.assert_array_equal(next(come).masks, seg.segment(IMAGES[i % 3]).masks)
    wanted = (type(fault), "theirs") if isinstance(fault, Exception) else (UserError, "nothing.png")
    with pytest.raises(wanted[0], match=wanted[1]):
        next(come)
    assert list(come) == []


@pytest.mark.parametrize("wrong", [7, None, b"cat.jpg", {"cat.jpg": 1}])
def test_what_is_no_picture_is_said(seg, wrong):
    # Past the type checker of the tests, which users do not have.
    with pytest.raises(UserError, match=f"images.*{type(wrong).__name__}"):
        inspect.unwrap(Segmenter.segment)(seg, wrong)


@pytest.mark.slow
def test_mistakes_are_said(seg):
    with pytest.raises(UserError, match="set_reference"):
        Segmenter(seg.model, SIDE).segment(IMAGES[0])
    with pytest.raises(UserError, match="batch_size=0"):
        seg.segment(IMAGES, batch_size=0)
    with pytest.raises(UserError, match=r"images\[1\].*int64"):
        list(seg.segment([IMAGES[0], IMAGES[1].astype(np.int64)]))


@pytest.mark.slow
def test_name_is_imported_when_asked_for():
    code = (
        "import sys, prosam_jax\n"
        "assert 'jax' not in sys.modules\n"
        "assert prosam_jax.Segmenter.__module__ == 'prosam_jax.segmenter'\n"
        "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "Segmenter" in prosam_jax.__all__
