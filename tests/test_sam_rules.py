"""SAM in Hugging Face's layout; `test_sam_to_flax.py` has Meta's."""

import functools
import hashlib

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import assert_lines, told
from hugging_face import tiny_sam, vision
from transformers import SamConfig, SamModel

from prosam_jax import SamPredictor, cli
from prosam_jax.config import SAMConfig
from prosam_jax.convert import engine
from prosam_jax.convert.rules import sam as sam_rules
from prosam_jax.sam import Sam
from prosam_jax.weights import files
from torch_models import sam

PROMPTS = {
    "points": ("points",),
    "box": ("box",),
    "points_and_box": ("points", "box"),
    "mask": ("mask",),
    "all": ("points", "box", "mask"),
}
POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def convert(checkpoint, out):
    flags = ["--model", "tiny", "--checkpoint", str(checkpoint), "--out", str(out)]
    return cli.main(["weights", "convert", "sam", *map(str, flags)])


@pytest.fixture(scope="module", params=[0, 1])
def both(request, tmp_path_factory):
    """transformers' SAM and the same through its file and the command, with embedded pixels."""
    folder = tmp_path_factory.mktemp("huggingface")
    oracle = tiny_sam(request.param)
    oracle.save_pretrained(folder)
    assert convert(folder / "model.safetensors", folder / "sam.safetensors") == 0
    sam = SamPredictor.from_pretrained(folder / "sam.safetensors").model
    pixels = np.random.default_rng(2).standard_normal((2, 256, 256, 3)).astype(np.float32)
    expected = oracle.get_image_embeddings(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    got = jax.jit(lambda sam, x: sam.encode_image(x))(sam, pixels)
    return oracle, sam, expected, got


@functools.partial(jax.jit, static_argnames="multimask")
def decode(sam, embeddings, given, multimask):
    sparse, dense = sam.prompt_encoder(**given)
    return sam.decode(embeddings, sparse, dense, multimask_output=multimask)


def test_image_embeddings_are_transformers(both):
    _, _, expected, got = both
    np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), atol=5e-5)  # values up to 5


@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_are_transformers(both, kind):
    oracle, sam, torch_embeddings, embeddings = both
    names, multimask = PROMPTS[kind], kind in ("points", "all")
    rng = np.random.default_rng(3)
    points = rng.uniform(0, 256, (2, 3, 2)).astype(np.float32)
    labels = rng.integers(0, 2, (2, 3)).astype(np.int32)
    boxes = np.sort(rng.uniform(0, 256, (2, 2, 2)), axis=1).reshape(2, 4).astype(np.float32)
    masks = 4 * rng.standard_normal((2, 64, 64, 1)).astype(np.float32)
    given, torch_given = {}, {}
    if "points" in names:
        given |= {"points": points, "labels": labels}
        torch_given["input_points"] = torch.from_numpy(points)[:, None]
        torch_given["input_labels"] = torch.from_numpy(labels)[:, None]
    if "box" in names:
        given["boxes"] = boxes
        torch_given["input_boxes"] = torch.from_numpy(boxes)[:, None]
    if "mask" in names:
        given["masks"] = masks
        torch_given["input_masks"] = torch.from_numpy(masks).permute(0, 3, 1, 2)
    expected = oracle(image_embeddings=torch_embeddings, **torch_given, multimask_output=multimask)
    got_masks, got_iou = decode(sam, embeddings, given, multimask)
    assert got_masks.shape == (2, 3 if multimask else 1, 64, 64)
    # measured:
    np.testing.assert_allclose(got_masks, expected.pred_masks[:, 0], atol=2e-5)
    np.testing.assert_allclose(got_iou, expected.iou_scores[:, 0], atol=1e-5)


def test_command_says_what_it_leaves_out(tmp_path, capsys):
    state = tiny_sam(0).state_dict()
    torch.save(state, tmp_path / "both.bin")
    assert convert(tmp_path / "both.bin", tmp_path / "sam.safetensors") == 0
    name = r"prompt_encoder\.shared_embedding\.positional_embedding"
    digest = hashlib.sha256((tmp_path / "both.bin").read_bytes()).hexdigest()
    assert_lines(
        capsys.readouterr().out,
        (tmp_path / "both.bin", digest),
        ("ignored 1", name, "shared_image_embedding.positional_embedding"),
        ("188 arrays", "2,834,400"),
        (tmp_path / "sam.safetensors",),
    )


@pytest.mark.parametrize("left_out", sam_rules.HF_POSITIONS)
def test_one_name_of_the_positions_is_enough(left_out, tmp_path):
    state = {n: x.clone() for n, x in tiny_sam(0).state_dict().items() if n != left_out}
    safetensors.torch.save_file(state, tmp_path / "one.safetensors")
    out = tmp_path / "sam.safetensors"
    assert convert(tmp_path / "one.safetensors", out) == 0
    expected = tiny_sam(0).state_dict()[left_out]
    with safetensors.safe_open(out, framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor(POSITIONS), expected)


def test_positions_that_differ_are_refused(tmp_path, capsys):
    state = {n: x.clone() for n, x in tiny_sam(0).state_dict().items()}
    state[sam_rules.HF_POSITIONS[1]][1, 5] += 1
    safetensors.torch.save_file(state, tmp_path / "two.safetensors")
    assert convert(tmp_path / "two.safetensors", tmp_path / "sam.safetensors") == 1
    words = tmp_path / "two.safetensors", *sam_rules.HF_POSITIONS, "download it again"
    told(capsys.readouterr().err, *words)
    assert not (tmp_path / "sam.safetensors").exists()


def test_both_layouts_have_the_same_parts():
    module = files.leaves(files.abstract(lambda rngs: Sam(SAMConfig.tiny(), rngs=rngs)))
    oracle = sam.build(SAMConfig.tiny(), 0)
    sources = oracle.state_dict(), dict(tiny_sam(0).named_parameters())
    for state, rules in zip(sources, (sam_rules.META_RULES, sam_rules.HF_RULES), strict=True):
        source = {name: x.detach().numpy() for name, x in state.items()}
        assert engine.convert(source, rules, (), module).keys() == module.keys()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("model", "count"), [("vit_b", 314), ("vit_h", 594)])
def test_rules_cover_the_published_sizes(model, count):
    cfg = SAMConfig.named(model)
    with torch.device("meta"):
        state = dict(SamModel(SamConfig(vision_config=vision(model))).named_parameters())
    source = {name: np.broadcast_to(np.float32(0), x.shape) for name, x in state.items()}
    specs = files.leaves(files.abstract(lambda rngs: Sam(cfg, rngs=rngs)))
    arrays = engine.convert(source, sam_rules.HF_RULES, (), specs)
    assert len(arrays) == len(source) == count
