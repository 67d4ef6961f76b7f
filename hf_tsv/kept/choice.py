"""The choice of ranks for a compression's matrices, and the adapter plans that follow from them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hf_tsv.errors import MethodError, some
from hf_tsv.kept.settings import AdapterSettings
from hf_tsv.kept.task import TaskAdapters
from hf_tsv.linalg.ranks import DENSE, Budget, Dense, Spectrum, choose_ranks, pooled
from hf_tsv.lora.formats import DEFAULT, FORMATS
from hf_tsv.lora.write.plan import AdapterPlan, AdapterRequest, BaseRef

ATTEMPTS = 6  # attempts to meet a budget: an adapter's size in PEFT is known only once the adapter is planned

Matrix = tuple[str, str]  # the names of a task and of a tensor


def choose_adapters(tasks: Sequence[TaskAdapters], base: BaseRef, settings: AdapterSettings) -> None:
    """Choose the ranks of tasks that share their budgets, and plan their adapters; fills in `ranks` and `plans`.

    The ranks are chosen so that the default format, which takes them as they are, meets the budget. For the other
    formats the budget is a limit.

    Raises:
        MethodError: the budget is too small, most often for the tensors that have to be stored whole.
    """
    request = AdapterRequest(base, settings.dtype_of_factors, settings.serving_rank, settings.budget)
    budget = None if settings.budget is None else settings.budget * len(tasks)
    fixed_bytes = sum(sum(task.whole.values()) for task in tasks)
    fitting: dict[str, AdapterPlan] = {}  # in the default format, by task
    for attempt in range(ATTEMPTS):
        _choose_ranks(tasks, settings, fixed_bytes)
        for task in tasks:
            fitting[task.name] = FORMATS[DEFAULT].plan(task.architecture, task.ranks, request)
        nbytes = sum(plan.nbytes for plan in fitting.values())
        if budget is None or nbytes <= budget:
            break
        # Set aside the overshoot times 2^attempt for the next attempt: other ranks may need a longer header.
        fixed_bytes += (nbytes - budget) << attempt
    else:
        names = some([task.name for task in tasks])
        raise MethodError(
            f"{names}: a budget of {budget} bytes is too small: {nbytes} are needed, most of them for what is stored"
            " whole. Raise the budget"
        )
    for task in tasks:
        # Formats with one rank for all matrices have room to fill, so they also get the changes that got rank 0.
        ranks = {**dict.fromkeys(task.spectra, 0), **task.ranks}
        for profile in settings.profiles:
            if profile == DEFAULT:
                task.plans[profile] = fitting[task.name]
            else:
                task.plans[profile] = FORMATS[profile].plan(task.architecture, ranks, request)


def _choose_ranks(tasks: Sequence[TaskAdapters], settings: AdapterSettings, fixed_bytes: int) -> None:
    """Fill in `ranks` by each tensor's rule. `fixed_bytes`: the part of the budget that is not for factors."""
    spectra: dict[Matrix, Spectrum] = {}
    for task in tasks:
        spectra |= {(task.name, name): spectrum for name, spectrum in task.spectra.items()}
    by_name = {task.name: task for task in tasks}
    chosen: dict[Matrix, int | Dense] = {}
    for rule in settings.distinct_rules:
        own = {matrix: spectrum for matrix, spectrum in spectra.items() if settings.rules[matrix[1]] == rule}
        if isinstance(rule, Budget):
            # The budget is the last rule, so the ranks by all other rules are known.
            spent = fixed_bytes + sum(spectra[matrix].bytes_at(rank) for matrix, rank in chosen.items())
            chosen |= _choose_within(Budget(rule.nbytes * len(tasks)), own, by_name, spent)
        else:
            chosen |= choose_ranks(own, rule)
    for task in tasks:
        task.ranks = {name: rank for (owner, name), rank in chosen.items() if owner == task.name and rank}
        task.ranks |= dict.fromkeys(task.whole, DENSE)


def _choose_within(
    budget: Budget, spectra: Mapping[Matrix, Spectrum], tasks: Mapping[str, TaskAdapters], fixed_bytes: int
) -> dict[Matrix, int | Dense]:
    """Choose ranks under a budget, at the sizes that triplets have in PEFT.

    PEFT gives some matrices one common rank, such as the experts of a layer: these compete as one matrix.
    """
    groups: defaultdict[Matrix, dict[Matrix, Spectrum]] = defaultdict(dict)
    for matrix, spectrum in spectra.items():
        task, name = matrix
        place = tasks[task].architecture.place(name)
        if place.low_rank:
            spectrum = replace(spectrum, rank_numbers=place.rank_numbers)
        groups[task, place.group][matrix] = spectrum
    sums = {group: pooled(list(members.values())) for group, members in groups.items()}
    rank_of_group = choose_ranks(sums, budget, fixed_bytes=fixed_bytes)
    ranks: dict[Matrix, int | Dense] = {}
    for group, members in groups.items():
        rank = rank_of_group[group]
        # Some members may have fewer triplets than the group's rank.
        for matrix, spectrum in members.items():
            ranks[matrix] = rank if isinstance(rank, Dense) else min(rank, spectrum.full_rank)
    return ranks
