"""The records of an evaluation: scores, one a line in a file, and their summary in the output's record."""

from hf_tsv.record.parts import Count, Part, Sha256


class ScoreLine(Part):
    """A line of `evaluation.jsonl`.

    Attributes:
        key: Hash of everything that the score depends on.
        score: Its value.
        examples: How many examples it was measured on.
        task: The suite's task.
        model: What was scored: `base`, `finetuned`, `merged`, ...
        metric: What was measured.
    """

    key: Sha256
    score: float
    examples: Count
    task: str
    model: str
    metric: str


class SuiteEntry(Part):
    """The suite that was run.

    Attributes:
        file: Its name.
        sha256: Hash of its content.
        seed: Its seed.
        dtype: The dtype in which models were run.
    """

    file: str
    sha256: Sha256
    seed: int
    dtype: str


class EvaluationVersions(Part):
    """Versions of the packages that measured. Attributes: one for each."""

    hf_tsv: str
    torch: str
    transformers: str


class TaskScores(Part):
    """The scores on one task of the suite.

    Attributes:
        kind: The kind of the task, such as `text-classification`.
        metric: What was measured.
        higher_is_better: Whether a higher score is better.
        data: A data set's id, or a file's name.
        data_sha256: Hash of the examples; None where lm-eval reads them itself.
        examples: How many there are.
        scores: By model.
        relative: Each score relative to the fine-tuned model's, where there is one: 1 is as good, more is better.
    """

    kind: str
    metric: str
    higher_is_better: bool
    data: str
    data_sha256: Sha256 | None
    examples: Count
    scores: dict[str, float]
    relative: dict[str, float]


class MeanScores(Part):
    """Means over the tasks that have them, by model. Attributes: of the `scores`, and of the `relative` ones."""

    scores: dict[str, float]
    relative: dict[str, float]


class Evaluation(Part):
    """The results of evaluating an output.

    Attributes:
        suite: The suite.
        versions: What it was run with.
        tasks: The scores, by task of the suite.
        mean: Their means.
    """

    suite: SuiteEntry
    versions: EvaluationVersions
    tasks: dict[str, TaskScores]
    mean: MeanScores
