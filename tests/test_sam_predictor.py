import dataclasses
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import check_line
from PIL import Image
from sam_pairs import CFG, pair
from segment_anything import SamPredictor as TorchPredictor

import prosam_jax
from prosam_jax import SamPredictor
from prosam_jax.config import SAMConfig
from prosam_jax.errors import UserError
from prosam_jax.sam import Sam, predictor
from prosam_jax.sam.transforms import ResizeLongestSide
from prosam_jax.weights import files

SQUARE = dataclasses.replace(CFG, image_size=(144, 144), depth=2)  # as stock SAM
SIZES = {
    "portrait": (301, 217),
    "landscape": (90, 205),
    "small": (37, 61),
    "fits": (144, 100),
    "wide": (11, 143),
}
PROMPTS = {
    "+".join(names) or "nothing": names
    for n in range(4)
    for names in itertools.combinations(("points", "box", "mask"), n)
}


def picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prompts(seed, size, names, clicks=3):
    rng = np.random.default_rng(seed)
    height, width = size
    given = {}
    if "points" in names:
        given["point_coords"] = rng.uniform(-5, (width + 5, height + 5), (clicks, 2))
        given["point_labels"] = rng.integers(0, 2, clicks)
    if "box" in names:
        given["box"] = np.sort(rng.uniform(0, (width, height), (2, 2)), axis=0).ravel()
    if "mask" in names:
        given["mask_input"] = 4 * rng.standard_normal((1, 36, 36)).astype(np.float32)
    return given


def predictors(seed):
    oracle, sam = pair(SQUARE, seed)
    return TorchPredictor(oracle), SamPredictor(sam)


@pytest.fixture(scope="module")
def ready():
    """A predictor with a 90 x 205 image."""
    made = SamPredictor(pair(SQUARE, 0)[1])
    made.set_image(picture(0, 90, 205))
    return made


def compilations():
    return predictor._encode._cache_size(), predictor._decode._cache_size()


def check(oracle, ours, given, multimask):
    """Logits up to 3; measured differences at most 1e-5, low resolution 5e-6, IoU 1.1e-6."""
    settings = {"multimask_output": multimask, "return_logits": True}
    expected, got = oracle.predict(**given, **settings), ours.predict(**given, **settings)
    assert len(got[0]) == (3 if multimask else 1)
    for x, y, atol in zip(got, expected, (3e-5, 1e-5, 2e-5), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(x, marks=pytest.mark.slow) for x in SIZES if x != "small")]
)
def test_every_mix_of_prompts_is_segment_anythings(name):
    which = list(SIZES).index(name)
    oracle, ours = predictors(which % 2)
    image = picture(which, *SIZES[name])
    oracle.set_image(image)
    ours.set_image(image)
    for i, names in enumerate(PROMPTS.values()):
        check(oracle, ours, prompts(i, SIZES[name], names), bool((i + which) % 2))


@pytest.mark.parametrize("multimask", [True, False], ids=["multi", "single"])
def test_masks_are_segment_anythings(multimask):
    oracle, ours = predictors(0)
    image = picture(0, *SIZES["portrait"])
    oracle.set_image(image)
    ours.set_image(image)
    given = {**prompts(0, SIZES["portrait"], ("points", "box")), "multimask_output": multimask}
    logits, *_ = oracle.predict(**given, return_logits=True)
    masks, *_ = ours.predict(**given)
    sure = np.abs(logits) > 3e-5
    assert masks.dtype == np.bool_ and sure.mean() > 0.999
    np.testing.assert_array_equal(masks[sure], logits[sure] > 0)


@pytest.mark.parametrize("clicks", [0, 1, 2, 4, 5])
def test_any_number_of_clicks_is_segment_anythings(clicks):
    oracle, ours = predictors(1)
    image = picture(3, *SIZES["portrait"])
    oracle.set_image(image)
    ours.set_image(image)
    for names in (("points",), ("points", "box")):
        check(oracle, ours, prompts(clicks, SIZES["portrait"], names, clicks), True)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_embedding_is_segment_anythings(image_format):
    oracle, ours = predictors(0)
    image = picture(1, *SIZES["landscape"])
    oracle.set_image(image, image_format)
    ours.set_image(image, image_format)
    expected = oracle.get_image_embedding().permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours.get_image_embedding(), expected, atol=5e-5)


@pytest.mark.parametrize("clicks", [1, 5])
def test_padding_changes_nothing(ready, clicks):
    given = prompts(5, (90, 205), ("points",), clicks)
    prompt = ResizeLongestSide.fit((90, 205), SQUARE).prompt(*given.values(), None, None)
    points, labels = (jnp.asarray(x)[None, :clicks] for x in (prompt.points, prompt.labels))

    @jax.jit
    def unpadded(sam, embeddings):
        sparse, dense = sam.prompt_encoder(points=points, labels=labels)
        assert sparse.shape[1] == clicks + 1
        return sam.decode(embeddings, sparse, dense, multimask_output=True)

    expected, expected_iou = unpadded(ready.model, ready.get_image_embedding())
    _, iou, low = ready.predict(**given)
    # the order of sums changes: measured 3e-6 of 2.8 and 8e-7 of 2.5
    np.testing.assert_allclose(low, expected[0], atol=1e-5)
    np.testing.assert_allclose(iou, expected_iou[0], atol=5e-6)


