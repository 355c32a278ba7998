import contextlib
import multiprocessing

import numpy as np
import pytest
from conftest import told
from fake_voc import write_voc

from prosam_jax.config import DataConfig
from prosam_jax.data.datasets.pascal import pascal_episodes
from prosam_jax.data.loader import make_loader
from prosam_jax.errors import UserError
from prosam_jax.types import Episode


@pytest.fixture
def source(tmp_path):
    """Eleven training episodes of two scribbled shots, 32 pixels wide and high."""
    root = write_voc(tmp_path, classes=(6, 7, 11), lists=("train_aug",))
    cfg = DataConfig(root=str(root), shots=2, image_size=32, annotation="scribble")
    return pascal_episodes(cfg, "train", seed=9, length=11)


def _batches(source, **settings):
    with contextlib.closing(make_loader(source, **settings)) as loader:
        return list(loader)


def _assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for x, y in zip(batch, other, strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype


def test_batches_hold_the_episodes_in_order(source):
    batches = _batches(source, batch_size=4)
    assert [batch.index.tolist() for batch in batches] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 10],
    ]
    assert all(isinstance(batch, Episode) for batch in batches)
    assert batches[0].reference_image.shape == (4, 2, 32, 32, 3)
    for batch in batches:
        for at, index in enumerate(batch.index):
            expected = source[int(index)]._replace(valid=batch.valid[at])
            for x, y in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(x[at], y)


def test_a_short_last_batch_is_filled_with_invalid_episodes(source):
    batches = _batches(source, batch_size=7)
    assert batches[0].valid.all()
    np.testing.assert_array_equal(batches[1].valid, [1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(batches[1].index, [7, 8, 9, 10, 10, 10, 10])


def test_a_batch_depends_on_its_step_alone(source):
    batches = _batches(source, batch_size=3)
    _assert_same(_batches(source, batch_size=3, start=2), batches[2:])
    _assert_same(_batches(source, batch_size=3, start=1, stop=3), batches[1:3])
    assert _batches(source, batch_size=3, start=4) == []


@pytest.mark.parametrize("hosts", [2, 3])
def test_parts_of_the_hosts_are_the_batch(source, hosts):
    settings = {"batch_size": 6, "start": 1, "hosts": hosts}
    parts = [_batches(source, host=host, **settings) for host in range(hosts)]
    joined = [
        Episode(*map(np.concatenate, zip(*part, strict=True))) for part in zip(*parts, strict=True)
    ]
    _assert_same(joined, _batches(source, batch_size=6, start=1))


@pytest.mark.slow
def test_workers_change_nothing_and_are_closed(source):
    expected = _batches(source, batch_size=2, start=1)
    _assert_same(_batches(source, batch_size=2, start=1, workers=2), expected)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_unreadable_image_is_named_wherever_it_is_read(source, workers):
    path = source.images.image_path(source.spec(5).target_id)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError) as error:
        _batches(source, batch_size=2, workers=workers)
    told(error, path, "copy the file again")


def test_impossible_shares_and_steps_are_errors(source):
    with pytest.raises(UserError) as error:
        make_loader(source, batch_size=4, hosts=3)
    told(error, "batch_size=4", "3 hosts", "multiple of 3")
    with pytest.raises(UserError) as error:
        make_loader(source, batch_size=4, start=2, stop=9)
    told(error, "steps 2 to 9")
    with pytest.raises(UserError) as error:
        make_loader(source, batch_size=4, start=4)
    told(error, "steps 4 to 3")
