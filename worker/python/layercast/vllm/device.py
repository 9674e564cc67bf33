"""What is queued on the device, without importing torch where nobody else has."""

from __future__ import annotations

import sys
from typing import Any


def wait_for_device() -> None:
    """Returns when the GPU has done all that this process gave it. At once where there is none."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
