#!/usr/bin/env python3
"""
One CUDA graph, captured once, computes with each weight version that Layercast puts under it.

The forward pass of a small Qwen3 is written here in plain torch, right on a rank's kernel tensors. It is captured as a
CUDA graph while the fleet holds checkpoint v1. Then Layercast reloads v2 and v3, and the same graph is replayed. After
each reload its logits must be those of the checkpoint loaded afresh, and the loss on a text that the model has never
seen must have fallen. All that is printed was measured; a check that fails makes the exit code 1.

    layercast up --tp 1 --device cuda:0                      # in one terminal, in the repository's root
    python3 docs/examples/cuda_graph_follows_reloads.py          # in another
    python3 docs/examples/cuda_graph_follows_reloads.py --start  # or both at once

With `--start --device cpu` there is no graph: the same tensors are read by calling the forward pass again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    sys.exit("this example needs torch: pip install torch")

try:
    import transformers
except ImportError:
    transformers = None

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "worker" / "python"))
import layercast  # noqa: E402

CHECKPOINTS = ROOT / "test" / "fixtures" / "checkpoints" / "tiny-qwen3"
VERSIONS = {"1": "v1", "2": "v2", "3": "v3"}
WAIT_S = 120

# The model's tokens are bytes, and what it writes looks like Python. This file is Python that it has never seen.
HELD_OUT = Path(__file__).read_bytes()
BATCH, LENGTH = 32, 128

# Both sides compute in BF16 and may add in another order. BF16 takes this model's logits up to 0.022 of the largest one
# away from those in F32, and its held-out loss 0.0005.
LOGIT_TOLERANCE = 0.04  # of the largest logit
LOSS_TOLERANCE = 0.005


def main() -> None:
    options = parse_options()
    with started_fleet(options.device) if options.start else nullcontext(options.url) as url:
        failures = run(url, options.fleet)
    for failure in failures:
        print(f"FAILED: {failure}")
    print("FAILED" if failures else "all checks passed")
    sys.exit(1 if failures else 0)


def run(url: str, fleet: str) -> list[str]:
    """Returns the checks that failed, in words."""
    checks = Checks()
    if transformers is None:
        print("transformers is not installed: its own model is not compared with")
    reload_weights(url, fleet, "1")
    ranks = request(url, f"/v1/fleets/{fleet}")["ranks"]
    if len(ranks) != 1:
        sys.exit(f"fleet {fleet} has {len(ranks)} ranks: this model is whole on one; start it with --tp 1")
    with layercast.attach(Path(ranks[0]["control_path"]).parent, timeout_s=WAIT_S) as arena:
        weights = arena.tensors()
        addresses = {name: tensor.data_ptr() for name, tensor in weights.items()}
        print(f"attached to {len(weights)} kernel tensors on {arena.device}, weight version {arena.weight_version}")

        model = Qwen3(json.loads((CHECKPOINTS / "v1" / "config.json").read_text()), arena.device)
        tokens = held_out_tokens(arena.device)
        replay, logits = capture(lambda: model.logits(weights, tokens[:, :-1]), arena.device)

        def replay_once(version: str) -> tuple[str, torch.Tensor]:
            replay()
            return version, logits.clone()

        losses: dict[str, list[float]] = {}
        for version, name in VERSIONS.items():
            if version != "1":
                reload_weights(url, fleet, version)
            seen, replayed = arena.read(replay_once, timeout_s=WAIT_S)
            checks.require(seen == version, f"the arena shows weight version {seen}, not {version}")
            results = {"replayed": replayed}
            fresh = load_checkpoint(CHECKPOINTS / name, arena.device)
            checks.same_weights(weights, fresh, name)
            results["loaded afresh"] = model.logits(fresh, tokens[:, :-1])
            results |= transformers_logits(CHECKPOINTS / name, tokens[:, :-1])
            report(name, results, tokens[:, 1:], losses, checks)

        checks.losses_fall(losses)
        moved = [name for name, tensor in arena.tensors().items() if tensor.data_ptr() != addresses[name]]
        checks.require(not moved, f"these kernel tensors moved: {moved}")
    return checks.failures


# --- The model, in the names and shapes of docs/kernel-tensors.md, for a tensor-parallel size of 1 ---


class Qwen3:
    """B sequences of T tokens; H query heads and G key/value heads of size D; hidden size E."""

    def __init__(self, config: dict, device: str) -> None:
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.groups: int = config["num_key_value_heads"]
        self.head_size: int = config["head_dim"]
        self.vocabulary: int = config["vocab_size"]
        self.epsilon: float = config["rms_norm_eps"]
        theta = config.get("rope_parameters", config)["rope_theta"]
        frequencies = 1.0 / theta ** (torch.arange(0, self.head_size, 2, device=device).float() / self.head_size)
        angles = torch.outer(torch.arange(LENGTH, device=device).float(), frequencies).repeat(1, 2)  # [T, D]
        self.cosine, self.sine = angles.cos().bfloat16(), angles.sin().bfloat16()
        self.mask = torch.full((LENGTH, LENGTH), float("-inf"), device=device).triu(1)  # [T, T]

    def logits(self, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, T, vocabulary]"""
        hidden = F.embedding(tokens, weights["model.embed_tokens.weight"])  # [B, T, E]
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            normed = self.norm(hidden, weights[f"{prefix}input_layernorm.weight"])
            hidden = hidden + self.attention(normed, weights, f"{prefix}self_attn.")
            normed = self.norm(hidden, weights[f"{prefix}post_attention_layernorm.weight"])
            hidden = hidden + self.mlp(normed, weights, f"{prefix}mlp.")
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])  # a tied model has no other
        # The table's rows are padded to a multiple of 64.
        return F.linear(self.norm(hidden, weights["model.norm.weight"]), head)[..., : self.vocabulary]

    def attention(self, hidden: torch.Tensor, weights: dict[str, torch.Tensor], prefix: str) -> torch.Tensor:
        batch, length, _ = hidden.shape
        fused = F.linear(hidden, weights[f"{prefix}qkv_proj.weight"])  # [B, T, (H + 2 G) D]
        heads = fused.view(batch, length, -1, self.head_size)
        query, key, value = heads.split([self.heads, self.groups, self.groups], dim=2)
        query = self.rotate(self.norm(query, weights[f"{prefix}q_norm.weight"]).transpose(1, 2))  # [B, H, T, D]
        key = self.rotate(self.norm(key, weights[f"{prefix}k_norm.weight"]).transpose(1, 2))  # [B, G, T, D]
        key, value = self.share(key), self.share(value.transpose(1, 2))  # [B, H, T, D]
        scores = query @ key.transpose(2, 3) * self.head_size**-0.5 + self.mask.to(query.dtype)  # [B, H, T, T]
        mixed = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
        return F.linear(mixed.transpose(1, 2).reshape(batch, length, -1), weights[f"{prefix}o_proj.weight"])

    def share(self, heads: torch.Tensor) -> torch.Tensor:
        """Each key/value head serves H / G query heads."""
        return heads[:, :, None].expand(-1, -1, self.heads // self.groups, -1, -1).flatten(1, 2)

    def mlp(self, hidden: torch.Tensor, weights: dict[str, torch.Tensor], prefix: str) -> torch.Tensor:
        gate, up = F.linear(hidden, weights[f"{prefix}gate_up_proj.weight"]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, weights[f"{prefix}down_proj.weight"])

    def norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)).to(hidden.dtype)

    def rotate(self, heads: torch.Tensor) -> torch.Tensor:
        first, second = heads.chunk(2, dim=-1)
        return heads * self.cosine + torch.cat((-second, first), dim=-1) * self.sine


