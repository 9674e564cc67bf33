"""torch where it is installed, else None; typed as neither, since a type checker may not have it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def _torch() -> Any:
    try:
        return import_module("torch")
    except ImportError:
        return None


torch: Any = _torch()
