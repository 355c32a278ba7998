import dataclasses
import errno
import json
import os
import pathlib
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import PROSAM, one_line, run, status_of
from fake_voc import write_voc
from flax import nnx
from messages import check_line
from small import flags, small_config

from prosam_jax.cli.cache import fill
from prosam_jax.config import CacheConfig, DataConfig, SAMConfig, replaced
from prosam_jax.data import datasets
from prosam_jax.data.datasets.pascal import pascal_episodes
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate
from prosam_jax.feature_cache.build import build, missing
from prosam_jax.feature_cache.cache import FeatureCache
from prosam_jax.feature_cache.entries import Entries
from prosam_jax.feature_cache.packing import Packed, pack, unpack
from prosam_jax.sam.build_sam import build_sam, embed
from prosam_jax.sam.model import Sam
from prosam_jax.weights import files

ARCH = dataclasses.replace(SAMConfig.tiny(), image_size=(64, 80), depth=1, global_attn_indexes=())
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
FACTS = {"encoder_sha256": "12ab", "sam": {"image_size": [64, 80], "dtype": "float32"}}
LIKE = Packed(np.zeros((1, 3, 4, 5), np.int8), np.zeros((1, 1, 1, 5), np.float32))


@pytest.fixture(scope="module")
def sam():
    return files.random(lambda rngs: Sam(ARCH, rngs=rngs), 0)


def _open(sam, root, dtype="float32"):
    return FeatureCache(CacheConfig(dir=str(root), dtype=dtype), sam)


def _flipped(data, at):
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


DAMAGE = {
    "cut short": lambda data: data[:-1],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "a bit of the numbers": lambda data: _flipped(data, -30),
    "a bit of a scale": lambda data: _flipped(data, -3),
    "a bit of the seal": lambda data: _flipped(data, 5),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entries_are_none(tmp_path, damage):
    entries = Entries(tmp_path, FACTS, LIKE)
    rng = np.random.default_rng(1)
    row = Packed(
        rng.integers(-127, 128, LIKE.values.shape).astype(np.int8),
        rng.random(LIKE.scale.shape, np.float32),
    )
    key = entries.key(IMAGES[0])
    assert entries.read(key) is None
    entries.write(key, row)
    jax.tree.map(np.testing.assert_array_equal, entries.read(key), row)
    assert entries.path(key).stat().st_size == entries.nbytes == 32 + 60 + 20
    assert not entries.damaged
    entries.path(key).write_bytes(DAMAGE[damage](entries.path(key).read_bytes()))
    assert entries.read(key) is None
    assert entries.damaged == {key}
    entries.write(key, row)
    jax.tree.map(np.testing.assert_array_equal, entries.read(key), row)
    assert not entries.damaged
    assert entries.count() == 1


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_has_no_end_is_no_entry(tmp_path, make):
    entries = Entries(tmp_path, FACTS, LIKE)
    key = entries.key(IMAGES[0])
    entries.write(key, LIKE)
    entries.path(key).unlink()
    make(entries.path(key))
    assert entries.read(key) is None
    assert entries.damaged == {key}


def test_entries_of_another_image_or_encoder_are_none(tmp_path):
    """Even where somebody put them in the place of the right one."""
    entries = Entries(tmp_path / "a", FACTS, LIKE)
    key, other = map(entries.key, IMAGES[:2])
    entries.write(key, LIKE)
    entries.path(other).parent.mkdir(exist_ok=True)
    shutil.copy(entries.path(key), entries.path(other))
    assert entries.read(other) is None
    changed = IMAGES[0].copy()
    changed[31, 31, 2] ^= 1
    same_bytes = IMAGES[0].reshape(16, 64, 3)
    foreign = Entries(tmp_path / "b", FACTS | {"encoder_sha256": "34cd"}, LIKE)
    keys = {entries.key(changed), entries.key(same_bytes), foreign.key(IMAGES[0]), key}
    assert len(keys) == 4
    shutil.copytree(entries.folder, foreign.folder)
    moved = foreign.path(foreign.key(IMAGES[0]))
    moved.parent.mkdir(exist_ok=True)
    shutil.copy(entries.path(key), moved)
    assert foreign.read(foreign.key(IMAGES[0])) is None
    assert foreign.damaged == {foreign.key(IMAGES[0])}


def test_weights_size_and_types_have_folders_of_their_own(tmp_path, sam):
    caches = [_open(sam, tmp_path, dtype) for dtype in ("float32", "bfloat16", "int8")]
    for change in ({"image_size": (80, 64)}, {"dtype": "bfloat16"}, {"num_heads": 1}):
        other = nnx.merge(*nnx.split(sam))
        other.cfg = dataclasses.replace(ARCH, **change)
        caches.append(_open(other, tmp_path))
    assert len({cache.entries.folder for cache in caches}) == 6
    kernel = sam.mask_decoder.iou_prediction_head.layers[0].kernel
    kernel[...] = kernel[...] + 1  # what does not make embeddings does not count
    assert _open(sam, tmp_path).entries.folder == caches[0].entries.folder
    kernel = sam.image_encoder.blocks[0].mlp.lin1.kernel
    before = kernel[...]
    kernel[...] = before.at[0, 0].add(1e-6)
    assert _open(sam, tmp_path).entries.folder != caches[0].entries.folder
    kernel[...] = before


def test_what_is_missing_or_damaged_is_computed_and_kept(tmp_path, sam):
    expected = np.asarray(jax.jit(embed)(sam, IMAGES))
    cache = _open(sam, tmp_path)
    first = np.asarray(cache(IMAGES))
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-6)
    assert cache.counts == {"read": 0, "computed": 3}
    paths = [cache.entries.path(cache.entries.key(image)) for image in IMAGES]
    paths[0].unlink()
    paths[2].write_bytes(DAMAGE["a bit of the numbers"](paths[2].read_bytes()))
    again = _open(sam, tmp_path)
    np.testing.assert_array_equal(again(IMAGES), first)
    assert again.counts == {"read": 1, "computed": 2}
    np.testing.assert_array_equal(again(IMAGES), first)
    assert again.counts == {"read": 4, "computed": 2}
    assert "4 embeddings read, 2 computed" in again.summary()
    about = json.loads((cache.entries.folder / "about.json").read_text())
    assert about["sam"]["image_size"] == [64, 80]
    assert cache.entries.folder.name.startswith("float32-4x5-")


