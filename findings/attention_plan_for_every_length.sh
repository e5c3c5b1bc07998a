#!/usr/bin/env bash
# PyTorch 2.11.0 (CUDA 13.0, driver 580.159, one NVIDIA H200): `scaled_dot_product_attention` of one bfloat16 query takes 57 ms of the
# host's time whenever it meets a number of keys for the first time, and 36 us ever after. One might expect a first call to be slow, not
# every first length: by default it asks cuDNN first, which makes a plan for each number of keys, and a decode step with a growing cache has
# a new one every time. So the first request of a process is slower by 57 ms a token than the next of the same lengths, and whoever is
# measured first pays for the others. With PyTorch's own kernels (flash: 28 us) there is no such step.
# Seen on 2026-11-29 (median of 60 lengths, then the same 60 again): default, new lengths 56,848 us, again 36 us, one length 28 us; cuDNN
# alone on known lengths 35 us; flash, lengths it had not met, 28 us; memory-efficient 21 us; math 211 us. There the program below ran on the
# PyTorch installed on that machine, which had no network: of this file only the installation has not been run.
# finemoe's GPU measurements leave cuDNN's attention out (finemoe/artifact/gpu_bench/machine.py), and docs/gpu.md tells users.
# Needs a GPU of compute capability 9.0, python3 and a package index; fails if the behaviour is not what is said here.
set -euo pipefail
nvidia-smi >/dev/null 2>&1 || { echo "no NVIDIA GPU here: nothing to show" >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.11.0 numpy
cat >"$folder/run.py" <<'PY'
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention


def values(length):
    return torch.randn(1, 16, length, 128, device="cuda", dtype=torch.bfloat16)


def host_us(first):
    """Median over 60 lengths."""
    times = []
    for length in range(first, first + 60):
        query, keys = values(1), values(length)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        attention(query, keys, keys)
        times.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(times)


attention(values(1), values(8), values(8))
new, again = host_us(64), host_us(64)
with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
    host_us(64)
    flash = host_us(264)
print(f"default: new lengths {new:,.0f} us, the same again {again:,.0f} us; flash, new lengths: {flash:,.0f} us")
assert torch.cuda.get_device_capability() == (9, 0)
assert new > 100 * again
assert flash < 3 * again
PY
"$folder/env/bin/python" "$folder/run.py"
