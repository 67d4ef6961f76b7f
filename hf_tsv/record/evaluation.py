"""The records of an evaluation: a file with one score per line, and the summary in the output's record."""

from hf_tsv.record.parts import Count, Part, Sha256


class ScoreLine(Part):
    """A line of `evaluation.jsonl`.

    Attributes:
        key: Hash of everything that the score depends on.
        score: The measured value.
        examples: Number of examples that the score was measured on.
        task: Name of the task in the suite.
        model: The scored model: `base`, `finetuned`, `merged`, ...
        metric: Name of the metric.
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
        file: Name of the suite's file.
        sha256: SHA-256 of the suite's file.
        seed: The suite's seed.
        dtype: The dtype in which models were run.
    """

    file: str
    sha256: Sha256
    seed: int
    dtype: str


class EvaluationVersions(Part):
    """Versions of the packages that ran the evaluation, one attribute per package."""

    hf_tsv: str
    torch: str
    transformers: str


class TaskScores(Part):
    """The scores on one task of the suite.

    Attributes:
        kind: The kind of the task, such as `text-classification`.
        metric: Name of the metric.
        higher_is_better: True if a higher score is better.
        data: A data set's id, or a file's name.
        data_sha256: SHA-256 of the examples; None if lm-eval reads them itself.
        examples: Number of examples.
        scores: The scores, by model.
        relative: Each score relative to the fine-tuned model's, if that has one: 1 is as good, more is better.
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
    """Means over the tasks that have scores, by model. Attributes: means of `scores`, and of `relative` ones."""

    scores: dict[str, float]
    relative: dict[str, float]


class Evaluation(Part):
    """The results of evaluating an output.

    Attributes:
        suite: The suite that was run.
        versions: Versions of the packages that ran the suite.
        tasks: The scores, by task of the suite.
        mean: The means of the scores over the tasks.
    """

    suite: SuiteEntry
    versions: EvaluationVersions
    tasks: dict[str, TaskScores]
    mean: MeanScores
