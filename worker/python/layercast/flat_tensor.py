"""Memory that somebody else owns -> a torch tensor over it, without a copy.

Through DLPack, the one way in that takes a bare address on the CPU and on CUDA alike and asks for no other package
(`__cuda_array_interface__` needs numpy in torch, `torch.frombuffer` a buffer that may be written).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DLPACK_CPU = 1
DLPACK_CUDA = 2
_UNSIGNED = 1


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("ordinal", ctypes.c_int32)]


class _DType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_void_p),
        ("device", _Device),
        ("dimensions", ctypes.c_int32),
        ("dtype", _DType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _OwnedTensor(ctypes.Structure):
    """`DLManagedTensor` of dlpack.h."""

    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


# What must stay while torch's storage over it lives, by the address of its _OwnedTensor.
_held: dict[int, tuple[_OwnedTensor, Any, Any]] = {}


def _release(address: int, held: dict[int, Any] = _held) -> None:
    held.pop(address, None)


_deleter = _Deleter(_release)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def flat_tensor(address: int, size_bytes: int, device: tuple[int, int], owner: object) -> torch.Tensor:
    """
    uint8 [size_bytes] at `address` of `device` (a DLPACK_ kind, an ordinal). `owner` is kept until the last tensor that
    shares the storage is gone. Raises ImportError without torch.
    """
    from torch.utils.dlpack import from_dlpack

    shape = (ctypes.c_int64 * 1)(size_bytes)
    tensor = _Tensor(address, _Device(*device), 1, _DType(_UNSIGNED, 8, 1), shape, None, 0)
    owned = _OwnedTensor(tensor, None, _deleter)
    key = ctypes.addressof(owned)
    _held[key] = (owned, shape, owner)
    try:
        made = from_dlpack(_new_capsule(key, b"dltensor", None))
    except BaseException:
        _release(key)
        raise
    if made.data_ptr() != address:
        raise RuntimeError(f"torch made a copy at {made.data_ptr():#x} of the weights at {address:#x}")
    return made
