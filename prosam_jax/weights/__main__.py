"""Lists, fetches and verifies the published checkpoints that `convert/` takes.

    python -m prosam_jax.weights list
    python -m prosam_jax.weights fetch sam_vit_h
    python -m prosam_jax.weights verify weights/sam_vit_h_4b8939.pth

A fetch that was interrupted goes on where it ended when the same command is run again.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors

from prosam_jax.errors import UserError
from prosam_jax.weights import download, registry
from prosam_jax.weights.files import check_whole, read_metadata


def table() -> str:
    """The published checkpoints, one line each."""
    rows = [("name", "size", "licence", "checksum", "publisher")]
    for entry in registry.PUBLISHED:
        size = "-" if entry.size is None else f"{entry.size / 1e6:,.0f} MB"
        checksum = "yes" if entry.sha256 else "no"
        rows.append((entry.name, size, entry.licence, checksum, entry.publisher))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:{widths[0]}}  {size:>{widths[1]}}  {licence:{widths[2]}}  "
        f"{checksum:{widths[3]}}  {publisher}"
        for name, size, licence, checksum, publisher in rows
    ]
    return "\n".join(lines)


def fetch(name: str, folder: pathlib.Path) -> str:
    """Fetches a checkpoint and says what it is and which command takes it."""
    entry = registry.named(name)
    path, check, was_there = download.fetch(entry, folder)
    note = f"; {entry.note}" if entry.note else ""
    return (
        f"{path} {'was there already' if was_there else 'is fetched'}\n{check}\n"
        f"licence {entry.licence}, {entry.publisher}{note}\n"
        f"next: {registry.convert_command(entry, path)}"
    )


def identify(path: pathlib.Path) -> str:
    """Says what a file is: a published checkpoint, or a weight file made of one.

    Raises:
        ValueError: It is missing, damaged or something else.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist or is no file")
    if metadata := _metadata(path):
        with safetensors.safe_open(path, framework="numpy") as file:
            check_whole(file, path, made_by="what made it, or fetch it anew")
        return (
            f"{path} is a weight file: kind {metadata.get('kind')}, architecture "
            f"{metadata.get('architecture')}\n{_origin(metadata)}"
        )
    digest = registry.sha256(path)
    entry = registry.with_checksum(digest) or registry.with_file(path.name)
    if entry is None:
        raise UserError(
            f"{path} is neither a published checkpoint nor a complete weight file; sha256 {digest}"
        )
    try:
        check = registry.verify(entry, path, digest)
    except ValueError as error:
        raise UserError(f"{error}: damaged, or another file of that name") from error
    known = "is" if entry.sha256 else "is called like"
    return f"{path} {known} {entry.name}\n{check}\nnext: {registry.convert_command(entry, path)}"


def _origin(metadata: Mapping[str, Any]) -> str:
    name, digest = metadata.get("source_name"), metadata.get("source_sha256")
    if not name or not digest:
        return "trained with this library, not converted from a checkpoint"
    published, namesake = registry.with_checksum(digest), registry.with_file(name)
    if published:
        known = f"which is the published {published.name}"
    elif namesake and namesake.sha256 is None:
        known = f"called like the published {namesake.name}, whose checksum is not known"
    else:
        known = "which is no published checkpoint known here"
    return f"made of {name}, sha256 {digest}, {known}"


def _metadata(path: pathlib.Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return read_metadata(file)
    except (safetensors.SafetensorError, OSError):
        return {}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m prosam_jax.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is published")
    fetching = commands.add_parser("fetch", help="fetch a checkpoint, or verify the one there")
    fetching.add_argument("name", help="one of those that list shows")
    fetching.add_argument("--to", type=pathlib.Path, default="weights", help="folder (weights)")
    verifying = commands.add_parser("verify", help="say what a file is, and whether it is whole")
    verifying.add_argument("file", type=pathlib.Path)
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            print(table())
        elif args.command == "fetch":
            print(fetch(args.name, args.to))
        else:
            print(identify(args.file))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: stopped; the same command goes on from what has arrived", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
