"""Task arithmetic with nothing around it: the least that any tool can do with safetensors and torch.

python bare_loop.py OUT BASE TASK...
"""

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FILE = "model.safetensors"


def main(out: str, *folders: str) -> None:
    base, *tuned = (safe_open(Path(folder) / FILE, "pt") for folder in folders)
    merged = {}
    for name in base.keys():  # noqa: SIM118 - safe_open is no mapping
        stored = base.get_tensor(name)
        theta = stored.float()
        total = torch.zeros_like(theta)
        for checkpoint in tuned:
            total += checkpoint.get_tensor(name).float() - theta
        merged[name] = (theta + total).to(stored.dtype)
    Path(out).mkdir()
    save_file(merged, Path(out) / FILE, metadata={"format": "pt"})


if __name__ == "__main__":
    main(*sys.argv[1:])
