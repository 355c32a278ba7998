"""Which settings, weights and classes the file of a trained prompt encoder may be used with."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
from messages import check_line
from PIL import Image
from small import small_config

from prosam_jax import model, runs
from prosam_jax.config import Config, replaced
from prosam_jax.data import datasets
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate
from prosam_jax.training import loop
from prosam_jax.weights import files, prompt_encoder
from prosam_jax.weights.prompt_encoder import Trained


def _file(path, cfg, *, sam_sha=None, backbone_sha=None, **fields):
    """A file that says this and holds no prompt encoder."""
    frozen = {
        "sam": {"architecture": cfg.sam.model, "arrays_sha256": sam_sha},
        "backbone": {"architecture": cfg.backbone.name, "arrays_sha256": backbone_sha},
    }
    known = {"frozen": frozen, "version": "0.1.0", "merged_channels": 192} | fields
    prompt_encoder.save(path, {"x": jax.numpy.zeros(3)}, Trained(config=cfg, **known))
    return pathlib.Path(path)


@pytest.fixture
def weighed(tmp_path, monkeypatch):
    """Settings whose frozen weight files say where they come from."""
    monkeypatch.chdir(tmp_path)
    for kind, architecture, sha in (("sam", "tiny", "a" * 64), ("backbone", "resnet50", "b" * 64)):
        metadata = {"kind": kind, "architecture": architecture, "arrays_sha256": sha}
        files.save(f"{kind}.safetensors", {"x": np.zeros(2, np.float32)}, metadata)
    return Config.from_dict(
        {
            "sam": {"model": "tiny", "weights": "sam.safetensors"},
            "backbone": {"weights": "backbone.safetensors"},
        }
    )


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"distribution.name": "gaussian"}, ["distribution.name=student_t"]),
        ({"prompt.num_queries": 7}, ["prompt.num_queries=50"]),
        ({"prompt.num_heads": 8}, ["prompt.num_heads=4"]),
        ({"prompt.normalize_prior": True}, ["prompt.normalize_prior=False"]),
        ({"backbone.name": "vgg16"}, ["backbone.name=resnet50"]),
        ({"sam.model": "vit_b"}, ["sam.model=tiny"]),
        ({"sam.image_size": 128}, ["sam.image_size=0"]),
        (
            {"sam.model": "vit_l", "prompt.num_queries": 9},
            ["prompt.num_queries=50", "sam.model=tiny"],
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_named(weighed, changes, wanted):
    path = _file("p.safetensors", replaced(weighed, changes))
    with pytest.raises(UserError) as error:
        prompt_encoder.check_fit(path, weighed)
    held = [f"{name}={value}" for name, value in changes.items()]
    check_line(error, "p.safetensors", *held, *wanted)


def test_what_does_not_matter_may_differ(weighed):
    held = replaced(
        weighed, {"sam.dtype": "bfloat16", "distribution.nu": 3.0, "prompt.dropout": 0.1}
    )
    prompt_encoder.check_fit(_file("known", held, sam_sha="a" * 64, backbone_sha="b" * 64), weighed)
    prompt_encoder.check_fit(_file("unknown", held), weighed)
    prompt_encoder.check_fit(_file("half known", held, backbone_sha="b" * 64), weighed)


@pytest.mark.parametrize(("kind", "given"), [("sam", "a"), ("backbone", "b")])
def test_other_frozen_weights_are_refused(weighed, kind, given):
    path = _file("p.safetensors", weighed, **{f"{kind}_sha": "c" * 64})
    with pytest.raises(UserError) as error:
        prompt_encoder.check_fit(path, weighed)
    check_line(error, "p.safetensors", f"{kind}.weights", "c" * 64, given * 64)


def test_random_weights_are_those_of_their_seed(weighed):
    cfg = replaced(weighed, {"sam.weights": "random", "backbone.weights": "random", "seed": 4})
    path = _file("p", cfg, frozen=prompt_encoder.frozen_weights(cfg))
    prompt_encoder.check_fit(path, cfg)
    for given, named in (
        (replaced(cfg, {"seed": 5}), ["seed 5", "seed=4"]),
        (weighed, ["a" * 64, "sam.weights=random", "seed=4"]),
    ):
        with pytest.raises(UserError) as error:
            prompt_encoder.check_fit(path, given)
        check_line(error, *named)
    with pytest.raises(UserError) as error:
        prompt_encoder.check_fit(_file("q", weighed), cfg)
    check_line(error, "q", "sam.weights", "random")


def test_the_same_numbers_are_the_same_weights_whatever_their_source(weighed):
    metadata = {"kind": "sam", "architecture": "tiny"}
    checksums = []
    for source, value in (("a.pth", 1.0), ("b.safetensors", 1.0), ("a.pth", 2.0)):
        x = np.full(2, value, np.float32)
        files.save("w.safetensors", {"x": x}, metadata | {"source_name": source})
        checksums.append(files.metadata("w.safetensors", made_by="")["arrays_sha256"])
    assert checksums[0] == checksums[1] != checksums[2]


@pytest.mark.parametrize("classes", [None, ["bus"]], ids=["older file", "file"])
def test_another_fold_has_seen_the_test_classes(weighed, classes):
    path = _file("p", weighed, fold=1, benchmark="pascal", classes=classes)
    fold1, fold2, shapes = (
        replaced(weighed, {"data.fold": 1}),
        replaced(weighed, {"data.fold": 2}),
        replaced(weighed, {"data.name": "shapes"}),
    )
    prompt_encoder.check_fold(path, fold1)
    prompt_encoder.check_fold(path, shapes)
    with pytest.raises(UserError) as error:
        prompt_encoder.check_fold(path, fold2)
    check_line(error, "p", "fold 2", "data.fold=1")


def test_an_unknown_fold_must_be_given(weighed):
    path = _file("p", weighed)
    with pytest.raises(UserError) as error:
        runs.settings_of_file(path, {})
    check_line(error, path, "--config.data.fold")
    cfg = runs.settings_of_file(path, {"data.fold": 2, "data.name": "shapes"})
    assert (cfg.data.fold, cfg.data.name) == (2, "shapes")


def test_a_known_fold_is_kept(weighed):
    known = _file("known", weighed, fold=0, benchmark="pascal", classes=["bus"])
    assert runs.settings_of_file(known, {"data.root": "x"}).data.root == "x"
    with pytest.raises(UserError) as error:
        runs.settings_of_file(known, {"data.fold": 1})
    check_line(error, known, "data.fold=0")
    for changes in ({"data.name": "coco"}, {"train.learning_rate": 1.0}):
        with pytest.raises(UserError) as error:
            runs.settings_of_file(known, changes)
        check_line(error, *changes)
    moved = runs.settings_of_file(known, {"sam.weights": "elsewhere.safetensors"})
    assert moved.sam.weights == "elsewhere.safetensors"


CLASSES = ("cat", "dog", "fox", "owl")


def _own_folder(root, side):
    """Two pictures of each class."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for c, name in enumerate(CLASSES, 1):
        for i in range(2):
            mask = np.zeros((40, 40), np.uint8)
            mask[2 : 2 + side, 2:20] = c
            Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(root / f"images/{name}{i}.png")
            Image.fromarray(mask).save(root / f"masks/{name}{i}.png")
    return root


