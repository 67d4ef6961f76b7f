"""Log-probabilities of a text's tokens by llama.cpp, without and with LoRA adapters. Runs in its own environment.

python llama_cpp_scores.py IDS OUT BASE ADAPTER... , the models and adapters as GGUF; see `vllm_scores` for the rest.
"""

import json
import sys
from pathlib import Path

import torch
from llama_cpp import GGML_TYPE_F32, Llama


def main(ids_file: str, out: str, base: str, *adapters: str) -> None:
    ids = json.loads(Path(ids_file).read_text())
    told = []
    for adapter in (None, *adapters):
        model = Llama(
            base,
            lora_path=adapter,
            n_ctx=len(ids),
            n_batch=len(ids),
            logits_all=True,
            type_k=GGML_TYPE_F32,
            type_v=GGML_TYPE_F32,
            verbose=False,
        )
        model.eval(ids)
        scores = torch.tensor(model.scores[: len(ids) - 1]).log_softmax(-1)
        told.append(scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
        model.close()
    Path(out).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
