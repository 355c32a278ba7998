"""The prompt encoder with its gradients, in PyTorch and in this library.

    python -m benchmarks.prompt_generator [--size=512] [--batch=2] [--malloc default tuned]

From given backbone features to prompts, with gradients of all parameters and AdamW: time, memory
and share of the peak rate. Weights and inputs are the same on both sides; every gradient must
agree. PyTorch's features are channels first or last in memory; ratios are to the faster. See
`train_step`.
"""

import pathlib

from benchmarks.train_step import Sides, parser, problem_of, report

OUT = pathlib.Path("runs/benchmarks/prompt_generator.json")


def main() -> None:
    """Measures and writes."""
    args = parser(__doc__, OUT).parse_args()
    ways: dict[str, tuple] = {
        "channels first": ("folded",),
        "channels last": ("folded", False, True),
    }
    if args.device == "gpu":
        ways["compiled"] = ("folded", True, True)
    report(args, Sides(problem_of(args, "generator"), ways, [0], args.malloc))


if __name__ == "__main__":
    main()
