#!/usr/bin/env bash
# Collects what `make gpu` needs beside JAX, PyTorch and flax, for a machine without a network:
#     benchmarks/gpu_wheels.sh [FOLDER]        # .wheels by default; `make gpu` installs from there
set -euo pipefail
folder=${1:-.wheels}
python=${PYTHON:-python3}
mkdir -p "$folder"
"$python" -m pip download --quiet --no-deps --dest "$folder" --only-binary :all: \
  --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
  array_record beartype grain importlib_resources ml_collections portpicker pycocotools tensorboardX
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" \
  "$(grep -i '^segment.anything' requirements.txt)"
du -sh "$folder"
