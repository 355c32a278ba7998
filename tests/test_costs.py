"""Operations, steps and hours of runs, against formulas and figures measured elsewhere."""

import ast
import itertools
import json
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from small import small_config

from prosam_jax.cli import settings
from prosam_jax.comparison import costs
from prosam_jax.config import Config, SAMConfig, replaced
from prosam_jax.errors import UserError
from prosam_jax.sam.image_encoder import ImageEncoderViT
from prosam_jax.weights import files

SMALL = settings.recipe("shapes")
PASCAL = Config()


def with_samples(samples):
    return costs.operations(replaced(PASCAL, {"distribution.samples": samples})).step


@pytest.mark.parametrize(("name", "apart"), [("shapes", 0.06), ("tiny", 0.06), ("vit_b", 0.01)])
def test_the_encoders_formula_is_what_xla_counts(name, apart):
    """XLA adds functions of single numbers and leaves out products with a convolution's padding."""
    cfg = SAMConfig.named(name)
    graph, weights = nnx.split(files.abstract(lambda rngs: ImageEncoderViT(cfg, rngs=rngs)))
    image = jax.ShapeDtypeStruct((1, *cfg.image_size, 3), jnp.float32)
    counted = costs._operations(jax.jit(lambda w, x: nnx.merge(graph, w)(x)), weights, image)
    assert counted == pytest.approx(cfg.encoder_operations(), rel=apart)


def test_the_published_encoders():
    found = [SAMConfig.named(x).encoder_operations() for x in ("vit_b", "vit_l", "vit_h")]
    assert [round(x / 1e9) for x in found] == [942, 2851, 5666]  # docs/performance.md


@pytest.mark.slow
def test_a_step_has_the_operations_that_were_counted_for_its_parts():
    """docs/performance.md: 173 G from the heads on, 189 G for the prompt generator, each for two.

    XLA counted those in the step compiled for a CPU, where fusions compute some numbers twice, and
    PyTorch counted these, which lack all that is no product.
    """
    ten = with_samples(20) - with_samples(10)
    assert 2 * ten == pytest.approx(173e9, rel=0.08)
    assert 2 * (with_samples(10) - ten) == pytest.approx(189e9, rel=0.05)


@pytest.mark.slow
def test_every_sample_is_counted():
    one = with_samples(2) - with_samples(1)
    assert with_samples(10) - with_samples(2) == pytest.approx(8 * one, rel=0.01)


def test_the_backbone_has_the_operations_of_its_products():
    """VGG-16's convolutions; at 512 x 512 both last blocks have 32 x 32 positions."""
    blocks = [(3, 64, 64), (64, 128, 128), (128, 256, 256, 256)]
    blocks += [(256, 512, 512, 512), (512, 512, 512, 512)]
    products = 0
    for i, widths in enumerate(blocks):
        side = (512, 256, 128, 64, 32)[i]
        products += sum(9 * a * b for a, b in itertools.pairwise(widths)) * side**2
    counted, _ = costs._backbone("vgg16_bn", 512)
    assert counted == pytest.approx(2 * products, rel=0.02)


@pytest.mark.slow
def test_what_is_scored_besides_costs_more():
    plain = costs.operations(replaced(Config(), SMALL))
    assert plain.scoring == plain.validation
    more = {"eval.controls": True, "eval.pictures": 0}
    controlled = costs.operations(replaced(Config(), SMALL | more))
    assert controlled.validation == plain.validation
    # Three predictions, SAM alone and a click: 2 and 5 times the work of one.
    assert 2 * plain.scoring < controlled.scoring < 5 * plain.scoring
    merged = [
        costs.operations(replaced(Config(), SMALL | {"eval.samples": n})).scoring for n in (2, 4)
    ]
    assert plain.scoring < merged[0] < merged[1]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"train.steps": 7}, 7),
        ({"data.fold": 1}, 186_300),  # 3,726 images, 100 epochs, two at a time
        ({"data.name": "coco", "train.batch_size": 8, "data.fold": 0}, 274_000),
        ({"train.epochs": 1, "train.batch_size": 5}, 842),
        ({"data.root": "not/there", "train.epochs": 3}, 6312),
        (SMALL | {"train.steps": 0, "train.epochs": 2}, 2000),
    ],
    ids=str,
)
def test_steps(changes, steps):
    assert costs.steps(replaced(Config(), changes)) == steps