@pytest.fixture
def own(weighed, tmp_path):
    """Settings of a training on one folder, its prompt encoder's file, and another folder."""
    first, other = (_own_folder(tmp_path / name, side) for name, side in (("a", 9), ("b", 12)))
    data = {"data.name": "folder", "data.root": str(first), "data.novel": "fox,owl"}
    cfg = replaced(weighed, data)
    classes = list(datasets.episodes(cfg.data, "train", seed=0).fold.class_names)
    assert classes == [name for name in CLASSES if name not in ("fox", "owl")]
    path = _file("own.safetensors", replaced(cfg, {"data.root": ""}), fold=0, benchmark="folder",
                 classes=classes)  # fmt: skip
    return cfg, path, other


def _tested(cfg):
    return evaluate.test_episodes(cfg).fold.class_names


def _renamed(root):
    """A folder whose classes have other names."""
    names = (root / "classes.txt").read_text().split()
    (root / "classes.txt").write_text("".join(f"my {name}\n" for name in names))


def test_another_folder_may_be_scored_and_trained_on(own):
    cfg, path, other = own
    _renamed(other)
    weights = {"sam.weights": cfg.sam.weights, "backbone.weights": cfg.backbone.weights}
    changes = {"data.root": str(other), "data.novel": "my dog", **weights}
    there = replaced(cfg, changes)
    scored = runs.settings_of_file(path, changes)
    assert scored == replaced(there, {"prompt.weights": str(path)})
    prompt_encoder.check_fold(path, there)
    prompt_encoder.check_unseen(path, prompt_encoder.read(path).classes, _tested(there))
    by_fold = runs.settings_of_file(
        path, {"data.root": str(other), "data.novel": "", "data.fold": 2}
    )
    assert (by_fold.data.novel, by_fold.data.fold) == ("", 2)
    with pytest.raises(UserError) as error:
        runs.settings_of_file(path, {"data.root": str(other), "train.learning_rate": 1.0})
    check_line(error, "train.learning_rate")


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(
    ("changes", "named"),
    [({"data.novel": "dog"}, "dog"), ({"data.novel": "", "data.fold": 1}, "dog")],
    ids=str,
)
def test_classes_that_were_trained_on_are_not_tested(own, changes, named, moved, tmp_path):
    """In the folder itself, wherever it lies, with more pictures, or in another one."""
    cfg, path, other = own
    root = other
    if moved:
        root = tmp_path / "moved"
        shutil.move(cfg.data.root, root)
        shutil.copy(root / "images/dog0.png", root / "images/more.png")
        shutil.copy(root / "masks/dog0.png", root / "masks/more.png")
    given = {"data.root": str(root), **changes}
    scored = runs.settings_of_file(path, given)
    with pytest.raises(UserError) as error:
        runs.score_file(scored, tmp_path / "scored")
    check_line(error, path, named)
    same = runs.settings_of_file(path, {"data.root": str(root)})
    prompt_encoder.check_unseen(path, prompt_encoder.read(path).classes, _tested(same))


