r"""Lists, fetches, converts, verifies and shares weight files.

    prosam weights list
    prosam weights get sam_vit_h
    prosam weights fetch sam_vit_h
    prosam weights convert sam --model vit_h --checkpoint weights/sam_vit_h_4b8939.pth \
        --out weights/sam_vit_h.safetensors
    prosam weights verify weights/sam_vit_h_4b8939.pth
    prosam weights show pascal1.safetensors
    prosam weights push pascal1.safetensors --repo USER/NAME --private
    prosam weights pull USER/NAME --out pascal1.safetensors

`get` fetches published weights from the Hugging Face hub and converts them, once, to a weight file
in the client's cache, which the settings call "hub". To resume an interrupted fetch, run the same
command again. Converting needs torch (pip install 'prosam_jax[convert]'); get, push and pull need
huggingface_hub (pip install 'prosam_jax[hub]').
"""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

import safetensors

from prosam_jax.cli import convert
from prosam_jax.cli.arguments import as_path, as_text
from prosam_jax.cli.export import check_free
from prosam_jax.config import BACKBONES_ON_HUB, SAMS_ON_HUB
from prosam_jax.errors import UserError, printable
from prosam_jax.weights import other_forms, registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this verb."""
    what = parser.add_subparsers(metavar="WHAT")
    listing = what.add_parser("list", help="list the published checkpoints")
    listing.set_defaults(run=lambda args: print(table()))
    getting = what.add_parser("get", help="fetch and convert published weights from a hub")
    getting.add_argument("name", help=f"one of {', '.join(names_to_get())}")
    getting.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        type=as_path,
        help="convert this file, which was fetched by hand",
    )
    getting.set_defaults(run=lambda args: print(get(args.name, args.source)))
    fetching = what.add_parser("fetch", help="fetch a checkpoint, or verify it if it is there")
    fetching.add_argument("name", help="a name that `prosam weights list` shows")
    fetching.add_argument("--to", type=as_path, default="weights", help="folder (default: weights)")
    fetching.set_defaults(run=lambda args: print(fetch(args.name, args.to)))
    convert.add_arguments(
        what.add_parser("convert", help="convert a torch checkpoint to a weight file")
    )
    verifying = what.add_parser("verify", help="say what a file is and whether it is intact")
    verifying.add_argument("file", type=as_path)
    verifying.set_defaults(run=lambda args: print(identify(args.file)))
    showing = what.add_parser("show", help="show the facts about a trained prompt encoder")
    showing.add_argument("file", help="a file, a packaged name or USER/NAME on a hub")
    showing.set_defaults(run=show)
    pushing = what.add_parser("push", help="upload a trained prompt encoder to a hub")
    pushing.add_argument("file", type=as_path)
    pushing.add_argument("--repo", required=True, help="USER/NAME, created if it is missing")
    pushing.add_argument("--private", action="store_true", help="make the repository private")
    pushing.set_defaults(run=push)
    pulling = what.add_parser("pull", help="download a trained prompt encoder from a hub")
    pulling.add_argument("repo", help="USER/NAME")
    pulling.add_argument(
        "--out", type=as_path, required=True, help="the .safetensors file to write"
    )
    pulling.add_argument(
        "--revision", type=as_text, help="branch, tag or commit (default: the newest)"
    )
    pulling.add_argument("--force", action="store_true", help="overwrite an existing file")
    pulling.set_defaults(run=pull)


def show(args: argparse.Namespace) -> None:
    """Prints what the file of a prompt encoder says."""
    from prosam_jax import share
    from prosam_jax.config import Config, changed
    from prosam_jax.weights import pretrained, prompt_encoder

    path = pretrained.find_file(args.file)
    trained = prompt_encoder.read(path)
    print(share.describe(path, trained))
    print("settings that differ from the defaults:")
    for line in changed(Config(), trained.config):
        print(f"  {line}")


def push(args: argparse.Namespace) -> None:
    """Uploads a prompt encoder."""
    from prosam_jax import share

    print(share.push(args.file, args.repo, private=args.private))


def pull(args: argparse.Namespace) -> None:
    """Downloads a prompt encoder."""
    from prosam_jax import share

    check_free(args.out, force=args.force)
    print(share.describe(args.out, share.pull(args.repo, args.out, revision=args.revision)))


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


def names_to_get() -> list[str]:
    """What `prosam weights get` takes."""
    return [*(f"sam_{x}" for x in SAMS_ON_HUB), *BACKBONES_ON_HUB]


def get(name: str, source: pathlib.Path | None = None) -> str:
    """Sees to it that published weights are in the cache, and says how to use them."""
    entry = registry.to_get(name)
    from prosam_jax import backbone
    from prosam_jax.sam import build_sam

    fetch = build_sam.fetch if entry.kind == "sam" else backbone.fetch
    path, was_there = fetch(entry.architecture, check=True, source=source)
    setting = "sam.model" if entry.kind == "sam" else "backbone.name"
    return (
        f"{path} {'was there already and is whole' if was_there else 'was made'}\n"
        f"next: prosam train --config.{setting}={entry.architecture} "
        f"--config.{entry.kind}.weights=hub"
    )


def fetch(name: str, folder: pathlib.Path) -> str:
    """Fetches a checkpoint and says what it is and which command takes it."""
    from prosam_jax.weights import download

    entry = registry.named(name)
    path, check, was_there = download.fetch(entry, folder)
    note = f"; {entry.note}" if entry.note else ""
    return (
        f"{path} {'was there already' if was_there else 'was fetched'}\n{check}\n"
        f"licence {entry.licence}, {entry.publisher}{note}\n"
        f"next: {registry.convert_command(entry, path)}"
    )


def identify(path: pathlib.Path) -> str:
    """Says what a file is: a published checkpoint, or a weight file made by this library.

    Raises:
        UserError: The file is missing, damaged or something else.
    """
    from prosam_jax.weights.files import check_whole

    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file")
    if metadata := _metadata(path):
        with safetensors.safe_open(path, framework="numpy") as file:
            check_whole(file, path, made_by="the command that made it, or fetch it again")
        return (
            f"{path} is a weight file: kind {_said(metadata, 'kind')}, architecture "
            f"{_said(metadata, 'architecture')}\n{_origin(metadata)}"
        )
    other_forms.check(path)
    digest = registry.sha256(path)
    entry = registry.with_checksum(digest) or registry.with_file(path.name)
    if entry is None:
        if other_forms.is_zip(path):
            other_forms.check_zip(path)
        raise UserError(
            f"{path} is neither a published checkpoint nor a complete weight file; sha256 {digest}"
        )
    try:
        check = registry.verify(entry, path, digest)
    except UserError as error:
        raise UserError(f"{error}: it is damaged, or another file of that name") from error
    known = "is" if entry.sha256 else "is named like"
    return f"{path} {known} {entry.name}\n{check}\nnext: {registry.convert_command(entry, path)}"


def _said(metadata: Mapping[str, Any], name: str) -> str:
    """What a file, which may be anyone's, says in its metadata; "" if that is no text."""
    value = metadata.get(name)
    return printable(value) if isinstance(value, str) else ""


def _origin(metadata: Mapping[str, Any]) -> str:
    name, digest = _said(metadata, "source_name"), _said(metadata, "source_sha256")
    if not name or not digest:
        return "trained with this library, not converted from a checkpoint"
    published, namesake = registry.with_checksum(digest), registry.with_file(name)
    if published:
        known = f"which is the published {published.name}"
    elif namesake and namesake.sha256 is None:
        known = f"which is named like the published {namesake.name}, whose checksum is not known"
    else:
        known = "which is not a known published checkpoint"
    return f"made from {name}, sha256 {digest}, {known}"


def _metadata(path: pathlib.Path) -> dict[str, Any]:
    from prosam_jax.weights.files import read_metadata

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return read_metadata(file, path)
    except (safetensors.SafetensorError, OSError):
        return {}
