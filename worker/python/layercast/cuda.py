"""The live bytes of a rank on a GPU: device memory of another process, opened by its IPC handle.

Through the driver's own library, which is there wherever a GPU is used; the runtime's lies where each torch wheel puts
it. All of it happens in the device's primary context, which is the one that torch uses.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .control_page import ControlPage
from .errors import ArenaInvalid, DeviceUnavailable
from .flat_tensor import DLPACK_CUDA, flat_tensor
from .live_file import check_sizes
from .regular_file import open_regular
from .tensor_table import TableEntry, parse_header

if TYPE_CHECKING:
    import torch

HEADER_NAME = "live.safetensors.header"
_LAZY_PEER_ACCESS = 1


class IpcHandle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * 64)]


class Uuid(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 16)]


class HandleRefused(DeviceUnavailable):
    """Most likely nobody holds the memory any more, and the page is from before the worker's last life."""


class LiveMemory:
    """Unmapped once it is closed and the last tensor made from it is gone."""

    def __init__(self, directory: Path, page: ControlPage) -> None:
        """Raises FileNotFoundError, ArenaInvalid and DeviceUnavailable."""
        path = directory / HEADER_NAME
        with open_regular(path) as file:
            check_sizes(os.fstat(file.fileno()).st_size, page, page.data_offset, path)
            header = file.read(page.data_offset)
        self.table: dict[str, TableEntry] = parse_header(header, page.data_bytes, str(path))
        ordinal = find_device(page.device_uuid)
        self._mapped = Mapping(ordinal, page.ipc_handle, page.data_bytes)
        self.device = f"cuda:{ordinal}"

    def memory(self) -> memoryview:
        raise DeviceUnavailable(f"the weights are in the memory of {self.device}: use tensors(), not buffers()")

    def flat(self) -> torch.Tensor:
        """The tensor bytes: uint8 [data_bytes]."""
        mapped = self._mapped
        return flat_tensor(mapped.address, mapped.size_bytes, (DLPACK_CUDA, mapped.ordinal), mapped)

    def finish_reads(self) -> None:
        """Waits for all that this process has queued on the device: it may still read."""
        self._mapped.synchronize()


class Mapping:
    """The holder's allocation in this process's address space, for as long as this object lives."""

    def __init__(self, ordinal: int, ipc_handle: bytes, size_bytes: int) -> None:
        self.ordinal = ordinal
        self.size_bytes = size_bytes
        self._context = ctypes.c_void_p()
        device = _device_of(ordinal)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        address = ctypes.c_uint64()
        try:
            with current(self._context):
                handle = IpcHandle.from_buffer_copy(ipc_handle)
                call("cuIpcOpenMemHandle_v2", ctypes.byref(address), handle, ctypes.c_uint(_LAZY_PEER_ACCESS))
        except DeviceUnavailable as error:
            call("cuDevicePrimaryCtxRelease_v2", device)
            raise HandleRefused(f"the rank's memory on cuda:{ordinal} cannot be opened: {error}") from error
        self.address: int = address.value
        # Not at exit: tensors may outlive this, and the end of the process unmaps it anyway.
        weakref.finalize(self, _close, device, self._context, self.address).atexit = False
        self._check_size()

    def synchronize(self) -> None:
        with current(self._context):
            call("cuCtxSynchronize")

    def _check_size(self) -> None:
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        with current(self._context):
            call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(self.address))
        held_bytes = base.value + size.value - self.address
        if held_bytes < self.size_bytes:
            raise ArenaInvalid(
                f"the control page says {self.size_bytes} tensor bytes, the device memory behind it has {held_bytes}: "
                "reload the rank's weights, then attach again"
            )


def _close(device: ctypes.c_int, context: ctypes.c_void_p, address: int) -> None:
    # Kernels that were queued before the last tensor went may still read.
    with current(context):
        call("cuCtxSynchronize")
        call("cuIpcCloseMemHandle", ctypes.c_uint64(address))
    call("cuDevicePrimaryCtxRelease_v2", device)


def find_device(uuid: bytes) -> int:
    """The ordinal, among those that this process sees, of the device with this UUID. Raises DeviceUnavailable."""
    count = ctypes.c_int()
    call("cuDeviceGetCount", ctypes.byref(count))
    seen = [_uuid_of(ordinal) for ordinal in range(count.value)]
    if uuid in seen:
        return seen.index(uuid)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
    names = ", ".join(one.hex() for one in seen) or "none"
    raise DeviceUnavailable(
        f"the arena is on the GPU with UUID {uuid.hex()}, this process sees {names}{hidden}: "
        "start it on that host with that GPU visible"
    )


def _uuid_of(ordinal: int) -> bytes:
    uuid = Uuid()
    call("cuDeviceGetUuid_v2", ctypes.byref(uuid), _device_of(ordinal))
    return bytes(uuid.bytes)


def _device_of(ordinal: int) -> ctypes.c_int:
    device = ctypes.c_int()
    call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
    return device


@contextmanager
def current(context: ctypes.c_void_p) -> Iterator[None]:
    """Makes the context this thread's, and then the one before again."""
    call("cuCtxPushCurrent_v2", context)
    try:
        yield
    finally:
        call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


_driver: ctypes.CDLL | None = None


def call(name: str, *arguments: object) -> None:
    """Calls a function of the driver. Raises DeviceUnavailable with the driver's own words."""
    driver = _open_driver()
    status = getattr(driver, name)(*arguments)
    if status != 0:
        raise DeviceUnavailable(f"{name} failed: {_words(driver, status)} (CUDA error {status})")


def _open_driver() -> ctypes.CDLL:
    global _driver
    if _driver is None:
        try:
            driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DeviceUnavailable(f"the arena is on a GPU and its driver cannot be loaded: {error}") from None
        status = driver.cuInit(ctypes.c_uint(0))
        if status != 0:
            raise DeviceUnavailable(f"cuInit failed: {_words(driver, status)} (CUDA error {status})")
        _driver = driver
    return _driver


def _words(driver: ctypes.CDLL, status: int) -> str:
    words = ctypes.c_char_p()
    driver.cuGetErrorString(ctypes.c_int(status), ctypes.byref(words))
    return (words.value or b"unknown error").decode()
