"""FSS-1000: its classes, masks and episodes, and what `prosam prepare fss` says of its files."""

import dataclasses
import hashlib
import zipfile

import fake_fss
import numpy as np
import pytest
from conftest import assert_lines, told
from fake_fss import OBJECT, SIZE
from PIL import Image

from prosam_jax import cli
from prosam_jax.config import Config, DataConfig
from prosam_jax.data import datasets
from prosam_jax.data.datasets import fss
from prosam_jax.data.datasets.fss import CLASSES, FSS, FSS_1000, fss_index
from prosam_jax.data.folds import describe, in_coco
from prosam_jax.data.prepare import fss as prepare_fss
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate
from prosam_jax.training.loop import Trainer

FIRST = ("ac_wall", "ab_wheel", "abe's_flyingfish")  # of each split


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return fake_fss.write_fss(tmp_path_factory.mktemp("fss") / "FSS-1000" / "data")


def _episodes(root, split, **changes):
    cfg = DataConfig(name="fss", root=str(root), image_size=32, **changes)
    return datasets.episodes(cfg, split, seed=7)


@pytest.mark.parametrize(
    ("split", "first", "last", "digest"),
    [
        # Of the lists as HSNet has them, but sorted: a name per line.
        ("train", 1, 520, "4e236fa8eda2543a988f734f8ea728a6f321bb426ec79cc121c5f4f115f41f10"),
        ("val", 521, 760, "bae6fbf5aa020ce4e589b76c51da21cc9b77970877579612e0a0d3c4b43688b0"),
        # The authors' fss_test_set.txt has the same names.
        ("test", 761, 1000, "0efbe526c0dd445b580de07cae179df51fffc91255599e96b13d8b16e7e04c0c"),
    ],
)
def test_the_classes_are_those_of_the_published_lists(split, first, last, digest):
    names = CLASSES[split]
    lines = "".join(f"{name}\n" for name in names)
    assert hashlib.sha256(lines.encode()).hexdigest() == digest
    index = fss_index(split)
    assert index.classes == tuple(range(first, last + 1)) and list(index.class_names) == names
    assert all(len(ids) == 10 for ids in index.entries.values())
    assert describe(index) == f"FSS-1000 {split}: {10 * len(names):,} images"


def test_no_class_is_in_two_splits():
    assert len(set(FSS_1000.class_names)) == 1000
    assert FSS_1000.novel == (tuple(range(761, 1001)),)


def test_classes_are_those_of_other_benchmarks_under_their_names():
    assert in_coco(["traffic_light", "motorbike"]) == ["traffic light", "motorcycle"]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_a_mask_is_cut_at_half_whatever_its_form(tmp_path, mode):
    level = 255 if mode in "1P" else 128
    mask = fake_fss.mask(level).convert(mode)
    folder = FSS(fake_fss.write_fss(tmp_path / "x", ["zebra"]))
    fake_fss.replace(folder.mask_path("zebra/10"), mask)
    expected = np.zeros(SIZE, np.uint16)
    expected[OBJECT] = number = FSS_1000.class_names.index("zebra") + 1
    assert folder.class_name(number) == "zebra"
    np.testing.assert_array_equal(folder.labels("zebra/10"), expected)
    fake_fss.replace(folder.mask_path("zebra/10"), fake_fss.mask(127))
    assert not folder.labels("zebra/10").any()


