"""What cannot compute out of an arena, each with the flag that asks for it. Found before a byte of the arena is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from .errors import EngineUnsupported
from .layouts import METHODS
from .settings import Settings

Refusal = Callable[[Any, Settings], str | None]
"""Takes vLLM's config and the settings; says why not, or nothing."""

# Compute with the codes and scales as an arena has them. Others pack, pad, swizzle or rewrite them, or are not known to.
LINEAR_KERNELS = frozenset(
    {
        "CutlassFP8ScaledMMLinearKernel",
        "CutlassFp8BlockScaledMMKernel",
        "TritonFP8ScaledMMLinearKernel",
        "TritonFp8BlockScaledMMKernel",
        "PerTensorTorchFP8ScaledMMLinearKernel",
        "ChannelWiseTorchFP8ScaledMMLinearKernel",
        "RowWiseTorchFP8ScaledMMLinearKernel",
        "BlockWiseTorchFP8ScaledMMLinearKernel",
    }
)
EXPERT_BACKENDS = frozenset({"TRITON", "VLLM_CUTLASS"})
CUTLASS_MULTIPLE = 16
_WITHOUT_DRAFT_WEIGHTS = ("ngram", "ngram_gpu", "suffix", "custom_class")


def refuse_config(vllm_config: Any, settings: Settings) -> None:
    """Raises EngineUnsupported with every reason."""
    reasons = [reason for refusal in REFUSALS if (reason := refusal(vllm_config, settings)) is not None]
    _raise(reasons)


def pipeline_parallel(config: Any, settings: Settings) -> str | None:
    size = config.parallel_config.pipeline_parallel_size
    return f"--pipeline-parallel-size {size}: a fleet's rank holds all layers; use --tensor-parallel-size." if size > 1 else None


def prefill_context_parallel(config: Any, settings: Settings) -> str | None:
    size = getattr(config.parallel_config, "prefill_context_parallel_size", 1)
    return f"--prefill-context-parallel-size {size}: a fleet's rank is one tensor-parallel rank." if size > 1 else None


def expert_balancing(config: Any, settings: Settings) -> str | None:
    if not getattr(config.parallel_config, "enable_eplb", False):
        return None
    return "--enable-eplb: it moves experts between ranks, which the fleet does not know of."


def elastic_experts(config: Any, settings: Settings) -> str | None:
    if not getattr(config.parallel_config, "enable_elastic_ep", False):
        return None
    return "--enable-elastic-ep: it moves experts between ranks, which the fleet does not know of."


def expert_placement(config: Any, settings: Settings) -> str | None:
    strategy = getattr(config.parallel_config, "expert_placement_strategy", "linear")
    if strategy == "linear" or not config.parallel_config.enable_expert_parallel:
        return None
    return f"--expert-placement-strategy {strategy}: a fleet places experts in order (linear)."


def data_parallel_experts(config: Any, settings: Settings) -> str | None:
    size = config.parallel_config.data_parallel_size
    if size <= 1:
        return None
    return (
        f"--data-parallel-size {size} with experts: the ranks of all engines step together and could not be stopped between two "
        "steps; start that many engines of one replica each."
    )


def several_hosts(config: Any, settings: Settings) -> str | None:
    nodes = getattr(config.parallel_config, "nnodes", 1)
    if nodes > 1:
        return f"--nnodes {nodes}: an engine and the ranks that it computes out of are on one host."
    if config.parallel_config.distributed_executor_backend == "ray":
        return "--distributed-executor-backend ray: it may place ranks on other hosts; use mp."
    return None


def sleep_mode(config: Any, settings: Settings) -> str | None:
    if settings.allow_sleep or not config.model_config.enable_sleep_mode:
        return None
    return (
        "--enable-sleep-mode: weights in an arena are not vLLM's to free, so sleeping frees the cache alone. "
        'If that is enough: --model-loader-extra-config \'{"allow_sleep": true}\'.'
    )


def cpu_offload(config: Any, settings: Settings) -> str | None:
    offload = config.offload_config
    if offload.uva.cpu_offload_gb > 0:
        return f"--cpu-offload-gb {offload.uva.cpu_offload_gb}: it moves weights out of the arena."
    if offload.prefetch.offload_group_size > 0:
        return f"--offload-group-size {offload.prefetch.offload_group_size}: it moves weights out of the arena."
    return None


def lora_vocabulary(config: Any, settings: Settings) -> str | None:
    extra = getattr(config.lora_config, "lora_extra_vocab_size", 0) if config.lora_config is not None else 0
    return f"--lora-extra-vocab-size {extra}: it makes the embedding larger than the arena's." if extra > 0 else None


