"""Episodes per second of the loader, against a PyTorch DataLoader that reads the same files.

    python -m benchmarks.loader --root=VOCdevkit/VOC2012

Without --root it writes pictures of VOC's sizes to a temporary folder. The PyTorch loader works
like VRP-SAM's: PIL decodes and resizes, images become normalised floats and masks are resized as
floats, all in the workers. In this library, workers make bytes, and the device normalises;
"+ device" is the rate with that included. The outputs are compared first. All take turns in one
run, so the ratios hold even on a busy machine.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks import measure
from prosam_jax import resize
from prosam_jax.config import DataConfig
from prosam_jax.data.datasets.mask_folder import MaskFolder
from prosam_jax.data.datasets.pascal import pascal_episodes, pascal_folder
from prosam_jax.data.datasets.shapes import Shapes
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.loader import make_loader
from prosam_jax.data.transforms import IGNORE
from prosam_jax.types import Episode

OUT = pathlib.Path("runs/benchmarks/loader.json")
PICTURES = 60
VOC_SIZES = (375, 500), (500, 375), (333, 500), (500, 333)  # most of VOC's, (height, width)
WARM_UP = 8  # batches that a loader may have read ahead
MEAN, STD = (torch.tensor(v)[:, None, None] for v in (resize.MEAN, resize.STD))


class TorchEpisodes(Dataset):
    """The episodes of a `MaskFolder` as float tensors."""

    def __init__(self, source: EpisodeSource):
        self.source = source
        self.folder = cast(MaskFolder, source.images)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        spec = self.source.spec(index)
        target_image, target_mask, target_ignore = self._read(spec.target_id, spec.class_id)
        supports = [self._read(image_id, spec.class_id) for image_id in spec.reference_ids]
        return {
            "reference_image": torch.stack([image for image, _, _ in supports]),
            "reference_mask": torch.stack([mask for _, mask, _ in supports]),
            "target_image": target_image,
            "target_mask": target_mask,
            "target_ignore": target_ignore,
            "class_id": torch.tensor(spec.class_id),
        }

    def _read(self, image_id: str, class_id: int) -> tuple[torch.Tensor, ...]:
        size = (self.source.size, self.source.size)
        image = Image.open(self.folder.image_path(image_id)).convert("RGB")
        image = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR)))
        image = image.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        labels = torch.tensor(np.array(Image.open(self.folder.mask_path(image_id))))
        labels = F.interpolate(labels[None, None].float(), size, mode="nearest").squeeze()
        ignore = (labels / IGNORE).floor()
        return (image - MEAN).div_(STD), (labels == class_id).float(), ignore


def torch_batches(
    source: EpisodeSource, batch_size: int, workers: int
) -> Generator[dict[str, torch.Tensor]]:
    """Batches of the PyTorch loader."""
    context = "spawn" if workers else None  # as in grain: JAX's threads forbid a fork
    yield from DataLoader(
        TorchEpisodes(source), batch_size, num_workers=workers, multiprocessing_context=context
    )


def our_batches(source: EpisodeSource, batch_size: int, workers: int) -> Generator[Episode]:
    """Batches of this library's loader."""
    loader = make_loader(source, batch_size=batch_size, workers=workers)
    with contextlib.closing(loader):
        yield from loader


@jax.jit
def _normalized(episode: Episode) -> Episode:
    return episode._replace(
        reference_image=resize.normalize(episode.reference_image),
        target_image=resize.normalize(episode.target_image),
    )


def device_batches(source: EpisodeSource, batch_size: int, workers: int) -> Generator[Episode]:
    """The same batches as floats on the device."""
    for episode in our_batches(source, batch_size, workers):
        yield jax.block_until_ready(_normalized(jax.device_put(episode)))


class Speed(NamedTuple):
    """Speed of reading: wall time, and CPU time of all processes and threads together."""

    episodes_per_s: float
    cpu_ms_per_episode: float


def speed(batches: Generator[Any], batch_size: int, timed: int) -> Speed:
    """Speed over `timed` batches after the first `WARM_UP` ones."""
    with contextlib.closing(batches):
        for _ in range(WARM_UP):
            next(batches)
        start, cpu = time.perf_counter(), measure.cpu_seconds()
        for _ in range(timed):
            next(batches)
        seconds, cpu = time.perf_counter() - start, measure.cpu_seconds() - cpu
    episodes = timed * batch_size
    return Speed(episodes / seconds, 1000 * cpu / episodes)


