"""Prompts and distributions of prompts learned for one picture and mask (section 5.3, Fig. 4).

    python -m studies.prompt_landscape [--pairs=20] [--sets=8] [--out=docs]
    python -m studies.prompt_landscape --image=cat.jpg --mask=cat.png --sets=200 [--sam=FILE]

For each picture-mask pair, gradient descent on SAM's frozen decoder learns sets of prompts from
random starts, and Student-t distributions over sets from others. Then samples of a distribution
are compared with the sets: by IoU and binary cross-entropy, by how near to the middle of the sets
the distribution lies, and by what the same noise does to the loss of either. Starts are drawn from
N(0, 25^2), as in the paper, and from N(0, 1).

A pair that is finished is kept in `--work`, so that the command goes on where it was stopped.
Writes `studies/landscape.json`, `images/landscape.png` (the first pair) and
`images/landscape_pairs.png`.
"""

import argparse
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8

from prosam_jax.atomic import replacing
from prosam_jax.config import PACKAGED, DataConfig, SAMSettings
from prosam_jax.data import datasets
from prosam_jax.data.annotation import given_annotation
from prosam_jax.data.transforms import resize_image
from prosam_jax.errors import UserError
from prosam_jax.images import read
from prosam_jax.sam.build_sam import build_sam, embed
from prosam_jax.sam.model import Sam
from prosam_jax.weights import files
from studies import landscape_figures
from studies.descent import Pair
from studies.landscape_measures import RATES, Numbers, across, measured, summary, swept

SEED = 321


# Which pairs, and which SAM.


def frozen_sam(file: str) -> tuple[Sam, str]:
    """The SAM of a weight file, or the packaged one, and its size's name.

    Raises:
        UserError: The file is missing, damaged or no SAM's.
    """
    if file == PACKAGED:
        return build_sam(SAMSettings(model="shapes", weights=PACKAGED)), "shapes"
    made_by = files.made_by("sam", "vit_h", file)
    held = files.metadata(file, made_by=made_by)
    if held.get("kind") != "sam":
        raise UserError(f"--sam={file} is not a SAM's weight file; make one with: {made_by}")
    return build_sam(SAMSettings.of(model=held["architecture"], weights=file)), held["architecture"]


Square = tuple[str, UInt8[np.ndarray, "s s 3"], Bool[np.ndarray, "s s"]]
"""Name, picture and mask."""