def draft_model(config: Any, settings: Settings) -> str | None:
    method = getattr(config.speculative_config, "method", None)
    if config.speculative_config is None or method in _WITHOUT_DRAFT_WEIGHTS:
        return None
    return f"--speculative-config with method {method}: the draft's weights are not in the arena."


def other_transfer(config: Any, settings: Settings) -> str | None:
    backend = getattr(getattr(config, "weight_transfer_config", None), "backend", "layercast")
    if backend == "layercast":
        return None
    return (
        f"--weight-transfer-config with backend {backend}: it would write into weights that the fleet commits; "
        'use {"backend": "layercast"}.'
    )


def engine_in_process(config: Any, settings: Settings) -> str | None:
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") != "0":
        return None
    return "VLLM_ENABLE_V1_MULTIPROCESSING=0: an engine core in the caller's process cannot be stopped between two steps; unset it."


def rewriting_environment(config: Any, settings: Settings) -> str | None:
    forced = os.environ.get("VLLM_TEST_FORCE_FP8_MARLIN", "0")
    return None if forced in ("", "0") else f"VLLM_TEST_FORCE_FP8_MARLIN={forced}: Marlin packs weights; unset it."


REFUSALS: tuple[Refusal, ...] = (
    pipeline_parallel,
    prefill_context_parallel,
    expert_balancing,
    elastic_experts,
    expert_placement,
    data_parallel_experts,
    several_hosts,
    sleep_mode,
    cpu_offload,
    lora_vocabulary,
    draft_model,
    other_transfer,
    engine_in_process,
    rewriting_environment,
)


def refuse_methods(modules: Iterable[tuple[str, Any]]) -> None:
    """
    `modules`: path and module of those with a quantization method. Raises EngineUnsupported for a method that is not known,
    a kernel that keeps weights in another form, and sizes that a kernel would pad.
    """
    reasons: dict[str, str] = {}
    for path, module in modules:
        reason = _method(module.quant_method) or _padded(module)
        if reason is not None:
            # One sentence a reason: a model has it in every layer.
            reasons.setdefault(reason, f"{path}: {reason}")
    _raise(list(reasons.values()))


def _method(method: Any) -> str | None:
    name = type(method).__name__
    if name not in METHODS:
        return (
            f"{name} is a quantization method whose layout Layercast does not make; give --quantization fp8_per_tensor, "
            "fp8_per_channel or fp8_per_block, or none at all, as the fleet's recipe is."
        )
    return _linear_kernel(name, method) or _expert_backend(name, method)


def _linear_kernel(name: str, method: Any) -> str | None:
    kernel = type(method.fp8_linear).__name__ if hasattr(method, "fp8_linear") else None
    if kernel is None or kernel in LINEAR_KERNELS:
        return None
    if "DeepGEMM" in kernel or "DeepGemm" in kernel:
        return f"{kernel} rewrites block scales to powers of two (UE8M0); set VLLM_USE_DEEP_GEMM=0 or --linear-backend cutlass."
    return f"{kernel} keeps weights in a form of its own; give --linear-backend cutlass (or triton, torch)."


def _expert_backend(name: str, method: Any) -> str | None:
    backend = getattr(method, "fp8_backend", None) or getattr(method, "unquantized_backend", None)
    chosen = getattr(backend, "name", None)
    if chosen is None or chosen in EXPERT_BACKENDS:
        return None
    if chosen == "CPU" or chosen.startswith("CPU_"):
        return f"{chosen} experts compute with a packed copy of their weights, which a commit does not reach; use a GPU."
    return f"{chosen} experts keep weights in a form of their own; give --moe-backend triton."


def _padded(module: Any) -> str | None:
    kernel = type(getattr(module.quant_method, "fp8_linear", None)).__name__
    weight = module._parameters.get("weight")
    if kernel != "CutlassFP8ScaledMMLinearKernel" or weight is None:
        return None
    sizes = tuple(weight.shape)
    if all(size % CUTLASS_MULTIPLE == 0 for size in sizes):
        return None
    return (
        f"a weight of {list(sizes)} would be padded to multiples of {CUTLASS_MULTIPLE} by Cutlass, into a copy; "
        "give --linear-backend torch, or leave the layer out of the quantization (ignore)."
    )


def _raise(reasons: list[str]) -> None:
    if reasons:
        raise EngineUnsupported("The engine cannot compute out of a Layercast arena:\n" + "\n".join(f"  {one}" for one in reasons))
