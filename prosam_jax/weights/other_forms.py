"""What is often found where weights were expected, each with what mends it."""

import json
import pathlib
import re
import zipfile
from typing import Any

from prosam_jax.errors import UserError, cut, short

AGAIN = "download it again"
WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
LONGEST = 1 << 24  # bytes of a text that is looked into
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}


def check(path: pathlib.Path) -> None:
    """Raises UserError, in one line, if a file holds no weights and it is known what it holds.

    Besides what `check_fetched` knows, these are a server's answer or another text, the index of a
    checkpoint in several files, and a compressed file.
    """
    check_fetched(path)
    start = _start(path)
    for magic, program in COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(f"{path} is compressed by {program}; unpack it and pass what it holds")
    if _is_text(start):
        raise UserError(f"{path} is {_text(path)}")


def check_fetched(path: pathlib.Path) -> None:
    """Raises UserError, in one line, if a file is empty, a Git LFS pointer or a web page."""
    start = _start(path)
    if not start:
        raise UserError(f"{path} is empty; {AGAIN}")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d{1,15})$", start, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        raise UserError(
            f"{path} is a Git LFS pointer, which only stands for a file{of}; in its clone run: "
            "git lfs pull, or download the file itself"
        )
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        raise UserError(f"{path} is a web page, not the file; download the file it links to")


def check_zip(path: pathlib.Path) -> None:
    """Raises UserError, in one line, if a zip archive is damaged or none of `torch.save`'s."""
    try:
        if not zipfile.is_zipfile(path):  # its list of files is at its end
            raise UserError(f"{path} is cut short after {path.stat().st_size:,} bytes; {AGAIN}")
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged ({error}); {AGAIN}") from error
    files = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in files and "data.pkl" in files:
        raise UserError(
            f"{path} is TorchScript, a program with its weights; if you trust it, save them alone: "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        )
    if "data.pkl" in files:
        return
    inner = next((name for name in names if name.lower().endswith(WEIGHTS)), None)
    if inner is not None:
        raise UserError(
            f"{path} is a zip archive around {cut(inner)}; unpack it and pass that file"
        )
    such = f" such as {cut(names[0])}" if names else ""
    raise UserError(
        f"{path} is a zip archive of {len(names)} files{such}, not a checkpoint; {AGAIN}"
    )


def is_zip(path: pathlib.Path) -> bool:
    """Whether a file begins as a zip archive does; it may be damaged."""
    return _start(path).startswith(b"PK\x03\x04")


def _start(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _is_text(start: bytes) -> bool:
    """Whether this is ASCII; in every binary form of weights, some of the first bytes are not."""
    return all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)


def _text(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        text = file.read(LONGEST).decode(errors="replace").strip()
    held = _parsed(text)
    if isinstance(held, dict) and isinstance(held.get("weight_map"), dict):
        parts = sorted({x for x in held["weight_map"].values() if isinstance(x, str)})
        return (
            f"the index of a checkpoint in {len(parts)} files ({', '.join(map(cut, parts[:2]))}"
            f"{', ...' if parts[2:] else ''}) and holds no weights; load each of them, save all "
            "tensors as one file with safetensors.torch.save_file, and pass that"
        )
    answer = held if isinstance(held, dict) else {}
    told = next((answer[x] for x in ("error", "message", "detail") if x in answer), None)
    if told is not None:
        said = (cut(told) if isinstance(told, str) else short(told)).rstrip(".")
        return (
            f"a server's answer, not a checkpoint: {said}; log in if it asks for that, and {AGAIN}"
        )
    return f"a text, not a checkpoint, and begins with {short(text)}; {AGAIN}"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