def test_masked_tokens_change_nothing():
    _, sam = pair(SQUARE, 0)
    rng = np.random.default_rng(0)
    image, dense = (rng.standard_normal((2, 9, 9, 256)).astype(np.float32) for _ in range(2))
    tokens = rng.standard_normal((2, 7, 256)).astype(np.float32)
    mask = np.array([[True, False, True, True, False, True, True], [False] * 7])
    others = np.where(mask[..., None], tokens, 9 - 100 * tokens)
    image, dense = jnp.asarray(image), jnp.asarray(dense)
    decode = jax.jit(lambda sam, tokens, mask: sam.decode(image, tokens, dense, token_mask=mask))
    masked, iou = decode(sam, tokens, mask)
    same, same_iou = decode(sam, others, mask)
    np.testing.assert_array_equal(masked, same)
    np.testing.assert_array_equal(iou, same_iou)
    every = np.ones_like(mask)
    assert np.abs(decode(sam, tokens, every)[0] - decode(sam, others, every)[0]).max() > 0.1


def test_new_sizes_and_prompts_compile_nothing():
    ours = SamPredictor(pair(SQUARE, 0)[1])
    ours.set_image(picture(0, 50, 60))
    ours.predict()
    before = compilations()
    for clicks, size in enumerate([(40, 70), (301, 55), (144, 144), (9, 8), (23, 31), (70, 20)]):
        ours.set_image(picture(0, *size))
        for names in PROMPTS.values():
            ours.predict(**prompts(0, size, names, clicks + 2))
    assert compilations() == before
    ours.predict(**prompts(0, (70, 20), ("points",), 9))
    ours.predict(**prompts(0, (70, 20), ("points", "box"), 16))
    assert compilations() == (before[0], before[1] + 1)


def test_predictors_of_one_architecture_share_compilations(ready):
    ready.predict()
    before = compilations()
    other = SamPredictor(pair(SQUARE, 1)[1])
    other.set_image(picture(0, 50, 60))
    _, iou, _ = other.predict()
    assert compilations() == before
    assert np.abs(iou - ready.predict()[1]).max() > 1e-3


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_batch_is_one_by_one(micro_batch):
    ours = SamPredictor(pair(SQUARE, 1)[1])
    sizes = list(SIZES.values())[:3]
    images = [picture(i, *size) for i, size in enumerate(sizes)]
    kinds = PROMPTS["points"], PROMPTS["box+mask"], PROMPTS["nothing"]
    given = [prompts(i, sizes[i], kinds[i]) for i in range(3)]
    expected = []
    for image, kwargs in zip(images, given, strict=True):
        ours.set_image(image)
        expected.append(ours.predict(**kwargs, return_logits=True))

    ours.set_image_batch(images, micro_batch=micro_batch)
    assert ours.get_image_embedding().shape == (3, 9, 9, 256)
    names = "point_coords", "point_labels", "box", "mask_input"
    columns = [[kwargs.get(name) for kwargs in given] for name in names]
    found = ours.predict_batch(*columns, return_logits=True)
    for got, one in zip(zip(*found, strict=True), expected, strict=True):
        for x, y, atol in zip(got, one, (2e-5, 5e-6, 1e-5), strict=True):
            np.testing.assert_allclose(x, y, atol=atol)


def test_batch_without_lists_is_without_prompts(ready):
    (masks,), (iou,), (low,) = ready.predict_batch(multimask_output=False)
    for x, y in zip((masks, iou, low), ready.predict(multimask_output=False), strict=True):
        np.testing.assert_array_equal(x, y)


def test_pillow_images_and_files_are_arrays(tmp_path):
    ours = SamPredictor(pair(SQUARE, 0)[1])
    array = picture(2, 40, 70)
    image = Image.fromarray(array)
    image.save(tmp_path / "image.png")
    ours.set_image_batch([array, image, tmp_path / "image.png", str(tmp_path / "image.png")])
    embeddings = ours.get_image_embedding()
    for i in range(1, 4):
        np.testing.assert_array_equal(embeddings[i], embeddings[0])
    with pytest.raises(FileNotFoundError, match="absent"):
        ours.set_image(tmp_path / "absent.png")


