"""What merged checkpoints of the text zoo are worth, in a process of its own.

python -m benchmarks.peer_scores                        prints the zoo's folders and its fine-tunes' accuracies as JSON
python -m benchmarks.peer_scores TASK,... [OUT LIKE]... prints each OUT's accuracies, and how far it is from its LIKE
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.accuracy import TEXTS, ordered
from benchmarks.peers import CACHE
from benchmarks.text_scores import Bench
from benchmarks.text_zoo import prepare_texts
from hf_tsv.loaders import open_checkpoint


def main() -> None:
    zoo = ordered(prepare_texts(CACHE / "zoo"))
    bench = Bench(zoo, {"test": TEXTS})
    if len(sys.argv) == 1:
        print(json.dumps(originals(bench)))
    else:
        names, folders = sys.argv[1].split(","), [Path(folder) for folder in sys.argv[2:]]
        pairs = zip(folders[::2], folders[1::2], strict=True)
        print(json.dumps([scored(bench, out, like, names) for out, like in pairs]))


def originals(bench: Bench) -> dict[str, Any]:
    """`base` and `tasks`: the folders; and the `accuracy` of every task's fine-tune on it."""
    tasks = bench.zoo.tasks
    return {
        "base": str(bench.zoo.base.absolute()),
        "tasks": [str(task.finetuned.absolute()) for task in tasks],
        "accuracy": {t.name: bench.of_state(bench.finetuned[t.name], [t])[t.name] for t in tasks},
    }


def scored(bench: Bench, out: Path, like: Path, names: list[str]) -> dict[str, Any]:
    """`accuracy` by task, and how far the change `differs`: ||change - other change|| / ||other change||, Frobenius,
    over all weights."""
    tasks = [task for task in bench.zoo.tasks if task.name in names]
    state, other = _state(bench, out), _state(bench, like)
    return {
        "accuracy": bench.of_state(state, tasks),
        "differs": (_squared(state, other) / _squared(other, bench.base)) ** 0.5,
    }


def _state(bench: Bench, folder: Path) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(folder)
    names = set(checkpoint.names())
    return {name: checkpoint.read(name) if name in names else base for name, base in bench.base.items()}


def _squared(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return sum(float((one[name] - tensor).double().square().sum()) for name, tensor in other.items())


if __name__ == "__main__":
    main()
