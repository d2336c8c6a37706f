"""How fast a device could multiply matrices: published peaks for accelerators, a measurement for a CPU."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp

# Dense bfloat16 operations per second of one device, from the makers' data sheets, by a part of
# `jax.Device.device_kind` (the first that fits counts).
PEAK_FLOPS_BF16 = (
    ("h200", 989e12), ("h100 pcie", 756e12), ("h100 nvl", 835e12), ("h100", 989e12), ("gh200", 989e12),
    ("b200", 2250e12), ("b100", 1750e12), ("a100", 312e12), ("a10g", 70e12), ("l40s", 362e12),
    ("l40", 181e12), ("l4", 121e12), ("v100", 125e12), ("t4", 65e12), ("rtx 4090", 165e12), ("rtx 3090", 71e12),
    ("tpu7x", 2307e12), ("tpu v6", 918e12), ("tpu v5p", 459e12), ("tpu v5 lite", 197e12), ("tpu v5e", 197e12),
    ("tpu v5", 459e12), ("tpu v4", 275e12), ("tpu v3", 123e12), ("tpu v2", 45e12),
)


def peak_flops(devices: list[jax.Device] | None = None, dtype: str = "bfloat16") -> float:
    """Operations per second that `devices` (all of them) could do together; 0.0 when not known.

    Accelerators: the table, at bfloat16's peak whatever `dtype` is, so that MFU never flatters float32. Virtual CPU
    devices share one processor, which is measured once (`measure_matmul`).
    """
    devices = jax.devices() if devices is None else devices
    kind = devices[0].device_kind.lower()
    if devices[0].platform == "cpu":
        return measure_matmul(dtype)
    for name, peak in PEAK_FLOPS_BF16:
        if name in kind:
            return peak * len(devices)
    return 0.0


@functools.cache
def measure_matmul(dtype: str = "float32", size: int = 1024, seconds: float = 0.5) -> float:
    """Operations per second of a [size, size] matrix product on the first device: the median of about `seconds`."""
    a = jnp.ones((size, size), jnp.dtype(dtype))
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32))
    product(a).block_until_ready()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        begun = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / sorted(times)[len(times) // 2]
