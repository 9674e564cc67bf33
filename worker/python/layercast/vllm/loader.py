"""`--load-format layercast`: the engine's parameters are the arena's tensors. Read `load_model` from top to bottom."""

from __future__ import annotations

from typing import Any

from .. import arena as arenas
from . import compat
from .audit import Audit, take_audit
from .binding import carry_out, make_plan, replaced
from .digest import digest
from .empty_meta import empty_to_meta, make_rest_real
from .errors import EngineUnsupported
from .identity import engine_hello, rank_directory
from .latent import Latent
from .log import log
from .methods import METHODS, method_of
from .probe import Probe, probing
from .reachable import point_again
from .refusals import refuse_config, refuse_methods
from .scales import fill_placeholders, fill_scales
from .seat import RankSeat, leave_seat, take_seat
from .settings import Settings, read_settings
from .versions import require_known


def loader_class() -> type[Any]:
    """The class that vLLM makes an object of; made here because its base is vLLM's."""
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class ArenaModelLoader(BaseModelLoader):  # type: ignore[misc]
        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            self.settings = read_settings(load_config.model_loader_extra_config)

        def download_model(self, model_config: Any) -> None:
            """There is nothing to download: weights come from the fleet."""

        def load_weights(self, model: Any, model_config: Any) -> None:
            raise EngineUnsupported(
                "The weights of this engine are committed by its Layercast fleet: reload them there (`layercast submit`, or POST "
                "/v1/reloads), not in the engine."
            )

        def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
            return load_model(self.settings, vllm_config, model_config, prefix)

    return ArenaModelLoader


def load_model(settings: Settings, vllm_config: Any, model_config: Any, prefix: str) -> Any:
    """
    vLLM's model, in evaluation mode, every parameter over the arena. Raises the errors of `errors.py`, and Timeout where there
    is no worker or no live weights.
    """
    require_known(compat.version(), settings.allow_unknown_version)
    compat.require_installed()
    refuse_config(vllm_config, settings)
    if compat.is_cpu():
        compat.use_plain_cpu_kernels()
    compat.tie_as_configured(model_config)
    seat = _take_seat(settings, vllm_config)
    try:
        model = _load_seated(seat, settings.timeout_s, vllm_config, model_config, prefix)
    except BaseException:
        leave_seat()
        raise
    return model


def _load_seated(seat: RankSeat, timeout_s: float, vllm_config: Any, model_config: Any, prefix: str) -> Any:
    """Live weights stay what they are while this runs."""
    import torch

    arena = arenas.attach(seat.directory, timeout_s=timeout_s)
    tensors = arena.tensors()
    device = torch.device(vllm_config.device_config.device)
    _require_device(arena, device)

    with compat.default_dtype(model_config.dtype), device, empty_to_meta() as written:
        model = compat.build_model(vllm_config, model_config, prefix)
    modules = list(model.named_modules())
    refuse_methods((path, module) for path, module in modules if method_of(module) is not None)

    plan = make_plan(model, arena.layout())
    before = digest(tensors.values())
    carry_out(plan, tensors, lambda view: torch.nn.Parameter(view, requires_grad=False))
    make_rest_real((module for _, module in modules), device, written)
    point_again((module for _, module in modules), replaced(plan))
    fill_placeholders(plan.by_value, {id(module): path for path, module in modules}, tensors)

    _finish(model, model_config, device, tensors)
    scales = fill_scales(modules, tensors)
    audit = take_audit(modules, tensors, scales, (before, digest(tensors.values())))
    audit()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what the digests took, for the engine's cache of keys and values
    _say(arena, audit)
    seat.loaded(arena, audit)
    return model.eval()


def _finish(model: Any, model_config: Any, device: Any, tensors: dict[str, Any]) -> None:
    """What post-processing must still do, watched."""
    import torch

    probe = Probe(tensors)
    latent = Latent(model, tensors)
    quantized = [(path, module, method) for path, module in model.named_modules() if (method := method_of(module)) is not None]
    with torch.no_grad(), probing(probe):
        for path, module, method in quantized:
            probe.where = f"The post-processing of {path} ({type(method).__name__})"
            METHODS[type(method).__name__](module, method)
        probe.where = "The model's post-processing"
        with latent.unseen_by(probe):
            compat.finish_without_quantization(model, model_config, device, [method for _, _, method in quantized])
    latent.put_arena_tensors()


def _take_seat(settings: Settings, vllm_config: Any) -> RankSeat:
    """From here on the rank's worker makes nothing else live until this engine stands still."""
    rank = compat.rank()
    hello = engine_hello(vllm_config, settings, "rank", rank, compat.agree_on_engine_id(vllm_config))
    return take_seat(rank_directory(vllm_config, settings, rank), hello, settings.timeout_s)


def _require_device(arena: arenas.Arena, device: Any) -> None:
    import torch

    here = f"cuda:{torch.cuda.current_device()}" if device.type == "cuda" else device.type
    if arena.device != here:
        raise EngineUnsupported(
            f"The arena in {arena.directory} is on {arena.device}, this rank of the engine computes on {here}: give both the "
            "same GPU (CUDA_VISIBLE_DEVICES of the engine, --device of the fleet's workers)."
        )


def _say(arena: arenas.Arena, audit: Audit) -> None:
    log.info(
        "Layercast: %d parameters are the tensors of %s (%s), weight version %s, digest %s.",
        len(audit.places),
        arena.directory,
        arena.device,
        arena.weight_version,
        audit.digest,
    )