def test_an_episode_shows_one_class_in_other_pictures(root):
    source = _episodes(root, "train", shots=2)
    number = 255  # of the others' labels, the pixels to ignore
    at = next(i for i in range(len(source)) if source.spec(i).class_id == number)
    spec, episode = source.spec(at), source[at]
    name = FSS_1000.class_names[number - 1]
    names = [image_id.partition("/")[0] for image_id in (spec.target_id, *spec.reference_ids)]
    assert names == [name] * 3 and spec.target_id not in spec.reference_ids
    height, width = SIZE
    drawn = np.zeros(SIZE, bool)
    drawn[OBJECT] = True
    steps = np.arange(32)
    resized = drawn[steps * height // 32][:, steps * width // 32]
    np.testing.assert_array_equal(episode.target_mask, resized)
    np.testing.assert_array_equal(episode.reference_mask, np.stack([resized] * 2))
    assert not episode.target_ignore.any() and episode.class_id == number


@pytest.mark.parametrize(("split", "n"), [("train", 5200), ("val", 2400), ("test", 2400)])
def test_each_picture_of_a_split_is_the_target_once(root, split, n):
    source = _episodes(root, split)
    specs = [source.spec(i) for i in range(len(source))]
    wanted = {f"{name}/{k}" for name in CLASSES[split] for k in range(1, 11)}
    assert len(specs) == n and {spec.target_id for spec in specs} == wanted
    # Also a short list shows many classes, although the names begin with them.
    assert len({spec.class_id for spec in specs[:100]}) > 60


@pytest.mark.slow
def test_a_run_is_validated_and_evaluated_on_different_classes(root):
    cfg = Config.from_dict(
        {
            "data": {"name": "fss", "root": str(root), "image_size": 64},
            "sam": {"model": "tiny", "weights": "random", "image_size": 64},
            "backbone": {"name": "tiny", "weights": "random"},
            "train": {"steps": 2},
            "eval": {"episodes": 5},
        }
    )
    trainer = Trainer(cfg)
    tested = evaluate.test_episodes(cfg)
    found = [source.fold.class_names for source in (trainer.source, trainer.test, tested)]
    assert found == [tuple(CLASSES[split]) for split in ("train", "val", "test")]
    assert len(trainer.test) == len(tested) == 5


@pytest.mark.parametrize("place", fss.PLACES)
def test_the_classes_are_found_where_archives_and_programs_have_them(tmp_path, place):
    assert fss.find(str(tmp_path)) is None
    fake_fss.write_fss(tmp_path / "FSS" / place, ["zebra"])
    (tmp_path / "FSS" / "splits").mkdir()
    assert fss.find(str(tmp_path / "FSS")) == FSS(tmp_path / "FSS" / place)


def test_what_does_not_fit_is_named(root, tmp_path):
    for changes, words in (
        ({"data.root": ""}, ("data.root", "prosam prepare fss --root")),
        ({"data.root": str(tmp_path)}, (tmp_path, "ac_wall", "prosam prepare fss --root")),
        ({"data.shots": 10}, ("11 images", "data.shots")),
    ):
        given = {name.removeprefix("data."): value for name, value in changes.items()}
        with pytest.raises(UserError) as error:
            _episodes(**{"root": root, "split": "test", **given})
        told(error, *words)
    part = fake_fss.write_fss(tmp_path / "part", CLASSES["test"][:-1])
    (part / "arrow" / "3.png").unlink()
    with pytest.raises(UserError) as error:
        _episodes(part, "test")
    told(error, part, "21 files", part / "arrow/3.png", "prosam prepare fss --root")
    for name, value in (("fold", 1), ("val_list", "test"), ("decode", "fast")):
        with pytest.raises(UserError) as error:
            Config.from_dict({"data": {"name": "fss", "root": str(root), name: value}})
        told(error, f"data.{name}", "data.name", "fss")


@pytest.fixture
def few(monkeypatch):
    """One class of each split, as if there were no others."""
    monkeypatch.setattr(
        prepare_fss,
        "fss_index",
        lambda split: dataclasses.replace(
            fss_index(split), entries=dict(list(fss_index(split).entries.items())[:1])
        ),
    )


def _prepare(root, capsys):
    status = cli.main(["prepare", "fss", "--root", str(root)])
    return status, *capsys.readouterr()


def test_the_archive_is_unpacked_and_what_lacks_is_added(tmp_path, capsys, few):
    source = fake_fss.write_fss(tmp_path / "source", FIRST)
    with zipfile.ZipFile(tmp_path / "fewshot_data.zip", "w") as file:
        for path in sorted(source.rglob("*.*g")):
            file.write(path, f"fewshot_data/fewshot_data/{path.relative_to(source)}")
        file.writestr("fewshot_data/fewshot_data/ac_wall/10.jpeg", b"a stray file")
        file.writestr("__MACOSX/fewshot_data/ac_wall/._1.jpg", b"no picture")
    folder = tmp_path / "fewshot_data"
    status, first, error = _prepare(tmp_path, capsys)
    assert status == 0, error
    summary = (folder, "1 for train, 1 for val, 1 for test", "bad files: 0;", "are: 0")
    assert_lines(first, summary, (f"--config fss --config.data.root={folder} ",))
    files = sorted(f"{c}/{n}.{end}" for c in FIRST for n in range(1, 11) for end in ("jpg", "png"))
    assert sorted(str(x.relative_to(folder)) for x in folder.rglob("*.*")) == files
    np.testing.assert_array_equal(np.asarray(FSS(folder).image("ac_wall/1")), _pixels(source))
    (folder / "ab_wheel" / "7.png").unlink()
    assert _prepare(tmp_path, capsys) == (0, first, "")
    (tmp_path / "fewshot_data.zip").unlink()
    assert _prepare(folder, capsys) == (0, first, "")


def _pixels(source):
    with Image.open(source / "ac_wall" / "1.jpg") as image:
        return np.asarray(image)


def test_bad_and_odd_files_are_told_apart(tmp_path, capsys, few):
    root = fake_fss.write_fss(tmp_path / "x", FIRST[:2])
    (root / "ac_wall" / "2.png").unlink()
    damaged = root / "ac_wall" / "5.jpg"
    damaged.unlink()
    damaged.write_bytes(b"\xff\xd8 no more")
    wall = fake_fss.mask().convert("RGB").resize((32, 24), Image.Resampling.NEAREST)
    fake_fss.replace(root / "ab_wheel" / "1.png", wall)
    fake_fss.replace(root / "ab_wheel" / "2.png", fake_fss.mask(0))
    fake_fss.replace(root / "ab_wheel" / "3.png", fake_fss.picture(3))
    soft = fake_fss.mask().resize((160, 120)).resize((16, 12), Image.Resampling.BILINEAR)
    fake_fss.replace(root / "ab_wheel" / "4.png", soft)  # it has edges of gray
    status, out, error = _prepare(root, capsys)
    assert (status, error) == (1, "")
    assert_lines(
        out,
        (root / "ac_wall/2.png", "is missing"),
        (root / "abe's_flyingfish", "none of its 10 pairs"),
        (damaged, "cannot read"),
        (root / "ab_wheel/1.png", "32 x 24", "16 x 12"),
        (root / "ab_wheel/2.png", "shows no object"),
        (root / "ab_wheel/3.png", "not white on black"),
        (root, "bad files: 3;", "are: 3"),
    )


def test_without_folder_and_archive_it_says_what_to_get(tmp_path, capsys, few):
    status, out, error = _prepare(tmp_path, capsys)
    assert (status, out) == (1, "")
    told(error, tmp_path, "ac_wall", "fewshot_data.zip", "https://github.com/HKUSTCV/FSS-1000")
    (tmp_path / "fewshot_data.zip").write_bytes(b"PK no archive")
    status, out, error = _prepare(tmp_path, capsys)
    assert (status, out) == (1, "")
    told(error, tmp_path / "fewshot_data.zip", "delete it and get it again")
