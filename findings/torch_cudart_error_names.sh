#!/usr/bin/env bash
# PyTorch 2.11.0 (the CUDA 13.0 build of the package index, Linux x86-64; no GPU needed): torch.cuda.cudart() returns the CUDA runtime's status
# as an enumeration that names only success. Any error, such as a refused cudaHostRegister, prints as `cudaError.???`, so a message that
# contains the status is useless. Its number, and the runtime's description of it, are available all the same; finemoe prints these two
# (finemoe/runtime/arena.py).
# Needs Linux on x86-64, Python 3.10 to 3.14, and 6 GB in the temporary folder. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check torch==2.11.0 numpy==2.4.6

seen=$("$folder/venv/bin/python" - <<'PY'
import torch

cudart = torch._C._cudart  # what torch.cuda.cudart() returns once a device is there
for number in (0, 2, 712):
    status = cudart.cudaError(number)
    print(f"{status} | {int(status)} | {cudart.cudaGetErrorString(status)}")
PY
)
expected='cudaError.success | 0 | no error
cudaError.??? | 2 | out of memory
cudaError.??? | 712 | part or all of the requested memory range is already mapped'
echo "torch 2.11.0, str(status) | int(status) | cudaGetErrorString(status):"
echo "$seen"
[[ $seen == "$expected" ]] || { echo "changed; it was:" && echo "$expected" && exit 1; }
