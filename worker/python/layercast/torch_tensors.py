"""The table and the bytes -> tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .tensor_table import TableEntry

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F8_E4M3": "float8_e4m3fn", "U8": "uint8"}


def view_tensors(flat: torch.Tensor, table: dict[str, TableEntry]) -> dict[str, torch.Tensor]:
    """Views of `flat`, uint8 [data_bytes]. Raises ImportError where this torch lacks a dtype."""
    return {
        name: flat[entry.begin : entry.end].view(_torch_dtype(name, entry.dtype)).view(entry.shape)
        for name, entry in table.items()
    }


def _torch_dtype(name: str, dtype: str) -> torch.dtype:
    import torch

    found = getattr(torch, _TORCH_NAMES[dtype], None)
    if found is None:
        raise ImportError(f"{name} is {dtype}, which torch {torch.__version__} does not know: use torch 2.1 or newer")
    return found
