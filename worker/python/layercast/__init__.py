"""
Attaches to the kernel tensors of a Layercast rank, on the CPU (a mapped file) or on CUDA (IPC), without copying them.

    import layercast

    arena = layercast.attach(".layercast", rank=0)
    weights = arena.tensors()                        # dict[str, torch.Tensor], at addresses that stay
    arena.wait_for_version("120", timeout_s=600)
    logits = arena.read(lambda version: forward(weights, tokens).clone())

docs/consumer.md tells the rest. torch is imported by `tensors()` alone; nothing is unpickled.

And sends a trainer's tensors to the fleet, see `push`.
"""

from .arena import Arena, attach
from .bucket_bytes import RawTensor, Rows
from .errors import (
    ArenaClosed,
    ArenaInvalid,
    ArenaReplaced,
    Changed,
    DeviceUnavailable,
    LayercastError,
    PushFailed,
    Refused,
    Timeout,
)
from .push import PushSession, push

__version__ = "0.1.0"
__all__ = [
    "Arena",
    "ArenaClosed",
    "ArenaInvalid",
    "ArenaReplaced",
    "Changed",
    "DeviceUnavailable",
    "LayercastError",
    "PushFailed",
    "PushSession",
    "RawTensor",
    "Refused",
    "Rows",
    "Timeout",
    "attach",
    "push",
]
