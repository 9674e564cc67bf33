"""
A trainer whose BF16 tensors lie on the engine's GPU, sent by vLLM's own CUDA IPC transfer: the peer of a push.

    python ipc_trainer.py URL CHECKPOINT      sends once for each line on standard input, and says "done"; once when it is ready
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

import torch
from safetensors import safe_open


def main() -> None:
    url, checkpoint = sys.argv[1:]
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        with safe_open(path, "pt", device="cuda") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118: it is no dict
    post(url, "/init_weight_transfer_engine", {"init_info": {}})
    print("done", flush=True)
    for _ in sys.stdin:
        send(url, tensors)
        print("done", flush=True)


def send(url: str, tensors: dict[str, torch.Tensor]) -> None:
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

    torch.cuda.synchronize()
    post(url, "/pause?mode=keep&clear_cache=true")
    post(url, "/start_weight_update")
    settings = {"send_mode": "http", "url": url, "packed": True, "packed_buffer_size_bytes": 2 << 30}
    IPCWeightTransferEngine.trainer_send_weights(iter(tensors.items()), settings)
    post(url, "/finish_weight_update")
    post(url, "/resume")


def post(url: str, path: str, body: object = None) -> None:
    data = json.dumps(body or {}).encode()
    request = urllib.request.Request(url + path, data=data, headers={"content-type": "application/json"}, method="POST")
    urllib.request.urlopen(request, timeout=120).read()


if __name__ == "__main__":
    main()