@pytest.mark.parametrize(("dtype", "rms"), [("float32", 0.0), ("bfloat16", 0.002), ("int8", 0.008)])
def test_types_err_by_no_more_than_they_say(dtype, rms):
    x = np.random.default_rng(2).normal(size=(3, 16, 20, 7)).astype(np.float32)
    x *= np.geomspace(1e-3, 1e2, 7, dtype=np.float32).reshape(1, 1, 1, 7)
    x[1, :, :, 2] = 0
    error = np.asarray(unpack(pack(jnp.asarray(x), dtype), "float32")) - x
    largest = np.abs(x).max((1, 2), keepdims=True)
    bound = {"float32": 0 * x, "bfloat16": np.abs(x) / 256, "int8": largest / 253.9 + 0 * x}
    assert (np.abs(error) <= bound[dtype]).all()
    assert np.sqrt((error**2).sum() / (x**2).sum()) <= rms


def test_computed_and_read_are_the_same_numbers(tmp_path, sam):
    cache = _open(sam, tmp_path, "int8")
    first, second = cache(IMAGES), cache(IMAGES)
    assert cache.counts == {"read": 3, "computed": 3}
    np.testing.assert_array_equal(first, second)
    assert first.dtype == jnp.float32


def test_a_disk_without_room_does_not_end_a_run(tmp_path, sam, monkeypatch, capsys):
    cache = _open(sam, tmp_path)
    expected = np.asarray(cache(IMAGES))
    other = _open(sam, tmp_path / "full")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    for _ in range(2):
        np.testing.assert_array_equal(other(IMAGES), expected)
    assert capsys.readouterr().err.count("going on without new entries: [Errno 28]") == 1
    assert other.entries.count() == 0
    usage = shutil.disk_usage(tmp_path)._replace(free=other.entries.nbytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError) as error:
        other.announce(2)
    check_line(error, "cache.dir", tmp_path / "full", "cache.dtype")
    line = cache.announce(4)
    assert "3 entries of 20.5 kB" in line and str(cache.entries.folder) in line


@pytest.fixture
def source(tmp_path):
    """Eight images, two of them with equal pixels."""
    write_voc(tmp_path / "voc", classes=(6, 7), images_per_class=4, lists=("train_aug",))
    cfg = DataConfig(root=str(tmp_path / "voc"), image_size=32)
    source = pascal_episodes(cfg, "train", seed=0)
    first, second, *_ = source.fold.images
    shutil.copy(source.images.image_path(first), source.images.image_path(second))
    return source


