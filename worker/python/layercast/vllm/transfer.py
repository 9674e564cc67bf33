"""
vLLM's weight-transfer backend `layercast`: `/update_weights` waits for a commit, or copies it. Imports vLLM.

vLLM makes an engine of it in every rank when `--weight-transfer-config '{"backend": "layercast"}'` asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferEngine

from .. import arena as arenas
from . import compat
from .copying import copy_all, plan_copies
from .core_gate import BACKEND
from .errors import EngineUnsupported
from .identity import rank_directory
from .log import log
from .seat import current_seat
from .settings import Settings, read_settings
from .weight_update import Copied, Followed, UpdateInfo, WeightUpdate, read_update_info


def register() -> None:
    """In each of vLLM's processes, before it makes the engine."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, LayercastWeightTransferEngine)


class LayercastWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]
    """A rank's side. There is no trainer's side: it submits a checkpoint to the fleet, or uses `layercast.push`."""

    init_info_cls = Settings
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(self, config: Any, vllm_config: Any, device: Any, model: Any) -> None:
        super().__init__(config, vllm_config, device, model)
        seat = current_seat()
        self._update: WeightUpdate | None = None if seat is None else Followed(seat)

    def parse_init_info(self, init_dict: Mapping[str, Any]) -> Settings:
        """`run_dir`, `fleet`, `replica` where the engine loaded its own weights; other backends' fields are ignored."""
        known = {field.name for field in fields(Settings)}
        return read_settings({name: value for name, value in init_dict.items() if name in known})

    def parse_update_info(self, update_dict: Mapping[str, Any]) -> UpdateInfo:
        return read_update_info(update_dict)

    def init_transfer_engine(self, init_info: Settings) -> None:
        """With the layercast loader there is nothing left to do; otherwise attaches, and compares all tensors."""
        if current_seat() is not None:
            return
        directory = rank_directory(self.vllm_config, init_info, compat.rank())
        arena = arenas.attach(directory, timeout_s=init_info.timeout_s)
        copies = plan_copies(self.model, arena.tensors())
        self._update = Copied(arena.directory, lambda: copy_all(copies))
        log.info("Copies %d tensors from %s at each weight update.", len(copies), arena.directory)

    def start_weight_update(self) -> None:
        self._require_update().start()

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        # vLLM's own also waits for an accelerator, which a CPU does not have; receiving waits for the device itself.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: UpdateInfo) -> None:
        self._require_update().receive(update_info)

    def finish_weight_update(self) -> None:
        self._require_update().finish()

    def shutdown(self) -> None:
        """The seat stays: it is the engine's, not the trainer's."""

    @staticmethod
    def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
        raise EngineUnsupported("Weights reach this engine through its fleet: send them with `layercast.push`.")

    def _require_update(self) -> WeightUpdate:
        if self._update is None:
            raise EngineUnsupported(
                "This engine loaded its own weights and was not told where to copy from: call /init_weight_transfer_engine with "
                '{"init_info": {"run_dir": ...}} first.'
            )
        return self._update
