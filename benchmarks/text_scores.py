"""What an encoder is worth on the tasks of the text zoo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from examples.demo.encoder import Encoder, Tokens
from examples.demo.zoo import Task, Zoo

Split = Literal["test", "validation"]
Scores = dict[str, float]  # by task
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Bench:
    """The zoo, and how many texts of each split and task are read: the first ones, of splits that were shuffled.

    Attributes:
        zoo: Base and tasks, in the order in which they are taken.
        texts: By split.
    """

    zoo: Zoo
    texts: Mapping[Split, int]

    @cached_property
    def _loaded(self) -> tuple[Encoder, dict[str, Tensor]]:
        """The encoder, and the base's weights, which are its own before any others are put in."""
        encoder = Encoder(self.zoo.base, self.zoo.base)
        return encoder, {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}

    @property
    def encoder(self) -> Encoder:
        return self._loaded[0]

    @property
    def base(self) -> dict[str, Tensor]:
        """The base's state dict."""
        return self._loaded[1]

    @cached_property
    def finetuned(self) -> dict[str, dict[str, Tensor]]:
        """Every task's state dict."""
        return {task.name: load_file(task.finetuned / "model.safetensors") for task in self.zoo.tasks}

    def of_state(self, state: State, tasks: Sequence[Task], split: Split = "test") -> Scores:
        """Accuracy on each task, under its head, of the encoder with these weights."""
        self.encoder.model.load_state_dict(state)
        return self._scores(self.encoder, tasks, split)

    def of_model(self, model: Any, task: Task) -> float:
        """Accuracy on one task of a model that transformers or PEFT has loaded."""
        encoder = object.__new__(Encoder)
        encoder.model, encoder.tokenizer = model.eval(), self.encoder.tokenizer
        return self._scores(encoder, [task], "test")[task.name]

    def _scores(self, encoder: Encoder, tasks: Sequence[Task], split: Split) -> Scores:
        """All tasks' texts are embedded together: there are fewer small batches so."""
        tokens = [self._read(task, split) for task in tasks]
        embedded = encoder.embed([text for texts, _ in tokens for text in texts])
        parts = embedded.split([len(texts) for texts, _ in tokens])
        return {
            task.name: task.head.accuracy(part, labels)
            for task, part, (_, labels) in zip(tasks, parts, tokens, strict=True)
        }

    def _read(self, task: Task, split: Split) -> tuple[list[Tokens], Tensor]:
        examples = (task.test if split == "test" else task.validation)[: self.texts[split]]
        return self.encoder.tokens([text for text, _ in examples]), torch.tensor([label for _, label in examples])
