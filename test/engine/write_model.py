"""
A checkpoint of random values on a GPU, with a tokenizer of one word an id, for `vllm serve`.

    python write_model.py DIRECTORY --seed 1 --shape qwen3-8b|qwen3-tiny|qwen3-moe|deepseek

`deepseek` has the head sizes that MLA's kernels take, and 16 experts; it needs transformers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FILE_BYTES = 2_200_000_000
SPREAD = 0.02
QWEN3 = {
    "qwen3-8b": dict(hidden=4096, intermediate=12288, vocabulary=151936, layers=36, heads=32, kv_heads=8),
    "qwen3-tiny": dict(hidden=256, intermediate=512, vocabulary=512, layers=4, heads=4, kv_heads=2),
}
HEAD_DIM = 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--shape", choices=[*QWEN3, *BY_TRANSFORMERS], required=True)
    settings = parser.parse_args()
    settings.directory.mkdir(parents=True, exist_ok=True)
    if settings.shape in BY_TRANSFORMERS:
        vocabulary = BY_TRANSFORMERS[settings.shape](settings.directory, settings.seed)
    else:
        vocabulary = write_qwen3(settings.directory, settings.seed, **QWEN3[settings.shape])
    write_tokenizer(settings.directory, vocabulary)


def write_qwen3(
    directory: Path, seed: int, *, hidden: int, intermediate: int, vocabulary: int, layers: int, heads: int, kv_heads: int
) -> int:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)

    def values(*shape: int, around: float = 0.0) -> torch.Tensor:
        random = torch.randn(*shape, device=device, dtype=torch.float32, generator=generator)
        return (around + random * SPREAD).to(torch.bfloat16).cpu()

    files = Files(directory)
    files.put("model.embed_tokens.weight", values(vocabulary, hidden))
    for layer in range(layers):
        linear = {
            "self_attn.q_proj": (heads * HEAD_DIM, hidden),
            "self_attn.k_proj": (kv_heads * HEAD_DIM, hidden),
            "self_attn.v_proj": (kv_heads * HEAD_DIM, hidden),
            "self_attn.o_proj": (hidden, heads * HEAD_DIM),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        }
        norms = {
            "self_attn.q_norm": HEAD_DIM,
            "self_attn.k_norm": HEAD_DIM,
            "input_layernorm": hidden,
            "post_attention_layernorm": hidden,
        }
        for name, shape in linear.items():
            files.put(f"model.layers.{layer}.{name}.weight", values(*shape))
        for name, size in norms.items():
            files.put(f"model.layers.{layer}.{name}.weight", values(size, around=1.0))
    files.put("model.norm.weight", values(hidden, around=1.0))
    files.put("lm_head.weight", values(vocabulary, hidden))
    files.close()
    config = dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=HEAD_DIM,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        tie_word_embeddings=False,
        hidden_act="silu",
        attention_bias=False,
        torch_dtype="bfloat16",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    (directory / "config.json").write_text(json.dumps(config))
    return vocabulary


class Files:
    """Safetensors files of some gigabytes each, and their index."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index: dict[str, str] = {}
        self.waiting: dict[str, torch.Tensor] = {}
        self.bytes = 0
        self.written = 0

    def put(self, name: str, tensor: torch.Tensor) -> None:
        self.waiting[name] = tensor
        self.bytes += tensor.numel() * tensor.element_size()
        if self.bytes > FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        file = f"model-{self.written:05d}.safetensors"
        save_file(self.waiting, self.directory / file, metadata={"format": "pt"})
        self.index.update(dict.fromkeys(self.waiting, file))
        self.waiting, self.bytes, self.written = {}, 0, self.written + 1

    def close(self) -> None:
        if self.waiting:
            self.flush()
        index = {"metadata": {}, "weight_map": self.index}
        (self.directory / "model.safetensors.index.json").write_text(json.dumps(index))


def write_experts(directory: Path, seed: int) -> int:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        num_experts=16,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
        initializer_range=0.05,
        max_position_embeddings=512,
    )
    return write_transformer(directory, seed, Qwen3MoeForCausalLM, config)


def write_deepseek(directory: Path, seed: int) -> int:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=258,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=16,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        q_lora_rank=128,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        tie_word_embeddings=False,
        initializer_range=0.05,
        max_position_embeddings=512,
    )
    # transformers leaves out what vLLM decides the router's kind by.
    router = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    return write_transformer(directory, seed, DeepseekV3ForCausalLM, config, router)


def write_transformer(
    directory: Path, seed: int, model_class: Any, config: Any, more: dict[str, Any] | None = None
) -> int:
    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "e_score_correction" in name:
                buffer.copy_(0.1 * torch.randn_like(buffer))
    model.to(torch.bfloat16).save_pretrained(directory)
    path = directory / "config.json"
    fields = {**json.loads(path.read_text()), **(more or {})}
    path.write_text(json.dumps(fields))
    return int(fields["vocab_size"])


def write_tokenizer(directory: Path, vocabulary: int) -> None:
    words = {f"t{number}": number for number in range(vocabulary)}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t2"},
    }
    names = dict(bos_token="t0", eos_token="t1", pad_token="t1", unk_token="t2")
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=4096, **names)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


BY_TRANSFORMERS = {"qwen3-moe": write_experts, "deepseek": write_deepseek}

if __name__ == "__main__":
    main()
