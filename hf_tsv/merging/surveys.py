"""First passes over whole task vectors, for methods and masks that need statistics of them.

A survey is over the whole model (a threshold over all of a task vector, say) or over each tensor. Steps whose method
and parameters ask for the same statistics share one.
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
    """A survey over the model, and the steps that it looks at."""

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
            plan: The plan, all of whose steps a survey may look at.
            steps: The steps that need statistics.
            for_masks: Whether they need those of their masks, rather than those of the merge.
        """
        self._plan = plan
        self._by_key: dict[object, ModelSurvey] = {}
        for step in steps:
            key = _survey_key(step)
            if key in self._by_key:
                continue
            survey = _make_survey(plan, step, for_masks=for_masks)
            # One over each tensor is made where the tensor is merged.
            if survey and survey.scope == "model":
                alike = [other for other in plan.steps if _survey_key(other) == key]
                self._by_key[key] = ModelSurvey(survey, alike)

    @property
    def work(self) -> float:
        return sum(survey.work for survey in self._by_key.values())

    def run(self, resources: Resources, progress: Progress) -> None:
        """Look at every step until each survey needs no further pass.

        Raises:
            HfTsvError: a model can't be read, or holds NaN or infinity.
        """
        for group in self._by_key.values():
            while group.survey.share:
                share = group.survey.share  # another one in the next pass
                observe = partial(_observe, self._plan, group.survey, share)
                # A pass over a sample costs next to nothing, so it doesn't count as progress.
                watcher = progress if share == 1 else Silent()
                each_step(group.steps, observe, self._plan, resources, watcher, work=_pass_work)
                group.survey.advance()

    def of(self, step: Step) -> Survey | None:
        """What a step needs to know of the model; None for nothing."""
        group = self._by_key.get(_survey_key(step))
        return group.survey if group else None


def run_surveys(
    plan: Plan, steps: Sequence[Step], resources: Resources, progress: Progress, *, for_masks: bool = False
) -> Surveys:
    """The surveys that some steps, or their masks, need, with their passes done. Errors as for `Surveys.run`."""
    surveys = Surveys(plan, steps, for_masks=for_masks)
    with one_thread_each():
        surveys.run(resources, progress)
    return surveys


def survey_of_tensor(plan: Plan, step: Step) -> Survey | None:
    """What a survey finds in one tensor by itself, where the tensor is merged in pieces that don't show it."""
    survey = _make_survey(plan, step) if len(step.slices) > 1 else None
    while survey and survey.share:
        _observe(plan, survey, survey.share, step)
        survey.advance()
    return survey


@contextmanager
def naming(step: Step, what: str) -> Iterator[None]:
    """Add the tensor, and what is done with it, to an error."""
    try:
        yield
    except MethodError as error:
        raise MethodError(f"{step.name} {step.info.shape}, {what}: {error}") from error


def _observe(plan: Plan, survey: Survey, share: float, step: Step) -> None:
    """Show one tensor, or about that share of its rows, to a survey."""
    with naming(step, step.method):
        # Not as task matrices: the bytes of a sample or a slice are enough, and entries are counted anywhere.
        for rows in step.slices if share == 1 else step.sample(share):
            deltas = StoredTensor(plan, step, rows, as_matrix=False).deltas()
            for t, delta in enumerate(deltas):
                survey.observe(t, delta)


def _survey_key(step: Step) -> object:
    """What steps that share a survey have in common."""
    method = METHODS[step.method]
    if not method.is_surveyed:
        return None
    # By their text: parameters may be lists, which are no keys.
    return method.name, repr(method.survey_parameters(step.parameters))


def _make_survey(plan: Plan, step: Step, *, for_masks: bool = False) -> Survey | None:
    method = METHODS[step.method]
    make = method.make_mask_survey if for_masks else method.make_survey
    return make(BY_WORD[plan.recipe.dtype].torch, len(plan.tasks), step.parameters)


def _pass_work(step: Step) -> float:
    return entry_work(step.info.numel, max(1, len(step.weights)))
