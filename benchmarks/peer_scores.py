"""What merged checkpoints of the text zoo are worth, in a process of its own.

python -m benchmarks.peer_scores                        prints the zoo's folders, made if need be, as JSON
python -m benchmarks.peer_scores TASK,... [OUT LIKE]... prints the fine-tunes' accuracies, and each OUT's scores
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.accuracy import TEXTS, ordered
from benchmarks.peers import CACHE
from benchmarks.text_scores import Bench
from benchmarks.text_zoo import prepare_texts
from examples.demo.zoo import Task
from hf_tsv.checkpoints.folder import open_checkpoint


def main() -> None:
    zoo = ordered(prepare_texts(CACHE / "zoo"))
    if len(sys.argv) == 1:
        folders = [str(task.finetuned.absolute()) for task in zoo.tasks]
        print(json.dumps({"base": str(zoo.base.absolute()), "tasks": folders}))
    else:
        bench, names = Bench(zoo, {"test": TEXTS}), sys.argv[1].split(",")
        tasks = [task for task in zoo.tasks if task.name in names]
        own = {task.name: bench.of_state(bench.finetuned[task.name], [task])[task.name] for task in tasks}
        outs, likes = sys.argv[2::2], sys.argv[3::2]
        scores = [scored(bench, Path(out), Path(like), tasks) for out, like in zip(outs, likes, strict=True)]
        print(json.dumps({"own": own, "scores": scores}))


def scored(bench: Bench, out: Path, like: Path, tasks: Sequence[Task]) -> dict[str, Any]:
    """`accuracy` by task, and how far the change `differs`: ||change - other change|| / ||other change||, Frobenius,
    over all weights."""
    state, other = _state(bench, out), _state(bench, like)
    return {
        "accuracy": bench.of_state(state, tasks),
        "differs": (_squared(state, other) / _squared(other, bench.base)) ** 0.5,
    }


def _state(bench: Bench, folder: Path) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(folder)
    own = {name: checkpoint.read(name) for name in checkpoint.names() if name in bench.base}
    return {name: own.get(name, base) for name, base in bench.base.items()}


def _squared(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return sum(float((one[name] - tensor).double().square().sum()) for name, tensor in other.items())


if __name__ == "__main__":
    main()
