"""Sets of prompts learned by gradient descent (section 5.3), in PyTorch and in this library.

    python -m benchmarks.prompt_landscape [--sets=8] [--steps=50] [--prompts 10 50] [--threads 1 2]

The packaged SAM, a test picture of Shapes-5i, and the same starts on both sides; AdamW, a fixed
number of steps. PyTorch learns one set after the other, or all as one batch, with one thread or
with as many as there are cores: on a busy machine its threads wait for each other in every layer.
This library runs `studies.descent`. Losses must agree after a few steps and at the end. Ratios are
to PyTorch's fastest way in each turn, and should be at most `EXPECTED`.
"""

import argparse
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import measure

OUT = pathlib.Path("runs/benchmarks/prompt_landscape.json")
EXPECTED = 0.75
RATE, DECAY = 0.1, 1e-6
SPREAD = 1.0  # of the starts
FEW = 5
TOLERANCE = {"few": 1e-4, "all": 0.02}
"""Largest relative difference of a loss after `FEW` steps, and of the mean loss at the end:
differences of rounding grow from step to step."""
WAYS = ("one by one", "one batch")


def write_inputs(folder: str, sets: int, prompts: int) -> None:
    """Weights by PyTorch's names, a picture's embedding, its mask and the starts."""
    import jax.numpy as jnp

    from prosam_jax.config import PACKAGED, DataConfig, SAMConfig, SAMSettings
    from prosam_jax.data import datasets
    from prosam_jax.sam.build_sam import build_sam, embed
    from prosam_jax.weights import files
    from torch_models import sam as torch_sam

    sam = build_sam(SAMSettings(model="shapes", weights=PACKAGED))
    data = DataConfig.of(name="shapes", fold=0, image_size=128)
    episode = datasets.episodes(data, "test", seed=321, length=1)[0]
    arrays = {name: np.asarray(x) for name, x in files.leaves(sam).items()}
    state = torch_state(torch_sam.build(SAMConfig.shapes(), 0).state_dict(), arrays)
    np.savez(pathlib.Path(folder) / "weights.npz", allow_pickle=False, **state)
    shape = (sets, prompts, SAMConfig.shapes().prompt_embed_dim)
    np.savez(
        pathlib.Path(folder) / "inputs.npz",
        embedding=np.asarray(embed(sam, jnp.asarray(episode.target_image[None]))),
        mask=episode.target_mask[None],
        starts=SPREAD * np.random.default_rng(0).standard_normal(shape, np.float32),
    )


