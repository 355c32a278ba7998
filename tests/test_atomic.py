import errno
import os
import shutil

import pytest
from commands import status_of
from conftest import told

from prosam_jax.atomic import replacing


def test_a_failure_names_the_file_and_leaves_it_as_it_was(tmp_path):
    path = tmp_path / "x"
    path.write_text("older")
    errors = []

    def full(part):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for write in (
        full,
        lambda part: part.rename(tmp_path / "no" / "folder"),
        lambda part: shutil.copyfile("/dev/zero/x", part),
    ):
        with pytest.raises(OSError) as error, replacing(path) as part:
            part.write_text("the begin")
            write(part)
        errors.append((error.type, error.value.filename, error.value.filename2))
    assert errors == [
        (OSError, str(path), None),
        (FileNotFoundError, str(path), None),
        (NotADirectoryError, "/dev/zero/x", None),
    ]
    assert path.read_text() == "older" and os.listdir(tmp_path) == ["x"]


def test_only_files_are_replaced(tmp_path, capsys):
    """A user who may do anything would lose /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder"):
        with pytest.raises(OSError, match="a folder, a pipe or a device"), replacing(path):
            pass
        assert status_of("export", "--workdir", tmp_path, "--out", path, "--force") == 1
        told(capsys.readouterr().err, path, "a folder, a pipe or a device", "name a file")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "folder").is_dir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with replacing(tmp_path / "link") as part:
        part.write_text("new")
    assert (tmp_path / "link").read_text() == "new" and not (tmp_path / "nowhere").exists()
