"""Surveys: first passes over task vectors, for methods and masks that need statistics of them.

A survey covers the whole model (for a threshold over a whole task vector, say) or each tensor by itself. Steps whose
method and parameters need the same statistics share a survey.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from hf_tsv.checkpoints.dtypes import BY_WORD
from hf_tsv.errors import MethodError
from hf_tsv.merging.cost import entry_work
from hf_tsv.merging.plan import Plan, Step
from hf_tsv.merging.pool import each_step, one_thread_each
from hf_tsv.merging.progress import Progress, Silent
from hf_tsv.merging.resources import Resources
from hf_tsv.merging.stored import StoredTensor
from hf_tsv.methods import METHODS, Survey


@dataclass(frozen=True)
class ModelSurvey:
    """A survey over the model, and the steps that it covers."""

    survey: Survey
    steps: Sequence[Step]

    @property
    def work(self) -> float:
        """Work of one pass, as in `step_work`."""
        return sum(map(_pass_work, self.steps))


class Surveys:
    """The surveys over the model that some steps of a plan need."""

    def __init__(self, plan: Plan, steps: Sequence[Step], *, for_masks: bool = False) -> None:
        """
        Args:
            plan: The plan. A survey may cover any of its steps.
            steps: The steps that need statistics.
            for_masks: True for the statistics that the steps' masks need; False for those that the merge needs.
        """
        self._plan = plan
        self._by_key: dict[object, ModelSurvey] = {}
        for step in steps:
            key = _survey_key(step)
            if key in self._by_key:
                continue
            survey = _make_survey(plan, step, for_masks=for_masks)
            # A survey over each tensor by itself is made where the tensor is merged.
            if survey and survey.scope == "model":
                alike = [other for other in plan.steps if _survey_key(other) == key]
                self._by_key[key] = ModelSurvey(survey, alike)

    @property
    def work(self) -> float:
        return sum(survey.work for survey in self._by_key.values())

    def run(self, resources: Resources, progress: Progress) -> None:
        """Make passes over the steps until no survey needs another one.

        Raises:
            HfTsvError: a model can't be read, or holds NaN or infinity.
        """
        for group in self._by_key.values():
            while group.survey.share:
                share = group.survey.share  # may be another share in the next pass
                observe = partial(_observe, self._plan, group.survey, share)
                # A pass over a sample costs almost nothing, so it doesn't count as progress.
                watcher = progress if share == 1 else Silent()
                each_step(group.steps, observe, self._plan, resources, watcher, work=_pass_work)
                group.survey.advance()

    def of(self, step: Step) -> Survey | None:
        """Return the model-wide survey that a step uses, or None."""
        group = self._by_key.get(_survey_key(step))
        return group.survey if group else None


def run_surveys(
    plan: Plan, steps: Sequence[Step], resources: Resources, progress: Progress, *, for_masks: bool = False
) -> Surveys:
    """Run the surveys that some steps, or their masks, need, and return them. Errors are those of `Surveys.run`."""
    surveys = Surveys(plan, steps, for_masks=for_masks)
    with one_thread_each():
        surveys.run(resources, progress)
    return surveys


def survey_of_tensor(plan: Plan, step: Step) -> Survey | None:
    """Return the finished survey of one tensor by itself; None if it needs none or is merged in one slice."""
    survey = _make_survey(plan, step) if len(step.slices) > 1 else None
    while survey and survey.share:
        _observe(plan, survey, survey.share, step)
        survey.advance()
    return survey


@contextmanager
def naming(step: Step, what: str) -> Iterator[None]:
    """Add the tensor's name and shape, and `what` is done with it, to a MethodError."""
    try:
        yield
    except MethodError as error:
        raise MethodError(f"{step.name} {step.info.shape}, {what}: {error}") from error


def _observe(plan: Plan, survey: Survey, share: float, step: Step) -> None:
    """Show a survey one tensor, or about `share` of its rows."""
    with naming(step, step.method):
        # Not as task matrices, because a survey takes entries in any shape.
        for rows in step.slices if share == 1 else step.sample(share):
            deltas = StoredTensor(plan, step, rows, as_matrix=False).deltas()
            for t, delta in enumerate(deltas):
                survey.observe(t, delta)


def _survey_key(step: Step) -> object:
    """Return the key of a step's survey, the same for all steps that share it; None for a step without a survey."""
    method = METHODS[step.method]
    if not method.is_surveyed:
        return None
    # Parameters are compared by their text because lists can't be keys.
    return method.name, repr(method.survey_parameters(step.parameters))


def _make_survey(plan: Plan, step: Step, *, for_masks: bool = False) -> Survey | None:
    method = METHODS[step.method]
    make = method.make_mask_survey if for_masks else method.make_survey
    return make(BY_WORD[plan.recipe.dtype].torch, len(plan.tasks), step.parameters)


def _pass_work(step: Step) -> float:
    return entry_work(step.info.numel, max(1, len(step.weights)))
