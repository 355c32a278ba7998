import jax.numpy as jnp
import numpy as np
import pytest
from conftest import told
from sam_pairs import CFG, pair

from prosam_jax.errors import UserError
from prosam_jax.sam.transforms import ResizeLongestSide, stack

FRAME = ResizeLongestSide.fit((90, 205), CFG)
NAMES = "point_coords", "point_labels", "box", "mask_input"


@pytest.mark.slow
@pytest.mark.parametrize("size", [(50, 300), (333, 190), (7, 9)])
def test_frames_of_models_that_are_not_square(size):
    _, sam = pair(CFG, 0)
    frame = ResizeLongestSide.fit(size, CFG)
    assert any(x == whole for x, whole in zip(frame.inner, CFG.image_size, strict=True))
    assert all(x <= whole for x, whole in zip(frame.inner, CFG.image_size, strict=True))
    logits = np.random.default_rng(0).standard_normal((2, 28, 48)).astype(np.float32)
    expected = sam.postprocess_masks(jnp.asarray(logits)[None], frame.inner, size)[0]
    np.testing.assert_allclose(frame.masks(logits), expected, atol=5e-6)


def test_lines_are_no_thinner_than_a_pixel():
    assert ResizeLongestSide.fit((1, 1000), CFG).inner == (1, 192)


@pytest.mark.parametrize(
    ("clicks", "with_box", "places"),
    [(0, False, 8), (0, True, 8), (7, False, 8), (8, True, 8), (8, False, 16), (33, True, 64)],
)
def test_points_are_padded_to_few_sizes(clicks, with_box, places):
    box = [1, 2, 3, 4] if with_box else None
    prompt = FRAME.prompt(np.ones((clicks, 2)), np.ones(clicks), box, None)
    padded = stack([prompt, FRAME.prompt(None, None, None, None)], (28, 48))
    assert padded.points.shape == (2, places, 2)
    assert padded.token_mask.shape == (2, places + 2)
    # without a box, SAM has a padding point of its own that does take part
    assert padded.token_mask.sum(axis=1).tolist() == [clicks + (2 if with_box else 1), 0]
    assert (padded.labels == 1).sum() == clicks
    assert not padded.has_mask.any()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"point_coords": [[1, 2]]}, ("point_coords", "point_labels")),
        ({"point_labels": [1]}, ("point_labels", "point_coords")),
        ({"point_coords": [1, 2], "point_labels": [1]}, ("point_coords", "2", "N x 2")),
        ({"point_coords": [[1, 2, 3]], "point_labels": [1]}, ("point_coords", "1 x 3", "N x 2")),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, ("point_labels", "2", "1")),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, ("point_labels=[2.0]",)),
        ({"point_coords": [[1, 2]], "point_labels": [-1]}, ("point_labels=[-1.0]",)),
        ({"point_coords": [[1, np.nan]], "point_labels": [1]}, ("point_coords", "NaN")),
        ({"point_coords": [["a", "b"]], "point_labels": [1]}, ("point_coords", "N x 2")),
        ({"box": [1, 2, 3]}, ("box", "3", "4")),
        ({"box": [[1, 2, 3, 4], [1, 2, 3, 4]]}, ("box", "2 x 4", "4")),
        ({"box": [9, 2, 3, 4]}, ("box=[9.0, 2.0, 3.0, 4.0]",)),
        ({"mask_input": np.zeros((1, 36, 35))}, ("mask_input", "1 x 36 x 35", "28 x 48")),
    ],
)
def test_wrong_prompts_are_named(given, words):
    with pytest.raises(UserError) as error:
        FRAME.prompt(*(given.get(name) for name in NAMES))
    told(error, *words)