@pytest.mark.parametrize(
    ("benchmark", "fold", "classes", "seen"),
    [
        ("coco", 2, ["couch", "bus"], "bus"),
        ("coco", 2, ["tv", "dog"], None),
        ("folder", 0, ["person", "my bus"], None),
        ("folder", 0, ["car", "person"], "car"),
        ("coco", 2, None, None),
        ("pascal", 2, None, "fold 2"),
    ],
)
def test_a_training_begins_with_a_file_that_has_not_seen_the_test_classes(
    tmp_path, benchmark, fold, classes, seen
):
    cfg = small_config(tmp_path / "voc")  # tests bus and car
    data = {"data.name": benchmark, "data.fold": fold}
    known = {"benchmark": benchmark, "fold": fold, "classes": classes}
    path = _file(tmp_path / "begun.safetensors", replaced(cfg, data), **known)
    begins = replaced(cfg, {"prompt.weights": str(path)})
    with pytest.raises(UserError) as error:
        loop.Trainer(begins)
    # A file without a prompt encoder passes this check and fails at the next.
    check_line(error, path, seen or "random weights")


def test_voc_and_coco_name_the_same_classes(tmp_path):
    cfg = small_config(tmp_path / "voc", data={"fold": 0})  # tests aeroplane
    held = replaced(cfg, {"data.name": "coco", "data.fold": 1})
    known = {"benchmark": "coco", "fold": 1, "classes": ["person", "airplane"]}
    path = _file(tmp_path / "begun.safetensors", held, **known)
    with pytest.raises(UserError) as error:
        loop.Trainer(replaced(cfg, {"prompt.weights": str(path)}))
    check_line(error, path, "airplane", "data.fold")


def test_a_file_that_does_not_know_its_classes_keeps_its_fold(own):
    """As files of older versions do not."""
    cfg, _, other = own
    path = _file("old.safetensors", cfg, fold=0, benchmark="folder")
    prompt_encoder.check_fold(path, cfg)
    there = replaced(cfg, {"data.root": str(other), "data.novel": "dog"})
    with pytest.raises(UserError) as error:
        prompt_encoder.check_fold(path, there)
    check_line(error, path, "data.novel='fox,owl'")


def test_files_of_another_kind_are_named(weighed, tmp_path):
    def check(read, *named):
        with pytest.raises(UserError) as error:
            read()
        check_line(error, *named)

    read = prompt_encoder.read
    check(lambda: read("none.safetensors"), "none.safetensors", "prosam export")
    check(lambda: read("sam.safetensors"), "sam.safetensors", "prosam export")
    (tmp_path / "cut").write_bytes((tmp_path / "sam.safetensors").read_bytes()[:50])
    check(lambda: read("cut"), "cut")
    bare = {"kind": "prompt_encoder", "architecture": "vrp"}
    files.save("bare", {"x": np.zeros(2, np.float32)}, bare)
    check(lambda: read("bare"), "bare", "config", "merged_channels", "frozen", "prosam export")
    frozen = {kind: {"architecture": "x", "seed": 1} for kind in ("sam", "backbone")}
    later = bare | {"merged_channels": 3, "frozen": frozen, "version": "9", "config": {"novel": 1}}
    files.save("later", {"x": np.zeros(2, np.float32)}, later)
    check(lambda: read("later"), "later", "novel")
    hollow = _file("hollow", weighed)
    with pytest.raises(UserError, match=r"hollow.*distribution\.name=student_t"):
        model.load_prompt_encoder(hollow, weighed, 192)
