"""A holder and a worker in one, for the tests of CUDA: another process's device memory, swapped when told on stdin.

    python -m tests.device_writer RANK_DIRECTORY

It answers each line, such as `start 1 63` or `swap 2 64` (a weight version, the value of all bytes), with `done`.
"""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from pathlib import Path

from layercast.cuda import IpcHandle, Uuid, call, current

from .rank_writer import TENSORS, RankWriter

# What the driver hands out below this size may share a block with other allocations, which IPC would then share too.
GRANULE_BYTES = 2 << 20


class DeviceWriter(RankWriter):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory, TENSORS)
        device = ctypes.c_int()
        call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self.context = ctypes.c_void_p()
        call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), device)
        uuid, handle, self.address = Uuid(), IpcHandle(), ctypes.c_uint64()
        call("cuDeviceGetUuid_v2", ctypes.byref(uuid), device)
        with current(self.context):
            call("cuMemAlloc_v2", ctypes.byref(self.address), ctypes.c_size_t(GRANULE_BYTES))
            call("cuIpcGetMemHandle", ctypes.byref(handle), self.address)
        self.device_kind, self.device_uuid, self.ipc_handle = 1, bytes(uuid.bytes), bytes(handle.reserved)

    def set_bytes(self, value: int) -> None:
        with current(self.context):
            call("cuMemsetD8_v2", self.address, ctypes.c_ubyte(value), ctypes.c_size_t(self.data_bytes))
            call("cuCtxSynchronize")


def main() -> None:
    writer = DeviceWriter(Path(sys.argv[1]))
    for line in sys.stdin:
        verb, version, value = line.split()
        if verb == "start":
            (writer.directory / "live.safetensors.header").write_bytes(writer.header)
        writer.swap(version, partial(writer.set_bytes, int(value)))
        print("done", flush=True)


if __name__ == "__main__":
    main()