def torch_state(like: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This library's arrays of a SAM as PyTorch's state: the rules of the conversion, backwards.

    The rules only rename and move numbers, so the numbers' places are converted instead of them.
    """
    from prosam_jax.convert import engine
    from prosam_jax.convert.rules import sam as rules

    names, places, first = list(like), {}, 0
    for name in names:
        count = like[name].numel()
        places[name] = np.arange(first, first + count).reshape(like[name].shape)
        first += count
    # float32 holds whole numbers up to 2^24 exactly, and is the type that the rules expect.
    assert first < 2**24
    specs = {name: x for name, x in arrays.items()}
    source = {name: x.astype(np.float32) for name, x in places.items()}
    moved = engine.convert(source, rules.META_RULES, (), specs)
    flat = np.empty(first, np.float32)
    for name, x in moved.items():
        flat[x.astype(np.int64).ravel()] = arrays[name].ravel()
    return {name: flat[x] for name, x in places.items()}


class TorchSide:
    """The descent in PyTorch, in its own process."""

    def __init__(self, folder: str, steps: int, way: str, threads: int):
        import torch

        from benchmarks import pytorch
        from prosam_jax.config import SAMConfig
        from torch_models import sam

        pytorch.set_up()
        torch.set_num_threads(threads)
        self.steps, self.way = steps, way
        self.sam = sam.build(SAMConfig.shapes(), 0)
        with np.load(pathlib.Path(folder) / "weights.npz") as held:
            self.sam.load_state_dict({name: torch.from_numpy(x) for name, x in held.items()})
        with np.load(pathlib.Path(folder) / "inputs.npz") as held:
            self.embedding = torch.from_numpy(held["embedding"]).permute(0, 3, 1, 2).contiguous()
            self.mask = torch.from_numpy(held["mask"]).float()
            self.starts = torch.from_numpy(held["starts"])

    def losses(self, steps: int) -> np.ndarray:
        """The last of `steps` losses of each set."""
        size = 1 if self.way == "one by one" else len(self.starts)
        return np.concatenate([self._descended(x, steps) for x in self.starts.split(size)])

    def _descended(self, starts: Any, steps: int) -> np.ndarray:
        import torch

        from torch_models import prosam

        n, side = len(starts), self.mask.shape[1:]
        at = starts.clone().requires_grad_()
        embedding, mask = self.embedding.expand(n, -1, -1, -1), self.mask.expand(n, -1, -1)
        optimiser = torch.optim.AdamW([at], lr=RATE, weight_decay=DECAY)
        each = torch.zeros(n)
        for step in range(steps):
            logits = prosam.decode(self.sam, embedding, at, side)
            p = logits.sigmoid()
            overlap, total = (p * mask).sum((1, 2)), p.sum((1, 2)) + mask.sum((1, 2))
            entropy = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, mask, reduction="none"
            )
            each = entropy.mean((1, 2)) + 1 - (2 * overlap + 1) / (total + 1)
            if step + 1 < steps:
                optimiser.zero_grad()
                each.sum().backward()
                optimiser.step()
        return each.detach().numpy()

    def timing(self) -> measure.Timing:
        """Time of the whole descent."""
        return measure.timed(lambda: self.losses(self.steps))

    def peak(self) -> int:
        """Peak bytes of the process."""
        return measure.process_peak()


class OurSide:
    """`studies.descent`, in its own process."""

    def __init__(self, folder: str, steps: int):
        import jax
        import jax.numpy as jnp

        from prosam_jax.config import PACKAGED, SAMSettings
        from prosam_jax.sam.build_sam import build_sam
        from studies import descent

        jax.config.update("jax_default_matmul_precision", "highest")
        sam, self.steps = build_sam(SAMSettings(model="shapes", weights=PACKAGED)), steps
        with np.load(pathlib.Path(folder) / "inputs.npz") as held:
            pair = descent.Pair(jnp.asarray(held["embedding"]), jnp.asarray(held["mask"]))
            starts = jnp.asarray(held["starts"])
        keys = jax.random.split(jax.random.key(0), len(starts))
        # No rule ends a descent early here.
        rule = descent.Rule(rate=RATE, decay=DECAY, patience=10**9)

        def run(sam: Any, pair: Any, starts: Any, most: int) -> Any:
            loss, limited = descent.loss_of_set(sam, pair), rule._replace(most=most)
            return descent.descend(loss, starts, keys, limited).loss

        # The number of steps is an argument, so that one compilation serves all.
        run = jax.jit(run)
        begin = time.perf_counter()
        self.run = run.lower(sam, pair, starts, steps).compile()
        self.compile_seconds = time.perf_counter() - begin
        self.arguments = sam, pair, starts

    def losses(self, steps: int) -> np.ndarray:
        """The last of `steps` losses of each set."""
        return np.asarray(self.run(*self.arguments, steps))

    def timing(self) -> measure.Timing:
        """Time of the whole descent, without compilation."""
        return measure.timed(lambda: self.losses(self.steps))

    def compiling(self) -> float:
        """Seconds that tracing and compiling took."""
        return self.compile_seconds

    def peak(self) -> int:
        """Peak bytes of the process."""
        return measure.process_peak()


def apart(found: np.ndarray, wanted: np.ndarray, when: str) -> float:
    """Largest relative difference of the losses after a few steps; of their mean after all.

    Raises:
        ValueError: It is above `TOLERANCE`.
    """
    if when == "all":
        found, wanted = found.mean(keepdims=True), wanted.mean(keepdims=True)
    difference = float(np.max(np.abs(found - wanted) / wanted))  # NaN if any is
    if not difference <= TOLERANCE[when]:
        raise ValueError(
            f"losses after {when} steps differ by {difference:.1e}, more than {TOLERANCE[when]:.0e}"
        )
    return difference


def compared(
    sets: int, steps: int, prompts: int, turns: int, threads: list[int]
) -> list[dict[str, Any]]:
    """The rows of a table for one number of prompts."""
    with tempfile.TemporaryDirectory() as folder:
        writer = measure.Alone(write_inputs, folder, sets, prompts)
        writer.close()
        sides = {
            f"PyTorch, {way}, threads {n}": measure.Alone(TorchSide, folder, steps, way, n)
            for way in WAYS
            for n in threads
        }
        rivals = list(sides)
        sides["prosam_jax"] = measure.Alone(OurSide, folder, steps)
    first = next(iter(sides.values()))
    wanted = {"few": first("losses", FEW), "all": first("losses", steps)}
    facts = {}
    for name, side in sides.items():
        found = {"few": side("losses", FEW), "all": side("losses", steps)}
        facts[name] = {when: apart(found[when], wanted[when], when) for when in wanted}
    cases = {name: lambda side=side: side("timing") for name, side in sides.items()}
    figures = measure.in_turns(cases, turns, lambda n: print(f"turn {n}", flush=True))
    seconds = {name: [x.seconds for x in of] for name, of in figures.items()}
    cpu = {name: [x.cpu_seconds for x in of] for name, of in figures.items()}
    fastest, least = (
        [min(turn) for turn in zip(*(of[name] for name in rivals), strict=True)]
        for of in (seconds, cpu)
    )
    rows = []
    for name, side in sides.items():
        ours = name == "prosam_jax"
        rows.append(
            {
                "prompts": prompts,
                "side": name,
                "seconds": str(measure.spread(seconds[name])),
                "over PyTorch": str(measure.ratio(seconds[name], fastest)),
                "as expected": "" if not ours else _met(measure.ratio(seconds[name], fastest)),
                "CPU seconds": str(measure.spread(cpu[name])),
                "over its": str(measure.ratio(cpu[name], least)),
                "ms a step of a set": 1e3 * measure.spread(seconds[name]).median / sets / steps,
                "peak GB": side("peak") / 1e9,
                "compile s": side("compiling") if ours else "",
                f"losses apart, {FEW} steps": facts[name]["few"],
                "mean apart at the end": facts[name]["all"],
            }
        )
        side.close()
    return rows


def _met(ratio: measure.Spread) -> str:
    return f"{'yes' if ratio.median <= EXPECTED else 'no'} (at most {EXPECTED})"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, nargs="+", default=[10, 50])
    threads = sorted({1, measure.cores()})
    parser.add_argument("--threads", type=int, nargs="+", default=threads, help="PyTorch's")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args(arguments)
    rows = []
    for prompts in args.prompts:
        rows += compared(args.sets, args.steps, prompts, args.turns, args.threads)
        print(measure.table(rows), flush=True)
    result = {"settings": measure.settings(args), "rows": rows}
    measure.write(args.out, result)
    return result


if __name__ == "__main__":
    main()
