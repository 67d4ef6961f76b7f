"""Log-probabilities of a text's tokens by vLLM, without and with LoRA adapters. Runs in vLLM's own environment.

python vllm_scores.py IDS OUT BASE ADAPTER... ; IDS is a JSON list, OUT becomes a JSON list of lists, the base's first.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main(ids_file: str, out: str, base: str, *adapters: str) -> None:
    ids = json.loads(Path(ids_file).read_text())
    server = LLM(
        base, dtype="float32", enable_lora=True, max_lora_rank=128, max_model_len=len(ids) + 1, enforce_eager=True
    )
    requests = [None, *(LoRARequest(path, i, path) for i, path in enumerate(adapters, 1))]
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)
    told = []
    for request in requests:
        (answer,) = server.generate([{"prompt_token_ids": ids}], sampling, lora_request=request)
        told.append([known[t].logprob for t, known in zip(ids[1:], answer.prompt_logprobs[1:], strict=True)])
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