def test_photos_are_turned_so_that_points_are_those_that_a_viewer_shows(tmp_path):
    ours = SamPredictor(pair(SQUARE, 0)[1])
    array = picture(2, 40, 70)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
        ours.set_image_batch([np.rot90(array, -1), tmp_path / "photo.png", image])
    embeddings = ours.get_image_embedding()
    for i in (1, 2):
        np.testing.assert_array_equal(embeddings[i], embeddings[0])
    masks, *_ = ours.predict_batch()
    assert [x.shape for x in masks] == [(3, 70, 40)] * 3
    with pytest.raises(UserError, match=r"images\[1\].*int64"):
        ours.set_image_batch([array, array.astype(np.int64)])


def test_answers_are_prompts(ready):
    given = prompts(0, (90, 205), ("points",))
    _, iou, low = ready.predict(**given)
    best = low[[iou.argmax()]]
    again = ready.predict(**given, mask_input=best)[2]
    assert np.abs(again - low).max() > 1e-3
    low += 1  # they are the caller's
    np.testing.assert_array_equal(ready.predict(**given, mask_input=best[0])[2], again)


def test_lists_and_a_row_for_a_box_are_taken(ready):
    given = {"point_coords": [[3, 4], [50, 60]], "point_labels": [True, False]}
    expected = ready.predict(**given, box=[1, 2, 80, 70])
    given = {name: np.array(value) for name, value in given.items()}
    got = ready.predict(**given, box=np.array([[1.0, 2, 80, 70]]))
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_wrong_order_of_calls_is_named():
    ours = SamPredictor(pair(SQUARE, 0)[1])
    image = picture(0, 40, 70)
    for call in (ours.predict, ours.predict_batch, ours.get_image_embedding):
        with pytest.raises(UserError, match="set_image"):
            call()
    with pytest.raises(UserError, match="image_format='rgb'"):
        ours.set_image(image, "rgb")
    with pytest.raises(UserError, match="images"):
        ours.set_image_batch([])
    with pytest.raises(UserError, match="micro_batch=0"):
        ours.set_image_batch([image], micro_batch=0)
    ours.set_image_batch([image, image], micro_batch=1)
    with pytest.raises(UserError, match="predict_batch"):
        ours.predict()
    with pytest.raises(UserError, match="box_batch"):
        ours.predict_batch(box_batch=[None])
    ours.reset_image()
    with pytest.raises(UserError, match="set_image"):
        ours.predict()


def test_bfloat16_stays_near_float32(ready):
    cfg = dataclasses.replace(SQUARE, dtype="bfloat16")
    graph = nnx.graphdef(files.abstract(lambda rngs: Sam(cfg, rngs=rngs)))
    half = SamPredictor(nnx.merge(graph, nnx.state(ready.model)))
    half.set_image(picture(0, 90, 205))
    assert half.get_image_embedding().dtype == jnp.bfloat16
    given = prompts(0, (90, 205), ("points", "mask"))
    got, expected = (x.predict(**given, return_logits=True) for x in (half, ready))
    assert all(x.dtype == np.float32 for x in got)
    assert np.abs(got[0] - expected[0]).max() < 0.1  # of logits up to 3
    assert np.abs(got[1] - expected[1]).max() < 0.02


@pytest.mark.slow
def test_a_file_tells_its_architecture(tmp_path):
    specs = files.leaves(files.abstract(lambda rngs: Sam(SAMConfig.tiny(), rngs=rngs)))
    arrays = {n: np.full(x.shape, i, np.float32) for i, (n, x) in enumerate(specs.items())}
    path = tmp_path / "sam.safetensors"
    files.save(path, arrays, {"kind": "sam", "architecture": "tiny"})
    loaded = SamPredictor.from_pretrained(path, sam={"dtype": "bfloat16"}).model
    assert loaded.cfg == dataclasses.replace(SAMConfig.tiny(), dtype="bfloat16")
    for name, x in files.leaves(loaded).items():
        np.testing.assert_array_equal(x, arrays[name])
    for changes, named in (({"dtype": "float16"}, "sam.dtype"), ({"dtyp": 1}, "sam.dtyp")):
        with pytest.raises(UserError) as error:
            SamPredictor.from_pretrained(path, sam=changes)
        check_line(error, named)


def test_files_of_something_else_are_named(tmp_path):
    (tmp_path / "text").write_text("no weights")
    other = {"kind": "backbone", "architecture": "resnet50"}
    files.save(tmp_path / "other", {"x": np.zeros(2, np.float32)}, other)
    for name in ("text", "other"):
        with pytest.raises(UserError) as error:
            SamPredictor.from_pretrained(tmp_path / name)
        check_line(error, tmp_path / name)


@pytest.mark.slow
def test_name_is_imported_when_asked_for():
    code = (
        "import sys, prosam_jax\n"
        "assert 'jax' not in sys.modules\n"
        "assert prosam_jax.SamPredictor.__module__ == 'prosam_jax.sam.predictor'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="SamPredicter"):
        _ = prosam_jax.SamPredicter
