"""Evaluation end to end, from images to masks, in PyTorch and in this library.

    python -m benchmarks.evaluate [--model=vit_b] [--size=512] [--batch=1] [--malloc default tuned]

SAM's image encoder, ResNet-50 on target and reference, the prompt encoder, SAM's mask decoder on
the mean prompts, logits at full size. It goes from bytes to logits on the host. Weights
and images are the same on both sides; the logits must agree. See `train_step`.
"""

import dataclasses
import pathlib

from benchmarks.train_step import Sides, parser, problem_of, report

OUT = pathlib.Path("runs/benchmarks/evaluate.json")


def main() -> None:
    """Measures and writes."""
    flags = parser(__doc__, OUT)
    flags.add_argument("--model", choices=("vit_b", "vit_l", "vit_h", "tiny"), default="vit_b")
    args = flags.parse_args()
    ways: dict[str, tuple] = {
        "channels first": ("folded",),
        "channels last": ("folded", False, True),
    }
    if args.device == "gpu":
        ways["compiled"] = ("folded", True, True)
    problem = dataclasses.replace(problem_of(args, "evaluation"), model=args.model)
    report(args, Sides(problem, ways, [0], args.malloc))


if __name__ == "__main__":
    main()
