"""A merge of LoRA adapters by PEFT's add_weighted_adapter, put into the base's weights. Runs in PEFT's own environment.

python peft_merge.py COMBINATION OUT BASE ADAPTER...
"""

import sys

from peft import PeftModel
from transformers import AutoModel

WEIGHT = 0.35  # of each task


def main(combination: str, out: str, base: str, *adapters: str) -> None:
    names = [f"task{t}" for t in range(len(adapters))]
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapters[0], adapter_name=names[0])
    for name, adapter in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(adapter, adapter_name=name)
    more = {"density": 0.2} if combination.startswith("ties") else {}
    model.add_weighted_adapter(names, [WEIGHT] * len(names), "merged", combination_type=combination, **more)
    model.set_adapter("merged")
    model.merge_and_unload().save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