def squares(args: argparse.Namespace) -> Iterator[Square]:
    """The user's pair, or test pairs of Shapes-5i: the folds take turns, and show novel classes."""
    if args.image is not None:
        pixels = read(args.image)
        height, width, _ = pixels.shape
        mask = given_annotation((height, width), args.size, mask=args.mask)
        yield pathlib.Path(args.image).name, resize_image(pixels, args.size), mask
        return
    sources = [
        datasets.episodes(
            DataConfig.of(name="shapes", fold=fold, image_size=args.size),
            "test",
            seed=SEED,
            length=-(-args.pairs // 4),
        )
        for fold in range(4)
    ]
    for i in range(args.pairs):
        episode = sources[i % 4][i // 4]
        yield f"fold {i % 4}, test {i // 4}", episode.target_image, episode.target_mask


def embedded(sam: Sam, image: UInt8[np.ndarray, "s s 3"], mask: Bool[np.ndarray, "s s"]) -> Pair:
    """A pair, as the descent takes it."""
    return Pair(embed(sam, jnp.asarray(image[None])), jnp.asarray(mask[None]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", help="a picture of your own, instead of Shapes-5i's")
    parser.add_argument("--mask", help="its object, white on black, at the picture's size")
    parser.add_argument("--sam", default=PACKAGED, help="a SAM weight file of any size")
    parser.add_argument("--size", type=int, default=128, help="side of the loss's square, pixels")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--sets", type=int, default=8, help="sets of prompts for each pair")
    parser.add_argument("--first", type=int, default=200, help="of the first, from N(0, 25^2)")
    parser.add_argument("--starts", type=int, default=1, help="distributions for each pair")
    parser.add_argument("--first-starts", type=int, default=1, help="of the first")
    parser.add_argument("--prompts", type=int, default=10, help="prompts of a set")
    parser.add_argument("--most", type=int, default=300, help="losses of a descent, at most")
    parser.add_argument("--sweep", action="store_true", help="only try learning rates, on a pair")
    parser.add_argument("--minutes", type=float, help="begin no pair after so many")
    parser.add_argument("--work", type=pathlib.Path, default="runs/studies/landscape")
    parser.add_argument("--out", type=pathlib.Path, help="docs for Shapes-5i, else --work")
    return parser


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    if (args.image is None) != (args.mask is None):
        raise UserError("--image and --mask go together: give both, or neither for Shapes-5i")
    for name, least in (
        ("pairs", 1),
        ("sets", 2),
        ("first", 2),
        ("starts", 1),
        ("prompts", 1),
        ("most", 2),
    ):
        if getattr(args, name) < least:
            raise UserError(f"--{name}={getattr(args, name)} must be at least {least}")
    args.out = args.out or (pathlib.Path("docs") if args.image is None else args.work)
    return args


def run(args: argparse.Namespace) -> None:
    """Measures, and writes numbers and figures of the pairs that are finished.

    Raises:
        UserError: A picture, mask or weight file cannot be used, or an argument is too small.
    """
    args = _checked(args)
    sam, model = frozen_sam(args.sam)
    began, done = time.monotonic(), {}
    for i, (name, image, mask) in enumerate(squares(args)):
        how = Numbers(args.sets, args.sets, args.starts, args.prompts, args.most)
        if i == 0 and args.image is None:
            how = how._replace(sets=args.first, starts=args.first_starts)
        facts = [model, args.sam, args.size, how, RATES, i]
        content = repr(facts).encode() + image.tobytes() + mask.tobytes()
        file = args.work / f"{hashlib.sha256(content).hexdigest()[:16]}.npz"
        if args.sweep:
            rows = swept(sam, embedded(sam, image, mask), args.prompts, args.most, args.sets)
            _write(args.out / "studies" / "landscape_rates.json", {"pair": name, "rates": rows})
            return
        if not file.is_file():
            if args.minutes is not None and time.monotonic() - began > 60 * args.minutes:
                break
            begin = time.monotonic()
            found = measured(sam, embedded(sam, image, mask), how, SEED + i)
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part, part.open("wb") as out:
                np.savez(out, allow_pickle=False, **found)
            print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
        with np.load(file) as held:
            done[name] = (dict(held), image, mask)
    report(args, model, done)


def report(args: argparse.Namespace, model: str, done: Mapping[str, tuple[Any, ...]]) -> None:
    """Writes `landscape.json` and the figures, and prints the means."""
    pairs = {name: summary(found) for name, (found, *_) in done.items()}
    means = across(list(pairs.values()))
    names = ("size", "sets", "first", "starts", "first_starts", "prompts", "most")
    settings = {"sam": model, "rates": {f"{k:g}": x._asdict() for k, x in RATES.items()}}
    settings |= {name: getattr(args, name) for name in names}
    held = {"settings": settings, "pairs": len(pairs), "over pairs": means, "each pair": pairs}
    _write(args.out / "studies" / "landscape.json", held)
    images = args.out / "images"
    found, picture, mask = next(iter(done.values()))
    landscape_figures.one_pair(found, picture, mask, images / "landscape.png")
    if len(pairs) > 1:
        landscape_figures.all_pairs(list(pairs.values()), means, images / "landscape_pairs.png")
    for name, x in means.items():
        print(f"{name:48} " + " ".join(f"{k} {v:.3f}" for k, v in x.items()))


def _write(path: pathlib.Path, held: Mapping[str, Any]) -> None:
    def rounded(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {k: rounded(v) for k, v in x.items()}
        if isinstance(x, list):
            return [rounded(v) for v in x]
        return float(f"{x:.4g}") if isinstance(x, float) else x

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(rounded(held), indent=1) + "\n")


def main() -> None:
    """Runs the study."""
    try:
        run(_parser().parse_args())
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
