"""The live bytes of a rank on the CPU: the file `live.safetensors`, mapped shared and read-only."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from .control_page import ControlPage
from .errors import ArenaInvalid
from .flat_tensor import DLPACK_CPU, flat_tensor
from .regular_file import open_regular
from .tensor_table import MAX_HEADER_BYTES, TableEntry, parse_header

if TYPE_CHECKING:
    import torch

FILE_NAME = "live.safetensors"


class LiveFile:
    """Unmapped once it is closed and the last view or tensor made from it is gone."""

    device = "cpu"

    def __init__(self, directory: Path, page: ControlPage) -> None:
        """Raises FileNotFoundError, and ArenaInvalid when the file is not the one that the page describes."""
        path = directory / FILE_NAME
        with open_regular(path) as file:
            check_sizes(os.fstat(file.fileno()).st_size, page, page.data_offset + page.data_bytes, path)
            self._mapped = _map(file.fileno(), page.data_offset + page.data_bytes, path)
        header = bytes(memoryview(self._mapped)[: page.data_offset])
        self.table: dict[str, TableEntry] = parse_header(header, page.data_bytes, str(path))
        self._data_offset = page.data_offset
        self._data_bytes = page.data_bytes

    def memory(self) -> memoryview:
        """The tensor bytes."""
        return memoryview(self._mapped).toreadonly().cast("B")[self._data_offset :]

    def flat(self) -> torch.Tensor:
        """The tensor bytes: uint8 [data_bytes]."""
        address = ctypes.addressof(self._mapped) + self._data_offset
        return flat_tensor(address, self._data_bytes, (DLPACK_CPU, 0), self._mapped)

    def finish_reads(self) -> None:
        """What a thread of the CPU has read, it has read."""


def check_sizes(file_bytes: int, page: ControlPage, expected_bytes: int, path: Path) -> None:
    """A mapping that reaches past its file's end would kill the reader."""
    if page.data_bytes == 0 or not 8 < page.data_offset <= MAX_HEADER_BYTES + 8:
        raise ArenaInvalid(
            f"the control page says {page.data_bytes} tensor bytes after {page.data_offset} of header for {path}: "
            "reload the rank's weights, then attach again"
        )
    if file_bytes != expected_bytes:
        raise ArenaInvalid(
            f"{path} has {file_bytes} bytes, its control page says {expected_bytes}: "
            "reload the rank's weights, then attach again"
        )


def _map(descriptor: int, size_bytes: int, path: Path) -> ctypes.Array[ctypes.c_ubyte]:
    # Through libc, since the mmap module does not tell the address of a read-only mapping.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = libc.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"mapping {size_bytes} bytes failed: {os.strerror(number)}", str(path))
    mapped = (ctypes.c_ubyte * size_bytes).from_address(address)
    # Not at exit: tensors may outlive this, and the end of the process unmaps it anyway.
    weakref.finalize(mapped, libc.munmap, address, size_bytes).atexit = False
    return mapped
