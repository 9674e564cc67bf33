"""Who a process of an engine is, and where its ranks' workers are: asked in the core, and in each rank."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from . import compat
from .messages import Hello
from .settings import Settings


def engine_hello(vllm_config: Any, settings: Settings, role: str, rank: int, engine: str) -> Hello:
    """`role`: `core`, or `rank` for the process that computes as that rank. `engine`: what the ranks have agreed on."""
    return Hello(
        engine=engine,
        role=role,
        version=compat.version(),
        pid=os.getpid(),
        host=socket.gethostname(),
        world=vllm_config.parallel_config.tensor_parallel_size,
        rank=rank,
        data_parallel_rank=compat.data_parallel_index(vllm_config),
        url=settings.engine_url,
    )


def rank_directory(vllm_config: Any, settings: Settings, rank: int) -> Path:
    """Where the control page of the engine's rank lies."""
    index = compat.data_parallel_index(vllm_config)
    return settings.rank_directory(index if settings.replica is None else settings.replica, rank).absolute()
