"""The golden tests and those against PyTorch, on this machine's device, in full precision.

python -m benchmarks.gpu.parity
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys

from benchmarks import measure

OUT = pathlib.Path("runs/benchmarks/parity.json")
ROOT = pathlib.Path(__file__).parents[2]
TESTS = (
    "equations",
    "equations_fast",
    "layers",
    "resize",
    "resnet",
    "vgg",
    "dinov2",
    "efficientnet_lite",
    "sam_image_encoder",
    "sam_mask_decoder",
    "sam_prompt_encoder",
    "sam_model",
    "sam_transforms",
    "prompt",
    "model",
    "metrics",
    "inference",
    "transforms",
)


def main() -> None:
    """Runs the tests and writes their summary.

    Raises:
        SystemExit: A test failed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one file")
    parser.add_argument("--workers", type=int, default=min(measure.cores(), 8))
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    args = parser.parse_args()
    names = TESTS[:1] if args.smoke else TESTS
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rfEs",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-n", str(args.workers), "--dist", "loadfile", "-o", "filterwarnings="]
    command += ["-m", "not exhaustive", *(f"tests/test_{name}.py" for name in names)]
    # As in tests/conftest.py, but for the flags, which are for a CPU.
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    failed = [x for x in lines if re.match(r"(FAILED|ERROR) ", x)]
    measure.write(args.out, {"summary": lines[-1], "failed": failed})
    if process.returncode:
        raise SystemExit(f"error: {lines[-1]}")


if __name__ == "__main__":
    main()
