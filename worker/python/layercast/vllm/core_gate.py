"""The gate of a real engine."""

from __future__ import annotations

from .compat_core import Core, collect_failures_of_ranks, in_every_rank, put_gate_between_steps
from .gate import Gate, RankPlace
from .identity import engine_hello, rank_directory
from .seat import ranks_engine
from .settings import read_settings

# Of `--weight-transfer-config`.
BACKEND = "layercast"


def install() -> None:
    """In each of vLLM's processes: one that is forked later is not asked again. Imports vLLM."""
    from vllm.v1.engine.core import EngineCoreProc

    put_gate_between_steps(EngineCoreProc, open_gate)


def open_gate(core: Core) -> Gate | None:
    """None for an engine that loaded its own weights."""
    config = core.vllm_config
    if config.load_config.load_format == "layercast" or getattr(config.weight_transfer_config, "backend", "") == BACKEND:
        collect_failures_of_ranks(core)
    if config.load_config.load_format != "layercast":
        return None
    settings = read_settings(config.load_config.model_loader_extra_config)
    engine = next(iter(in_every_rank(core, ranks_engine)))
    places = [
        RankPlace(rank_directory(config, settings, rank), engine_hello(config, settings, "core", rank, engine))
        for rank in range(config.parallel_config.tensor_parallel_size)
    ]
    return Gate(core, places, clear_cache=settings.clear_cache)
