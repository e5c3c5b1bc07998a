"""Times on a device: as seen by the host, and of the device's kernels alone."""

import time
from collections.abc import Callable

import numpy as np
import torch


def finish(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_times_s(call: Callable[[], object], device: torch.device, rounds: int) -> np.ndarray:
    """Seconds until the device has finished a call, [rounds], after one warm-up."""
    times_s = []
    for _ in range(rounds + 1):
        finish(device)
        begin_s = time.perf_counter()
        call()
        finish(device)
        times_s.append(time.perf_counter() - begin_s)
    return np.array(times_s[1:])


def kernel_time_s(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Total seconds of the device's kernels in a call; without a GPU, the time of the call itself."""
    if device.type != "cuda":
        return float(np.median(host_times_s(call, device, rounds)))
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    finish(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(rounds):
            call()
        finish(device)
    ran = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    return float(sum(event.self_device_time_total for event in ran)) / rounds / 1e6