def test_steps_of_data_that_are_there_are_those_of_their_images(tmp_path):
    cfg = replaced(small_config(tmp_path), {"train.steps": 0, "train.epochs": 3})
    images = costs.datasets.episodes(cfg.data, "train", seed=0).fold.images
    assert costs.steps(cfg) == 3 * -(-len(images) // 2)


def test_epochs_of_unknown_data_get_one_line():
    cfg = replaced(Config(), {"data.name": "folder", "data.root": "not/there"})
    with pytest.raises(UserError, match=r"not/there.*--config\.train\.steps"):
        costs.steps(cfg)


def run(**changes):
    """A run of 100 steps of 2 episodes, with 3 validations of 10 episodes."""
    short = {"train.steps": 100, "train.eval_every": 40, "eval.episodes": 10}
    return replaced(Config(), SMALL | short | changes)


def test_the_work_of_a_run():
    cost, work = costs.operations(run()), costs.work(run())
    frozen = cost.encoder + 2 * cost.backbone
    assert work.embeddings == 0
    assert work.training == pytest.approx(200 * (frozen + cost.step))
    assert work.validation == pytest.approx(30 * (frozen + cost.validation))
    assert work.scoring == pytest.approx(10 * (frozen + cost.scoring))
    assert costs.hours(run(), 1e9) == pytest.approx(sum(work) / 1e9 / 3600)
    assert costs.work(run(**{"train.eval_every": -1})).validation == 0


def test_a_cache_has_every_target_once():
    cost, work = costs.operations(run()), costs.work(run(**{"cache.dir": "features"}))
    assert work.embeddings == (2000 + 10) * cost.encoder
    assert work.training == pytest.approx(200 * (2 * cost.backbone + cost.step))


@pytest.mark.slow
def test_controls_show_references_of_a_wrong_class():
    changes = {"eval.controls": True, "data.shots": 3, "eval.seeds": 2}
    cost, work = costs.operations(run(**changes)), costs.work(run(**changes))
    assert work.scoring == pytest.approx(20 * (cost.encoder + 7 * cost.backbone + cost.scoring))


def write_log(folder, *lines):
    folder.mkdir(exist_ok=True)
    text = [json.dumps({"step": at, "train/episodes_per_s": rate}) for at, rate in lines]
    (folder / "metrics.jsonl").write_text("".join(f"{x}\n" for x in text))
    return folder


def test_a_run_under_way_is_predicted_from_its_own_rate(tmp_path):
    cfg, work = run(), costs.work(run())
    assert costs.remaining(cfg, tmp_path / "none", 1e9) == costs.hours(cfg, 1e9)
    episode = work.training / 200
    workdir = write_log(tmp_path / "run", (20, 0.5), (30, 4), (50, 5))  # the first one compiles
    left = 50 * 2 * episode + work.validation * 2 / 3 + work.scoring
    assert costs.remaining(cfg, workdir, 1e9) == pytest.approx(left / (4 * episode) / 3600)
    workdir = write_log(tmp_path / "run", (100, 4))
    left = work.scoring / (4 * episode) / 3600
    assert costs.remaining(cfg, workdir, 1e9) == pytest.approx(left)


def test_the_rate_is_a_share_of_that_of_products(monkeypatch):
    rates = iter([3e9, 5e9, 4e9, 1e9, 2e9])
    monkeypatch.setattr(costs.platforms, "matmul", lambda *_: lambda: next(rates))
    assert costs.rate_reached("float32") == costs.REACHED * 5e9


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=() if x in ("coco", "pascal_vgg16") else pytest.mark.exhaustive)
        for x in settings.recipes()
        if x.startswith(("coco", "pascal"))
    ],
)
def test_the_hours_in_recipes_are_the_computed_ones(name):
    text = " ".join(ast.get_docstring(ast.parse(settings.recipes()[name].read_text())).split())
    told = re.search(
        r"One H200 would take (\S+) to (\S+) hours a fold in bfloat16, (\S+) to (\S+) with", text
    )
    cfg = replaced(Config(), settings.recipe(name))
    plain, cached = (
        [
            costs.hours(replaced(cfg, {"cache.dir": folder, "data.fold": fold}), 230e12)
            for fold in range(4)
        ]
        for folder in ("", "features")
    )
    found = [min(plain), max(plain), min(cached), max(cached)]
    assert [float(x) for x in told.groups()] == pytest.approx(found, rel=0.06)  # two digits