def capture(compute: Callable[[], torch.Tensor], device: str) -> tuple[Callable[[], object], torch.Tensor]:
    """What computes once more, and the tensor that it writes its result to."""
    if device == "cpu":
        result = compute()
        print("there are no CUDA graphs on the CPU: the forward pass is called again instead")
        return lambda: result.copy_(compute()), result
    torch.cuda.set_device(device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the libraries make their workspaces before the capture, not in it
        for _ in range(3):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute()
    print("captured one CUDA graph of the forward pass; from here on it is only replayed")
    return graph.replay, result


# --- The same weights without Layercast ---

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def load_checkpoint(directory: Path, device: str) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors on the device, q, k, v and gate, up fused by hand."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        file_bytes = bytearray(path.read_bytes())
        (header_bytes,) = struct.unpack_from("<Q", file_bytes)
        header = json.loads(file_bytes[8 : 8 + header_bytes])
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}: this example reads BF16"
            begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
            flat = torch.frombuffer(file_bytes, dtype=torch.bfloat16, offset=begin, count=(end - begin) // 2)
            tensors[name] = flat.view(entry["shape"]).to(device)
    for name in list(tensors):
        for fused, parts in FUSED.items():
            if f".{parts[0]}." in name:
                rows = [tensors.pop(name.replace(parts[0], part)) for part in parts]
                tensors[name.replace(parts[0], fused)] = torch.cat(rows)
    return tensors


def transformers_logits(directory: Path, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Those of the transformers library's own model; empty without it."""
    if transformers is None:
        return {}
    options = {"dtype": torch.bfloat16, "attn_implementation": "eager", "local_files_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, **options).to(tokens.device)
    with torch.no_grad():
        return {"transformers": model(tokens, use_cache=False).logits}


# --- Checks and what is printed ---


class Checks:
    def __init__(self) -> None:
        self.failures: list[str] = []

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.failures.append(otherwise)

    def near(self, what: str, apart: float, tolerance: float) -> None:
        # Not `apart > tolerance`, which a NaN would pass.
        self.require(apart <= tolerance, f"{what} are {apart} apart, at most {tolerance} is right")

    def same_weights(self, weights: dict[str, torch.Tensor], fresh: dict[str, torch.Tensor], name: str) -> None:
        # Rows beyond the checkpoint's are the vocabulary's padding.
        different = [key for key, tensor in fresh.items() if not torch.equal(weights[key][: len(tensor)], tensor)]
        self.require(not different, f"{name}: these kernel tensors are not the checkpoint's: {different}")
        print(f"{name}  {len(fresh) - len(different)} of {len(fresh)} kernel tensors are the checkpoint's bit for bit")

    def losses_fall(self, losses: dict[str, list[float]]) -> None:
        for way, values in losses.items():
            falls = all(later < earlier for earlier, later in itertools.pairwise(values))
            self.require(falls, f"{way}: the held-out loss does not fall: {values}")


def report(
    name: str, results: dict[str, torch.Tensor], targets: torch.Tensor, losses: dict[str, list[float]], checks: Checks
) -> None:
    """One line for each way of computing: its held-out loss, and how far the replayed logits are from its own."""
    replayed = results["replayed"].float()
    for way, logits in results.items():
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).item()
        losses.setdefault(way, []).append(loss)
        largest = logits.float().abs().max().item()
        apart = (replayed - logits.float()).abs().max().item()
        checks.near(f"{name}: logits, replayed and {way},", apart, LOGIT_TOLERANCE * largest)
        checks.near(f"{name}: losses, replayed and {way},", abs(loss - losses["replayed"][-1]), LOSS_TOLERANCE)
        distance = "" if way == "replayed" else f"   logits at most {apart:.4f} apart (the largest is {largest:.1f})"
        print(f"{name}  {way:<14} held-out loss {loss:.4f}{distance}")


def held_out_tokens(device: str) -> torch.Tensor:
    """[B, T + 1]"""
    count = BATCH * (LENGTH + 1)
    assert len(HELD_OUT) >= count, f"the held-out text has {len(HELD_OUT)} bytes, {count} are wanted"
    return torch.tensor(list(HELD_OUT[:count]), device=device).view(BATCH, LENGTH + 1)


# --- Layercast's REST API ---


def reload_weights(url: str, fleet: str, version: str) -> None:
    """Submits the checkpoint and waits until the fleet has committed it."""
    body = {
        "submission_id": str(uuid.uuid4()),
        "fleet": fleet,
        "weight_version": version,
        "source": {"kind": "safetensors", "uri": (CHECKPOINTS / VERSIONS[version]).as_uri()},
        "recipe": {"scheme": "none"},
        "install": {"allow_new_layout": version == "1"},
    }
    record = request(url, "/v1/reloads", body)
    deadline = time.monotonic() + WAIT_S
    while record["finished_at"] is None and time.monotonic() < deadline:
        record = request(url, f"/v1/reloads/{record['reload_id']}?wait=10s")
    if record["state"] != "committed":
        sys.exit(f"reload {record['reload_id']} is {record['state']}: {record['error'] or record['pending_reason']}")
    stopped_ms, total_ms = record["engine_stopped_ms"], record["timing_ms"]["total"]
    print(f"\nreloaded {VERSIONS[version]} in {total_ms} ms; live weights changed for {stopped_ms} ms of them")


def request(url: str, path: str, body: dict | None = None) -> dict:
    headers = {"content-type": "application/json"} if body is not None else {}
    if "LAYERCAST_TOKEN" in os.environ:
        headers["authorization"] = f"Bearer {os.environ['LAYERCAST_TOKEN']}"
    payload = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, payload, headers), timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{path} answered {error.code}: {error.read().decode()}") from None


@contextmanager
def started_fleet(device: str) -> Iterator[str]:
    """`layercast up` with one rank, in a directory of its own; ended with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="layercast-example-") as directory:
        log_path = Path(directory, "up.log")
        program = ["node", str(ROOT / "dist" / "orchestrator" / "cli" / "main.js"), "up", "--tp", "1"]
        places = ["--device", device, "--port", str(port), "--run-dir", directory, "--source-root", str(CHECKPOINTS)]
        with open(log_path, "wb") as log:
            up = subprocess.Popen(program + places, stdout=log, stderr=log)
        try:
            wait_until_ready(url, up, log_path)
            yield url
        finally:
            up.terminate()
            up.wait(timeout=60)


def wait_until_ready(url: str, up: subprocess.Popen, log_path: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and up.poll() is None:
        try:
            if any(rank["alive"] for rank in request(url, "/v1/fleets/default")["ranks"]):
                return
        except (OSError, RuntimeError):
            pass  # not there yet
        time.sleep(0.2)
    sys.exit(f"the fleet did not come up; its log ends with:\n{log_path.read_text()[-3000:]}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8600", help="of a running fleet of one rank")
    parser.add_argument("--fleet", default="default")
    parser.add_argument("--start", action="store_true", help="start a fleet for this run, and end it afterwards")
    parser.add_argument("--device", default="cuda:0", help="with --start: cuda:N or cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