def test_an_interrupted_build_goes_on(tmp_path, sam, source):
    ids = source.fold.images
    cache = _open(sam, tmp_path)
    todo = missing(cache, source, ids)
    assert todo == [ids[0], *ids[2:]]

    def stop(done):
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(cache, source, todo, batch_size=3, on_image=stop)
    left = tmp_path / cache.entries.folder / "00"
    left.mkdir(exist_ok=True)
    for name, age in (("old.part", 7200), ("new.part", 10)):
        (left / name).write_bytes(b"cut")
        os.utime(left / name, (time.time() - age,) * 2)
    again = _open(sam, tmp_path)
    todo = missing(again, source, ids)
    assert (again.entries.count(), len(todo)) == (3, 4)
    calls = []
    assert build(again, source, todo, batch_size=3, on_image=calls.append) == 4
    assert calls[-1] == 4
    assert missing(again, source, ids) == []
    assert [path.name for path in left.glob("*.part")] == ["new.part"]
    # Another picture under the name of an old one.
    path = source.images.image_path(ids[5])
    shutil.copy(source.images.image_path(ids[4]), path)
    assert missing(again, source, ids) == []  # it is known by its pixels
    write_voc(tmp_path / "other", classes=(11,), images_per_class=1, lists=("val",), size=(80, 110))
    shutil.copy(next((tmp_path / "other/JPEGImages").iterdir()), path)
    assert missing(again, source, ids) == [ids[5]]


def test_two_builders_at_once_leave_a_right_cache(tmp_path, sam, source):
    ids = source.fold.images
    alone, *pair = (_open(sam, tmp_path / name) for name in ("a", "b", "b"))
    build(alone, source, ids, batch_size=3)
    work = [
        threading.Thread(target=build, args=(cache, source, ids), kwargs={"batch_size": 3})
        for cache in pair
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    both = _open(sam, tmp_path / "b")
    assert missing(both, source, ids) == []
    assert both.entries.count() == alone.entries.count() == 7
    for image_id in ids:
        key = alone.entries.key(source.image(image_id))
        one, two = alone.entries.read(key), both.entries.read(key)
        np.testing.assert_allclose(two.values, one.values, rtol=0, atol=1e-6)


def test_test_images_may_belong_to_another_dataset(tmp_path, monkeypatch):
    cfg = small_config(tmp_path / "voc", cache={"dir": str(tmp_path / "cache")})
    other = write_voc(tmp_path / "other", classes=(6, 7), size=(80, 110))
    test = evaluate.test_episodes(replaced(cfg, {"data.root": str(other)}))
    monkeypatch.setattr(evaluate, "test_episodes", lambda cfg, split, which: test)
    fill(cfg)
    cache = FeatureCache(cfg.cache, build_sam(cfg.sam, cfg.seed))
    train = datasets.episodes(cfg.data, "train", seed=cfg.seed)
    assert missing(cache, train, train.fold.images) == []
    assert missing(cache, test, [test.spec(i).target_id for i in range(len(test))]) == []


@pytest.mark.slow
def test_the_command_fills_the_cache_that_training_looks_in(tmp_path):
    cfg = small_config(tmp_path / "voc", cache={"dir": str(tmp_path / "my cache")})
    done = run(*PROSAM, "cache", "build", *flags(cfg))
    assert done.returncode == 0, done.stderr
    train = datasets.episodes(cfg.data, "train", seed=cfg.seed)
    test = datasets.episodes(cfg.data, "test", seed=cfg.eval.seed, length=cfg.eval.episodes)
    ids = {*train.fold.images, *(test.spec(i).target_id for i in range(len(test)))}
    assert f"{len(ids)} images" in done.stderr and f"{len(ids)} to compute" in done.stderr
    (result,) = done.stdout.splitlines()
    assert f"computed {len(ids)};" in result and f"{len(ids)} entries" in result
    cache = FeatureCache(cfg.cache, build_sam(cfg.sam, cfg.seed))
    assert missing(cache, train, sorted(ids)) == []
    again = run(*PROSAM, "cache", "build", *flags(cfg))
    assert "computed 0;" in again.stdout


def test_a_command_without_a_cache_is_told_the_setting(tmp_path, capsys):
    assert status_of("cache", "build", *flags(small_config(tmp_path / "voc"))) == 1
    one_line(capsys.readouterr().err, "--config.cache.dir")
