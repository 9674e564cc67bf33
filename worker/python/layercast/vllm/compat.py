"""All that differs between vLLM's versions, and all that touches what it does not promise to keep."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

from .errors import EngineUnsupported
from .log import log

_failed: list[str] = []


def install() -> None:
    """
    In each of vLLM's processes, before it looks for a loader. Imports vLLM. What fails here is kept until somebody asks for
    the load format: vLLM without it goes on as ever.
    """
    for part in (_install_loader,):
        try:
            part()
        except Exception as error:
            log.warning("Layercast's plugin is not what vLLM %s expects (%s): %r", version(), part.__name__, error)
            _failed.append(f"{part.__name__}: {error!r}")


def require_installed() -> None:
    """Raises EngineUnsupported when a part of the plugin does not fit this vLLM."""
    if _failed:
        raise EngineUnsupported(
            f"vLLM {version()} is not what this release of Layercast was written for ({'; '.join(_failed)}): install a version "
            "that it knows (docs/vllm.md), or a newer Layercast."
        )


def _install_loader() -> None:
    from vllm.model_executor.model_loader import register_model_loader

    from . import core_gate, transfer
    from .loader import loader_class

    register_model_loader("layercast")(loader_class())
    core_gate.install()
    transfer.register()


def version() -> str:
    import vllm

    return str(vllm.__version__)


def rank() -> int:
    """Of this process among the tensor-parallel ranks."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return int(get_tensor_model_parallel_rank())


def agree_on_engine_id(vllm_config: Any) -> str:
    """
    In every rank at the same time: the same text in all of them, and in no other engine. The `instance_id` of vLLM's config will
    not do: each process makes a new one when it checks the config again.
    """
    from vllm.distributed import get_tp_group

    mine = f"{uuid.uuid4().hex[:12]}-{data_parallel_index(vllm_config)}"
    return str(get_tp_group().broadcast_object(mine, src=0))


def data_parallel_index(vllm_config: Any) -> int:
    """Also where the ranks of a dense model know nothing of each other, and each counts itself as the only one."""
    return int(vllm_config.parallel_config.data_parallel_index)


def is_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def use_plain_cpu_kernels() -> None:
    """
    On the CPU vLLM packs linear weights for oneDNN or AMX and lets go of the originals, so a commit would not be seen.
    `torch.nn.functional.linear` computes with the weight as it is.
    """
    import vllm._custom_ops as ops
    import vllm.model_executor.layers.utils as layers

    # Asked by versions before 0.28; later ones ask the function alone.
    os.environ["VLLM_CPU_SGL_KERNEL"] = "0"
    os.environ["VLLM_ZENTORCH_WEIGHT_PREPACK"] = "0"
    ops._supports_onednn = False
    layers.check_cpu_sgl_kernel = lambda *sizes: False


def build_model(vllm_config: Any, model_config: Any, prefix: str) -> Any:
    """The modules as vLLM makes them, weights empty."""
    from vllm.model_executor.model_loader.utils import initialize_model

    return initialize_model(vllm_config=vllm_config, model_config=model_config, prefix=prefix)


def default_dtype(dtype: Any) -> AbstractContextManager[Any]:
    from vllm.utils.torch_utils import set_default_torch_dtype

    return set_default_torch_dtype(dtype)  # type: ignore[no-any-return]


def tie_as_configured(model_config: Any) -> None:
    """
    Since 0.30 vLLM unties a tied head when the checkpoint has one, and ties it again when the loaded values are equal: by the
    values, which a commit changes. A fleet goes by the config, and so does this engine.
    """
    if getattr(model_config, "word_embeddings_untied_by_checkpoint", False):
        model_config.hf_config.tie_word_embeddings = True
        model_config.hf_config.get_text_config().tie_word_embeddings = True
        model_config.word_embeddings_untied_by_checkpoint = False


def expose_input_quantization(module: Any, kernel: Any) -> None:
    """Where this version's per-channel method lets the layer before quantize its input (0.32), so does ours."""
    online = import_module("vllm.model_executor.layers.quantization.online.fp8")
    expose: Callable[[Any, Any], None] | None = getattr(online, "expose_input_quant_key", None)
    if expose is not None:
        expose(module, kernel)


def finish_without_quantization(model: Any, model_config: Any, device: Any, methods: list[Any]) -> None:
    """vLLM's own post-processing (attention, flags, hooks of the model), in which these methods have nothing left to do."""
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    with _doing_nothing(list({id(method): method for method in methods}.values())):
        process_weights_after_loading(model, model_config, device)


@contextmanager
def _doing_nothing(methods: list[Any]) -> Iterator[None]:
    for method in methods:
        method.process_weights_after_loading = _do_nothing
    try:
        yield
    finally:
        for method in methods:
            del method.process_weights_after_loading


def _do_nothing(layer: Any) -> None:
    """In place of a method's post-processing that is done."""


def has_quantized_cache(attention: Any) -> bool:
    """Whether the engine multiplies with this layer's k and v scales."""
    return str(getattr(attention, "kv_cache_dtype", "auto")).startswith(("fp8", "int8", "nvfp4"))


def fill_scale(attention: Any, scale: str, value: float) -> None:
    """One of `k_scale`, `v_scale`, `q_scale`, `prob_scale`: the buffer, and the copies that the host keeps."""
    getattr(attention, f"_{scale}").fill_(value)
    if hasattr(attention, f"_{scale}_float"):
        setattr(attention, f"_{scale}_float", value)
    if hasattr(attention, f"_{scale}_cpu"):
        getattr(attention, f"_{scale}_cpu").fill_(value)


def is_attention(module: Any) -> bool:
    """A layer with a cache of keys and values, hence with scales."""
    return all(f"_{scale}" in module._buffers for scale in ("k_scale", "v_scale"))


def is_latent_attention(module: Any) -> bool:
    return hasattr(module, "kv_b_proj") and hasattr(module, "process_weights_after_loading")