def difference(source: EpisodeSource, episodes: int) -> dict[str, float]:
    """Largest differences between both loaders' outputs; images are normalised."""
    source = dataclasses.replace(source, length=episodes)
    found = {"image": 0.0, "mask": 0.0}
    pairs = zip(device_batches(source, 1, 0), torch_batches(source, 1, 0), strict=True)
    for ours, theirs in pairs:
        for name, tensor in theirs.items():
            wanted = tensor.numpy()
            if kind := "image" in name:
                wanted = np.moveaxis(wanted, -3, -1)
            apart = float(np.abs(np.asarray(getattr(ours, name), np.float32) - wanted).max())
            key = "image" if kind else "mask"
            found[key] = float(np.maximum(found[key], apart))  # NaN if either is
    return found


def write_pictures(root: pathlib.Path) -> None:
    """Writes a VOC folder of generated pictures; each list names all of them."""
    pictures = Shapes(size=500)
    ids = [f"f0-train-{number:06d}" for number in range(PICTURES)]
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    folder = pascal_folder(root)
    for number, image_id in enumerate(ids):
        height, width = VOC_SIZES[number % len(VOC_SIZES)]
        image = pictures.image(image_id).crop((0, 0, width, height))
        image.save(folder.image_path(image_id), quality=90)
        labels = Image.fromarray(pictures.labels(image_id)[:height, :width])
        labels.putpalette(bytes(768))
        labels.save(folder.mask_path(image_id))
    for name in ("train_aug", "val"):
        (root / "ImageSets/Segmentation" / f"{name}.txt").write_text("\n".join(ids))


def compare(sources: Mapping[str, EpisodeSource], args: argparse.Namespace) -> dict[str, Any]:
    """Speeds of all loaders, by number of workers."""
    readers = {"torch": (torch_batches, sources["exact"])}
    readers |= {name: (our_batches, source) for name, source in sources.items()}
    readers["exact + device"] = device_batches, sources["exact"]
    result = {}
    for workers in args.workers:
        cases = {
            name: lambda read=read, source=source, workers=workers: speed(
                read(source, args.batch_size, workers), args.batch_size, args.batches
            )
            for name, (read, source) in readers.items()
        }
        found = measure.in_turns(
            cases, args.turns, lambda n, w=workers: print(f"{w} workers, turn {n}", flush=True)
        )
        rates = {name: [x.episodes_per_s for x in speeds] for name, speeds in found.items()}
        cpu = {name: [x.cpu_ms_per_episode for x in speeds] for name, speeds in found.items()}
        result[workers] = {
            name: {
                "episodes/s": measure.spread(rates[name])._asdict(),
                "over torch": measure.ratio(rates[name], rates["torch"])._asdict(),
                "CPU ms/episode": measure.spread(cpu[name])._asdict(),
                "torch's CPU over it": measure.ratio(cpu["torch"], cpu[name])._asdict(),
            }
            for name in found
        }
        for name in found:
            print(
                f"  {name:15} {measure.spread(rates[name])!s:20} episodes/s"
                f"  {measure.ratio(rates[name], rates['torch'])!s:20} x torch"
                f"  {measure.spread(cpu[name])!s:20} CPU ms/episode"
                f"  {measure.ratio(cpu['torch'], cpu[name])!s:20} x less"
            )
    return result


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", help="a VOC2012 folder")
    parser.add_argument("--image_size", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--batches", type=int, default=40, help="batches timed in a turn")
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if not args.root:
            write_pictures(pathlib.Path(temporary))
        cfg = DataConfig(root=args.root or temporary, image_size=args.image_size)
        # Longer than the timed part, so that reading ahead goes on until the end of it.
        length = args.batch_size * (args.batches + 2 * WARM_UP)
        sources = {
            decode: pascal_episodes(
                dataclasses.replace(cfg, decode=decode), "train", seed=0, length=length
            )
            for decode in ("exact", "fast")
        }
        equal = {name: difference(source, 20) for name, source in sources.items()}
        print(equal, flush=True)
        rates = compare(sources, args)
    settings = {k: v for k, v in vars(args).items() if k != "out"}
    result = {"settings": settings, "largest difference": equal, "rates": rates}
    measure.write(args.out, result | {"peak memory": measure.peak_memory()})


if __name__ == "__main__":
    main()
