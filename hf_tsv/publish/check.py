"""Checks before a push: the repository's owner, the licence, and who may see which source."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hf_tsv.cards import LICENCE_ID, Licence, NamedTerms, inherited, licence_in
from hf_tsv.errors import PublishError, some
from hf_tsv.hub import Hub, Repository, Target

TASK = "{task}"


@dataclass(frozen=True)
class Pushing:
    """Options of a push.

    Attributes:
        repo: The repository, `user/name`; for adapters also `user/name-{task}`, one repository per task.
        create_pr: True to open a pull request instead of committing to the main branch.
        private: True if a new repository is private; None for private if a source is private or gated, else its owner's
            default.
        license: The licence's id on the Hub; None for the licence that follows from the sources.
        message: The commit message, of one or more lines; None for a generated one. The sources are added below it.
    """

    repo: str
    create_pr: bool = False
    private: bool | None = None
    license: str | None = None
    message: str | None = None

    def repositories(self, tasks: Sequence[str] | None) -> dict[str, tuple[str, ...] | None]:
        """Return the repositories, each with the tasks whose adapters go there; None for a merged model.

        Raises:
            PublishError: a merged model's name has `{task}` in it.
        """
        if TASK not in self.repo:
            return {self.repo: None if tasks is None else tuple(tasks)}
        if tasks is None:
            raise PublishError(f"{self.repo}: a merged model goes into one repository. Name it without {TASK}")
        return {self.repo.replace(TASK, task): (task,) for task in tasks}


@dataclass(frozen=True)
class Contents:
    """The facts about an upload that decide if it may be published.

    Attributes:
        terms: The terms of its sources, from which the licence follows.
        named: The terms of all models that the recipe names, because it is uploaded too and could reveal private ones.
        card: The output's card, if there is one: a licence that a person wrote into its header counts as chosen.
        tasks: The tasks whose adapters are uploaded; None for the whole output.
    """

    terms: Sequence[NamedTerms]
    named: Sequence[NamedTerms]
    card: str = ""
    tasks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Destination:
    """A repository that passed the checks for an upload.

    Attributes:
        repository: The client that writes to it.
        target: The repository's state before the push.
        private: True if it is created private; None for its owner's default.
        licence: The licence chosen by a person; None for the licence that follows from the sources.
        tasks: The tasks whose adapters are uploaded; None for the whole output.
        message: The commit message; None for a generated one.
    """

    repository: Repository
    target: Target
    private: bool | None
    licence: Licence | None
    tasks: tuple[str, ...] | None = None
    message: str | None = None

    def prepare(self) -> None:
        """Create the repository if it doesn't exist."""
        if not self.target.exists:
            self.repository.create(private=self.private)


def check(pushing: Pushing, repo_id: str, contents: Contents, hub: Hub) -> Destination:
    """Check that an upload to a repository is allowed, before anything is written.

    Args:
        pushing: The options of the push.
        repo_id: The repository's id.
        contents: The facts about the upload.
        hub: The client of the Hub.

    Raises:
        HubError: the repository can't be written.
        PublishError: the licence or privacy forbids it.
    """
    licence = licence_of_card(pushing.license, contents.terms, contents.card)
    following = inherited([named.terms for named in contents.terms])
    if not licence and not following.licence:
        stated = ", ".join(f"{named.name}: {named.terms.license_label or 'none named'}" for named in contents.terms)
        raise PublishError(f"licence: {following.why} ({stated}). Look at their terms, then pass --license")
    repository = Repository(hub, repo_id, create_pr=pushing.create_pr)
    target = repository.check()
    # A model that only the recipe names matters if its name itself may be private.
    secret = [named for named in contents.named if named.terms.may_be_private and named not in contents.terms]
    hidden = [named.name for named in contents.terms if named.terms.gated or named.terms.may_be_private]
    hidden += [named.name for named in secret]
    private = _privacy(target, pushing.private, hidden)
    return Destination(repository, target, private, licence, contents.tasks, pushing.message)


def check_replaces_no_source(pushing: Pushing, repo_id: str, source_ids: Sequence[str]) -> None:
    """Check that a push doesn't replace a model of the recipe. `source_ids`: the models' repositories.

    Raises:
        PublishError: the push would replace one.
    """
    if repo_id in source_ids and not pushing.create_pr:
        raise PublishError(
            f"{repo_id}: is one of the recipe's models, which the push would replace. Choose another name, or pass"
            " --create-pr"
        )


def licence_of_card(option: str | None, terms: Sequence[NamedTerms], card: str) -> Licence | None:
    """Return the licence that a person chose, by the option or in a card's header; None if nobody did.

    Raises:
        PublishError: the option is not a licence.
    """
    if option and not re.fullmatch(LICENCE_ID, option):
        raise PublishError(f"--license {option}: not a licence's id on the Hub. Pass one such as apache-2.0")
    if option:
        return Licence(option)
    following = inherited([named.terms for named in terms]).licence
    written = licence_in(card)
    if not written.get("license"):
        return None
    # The licence that follows from the sources was written by hf_tsv, not by a person.
    if following and written["license"] == following.id:
        return None
    return Licence(written["license"], written.get("license_name"), written.get("license_link"))


def _privacy(target: Target, wish: bool | None, hidden: Sequence[str]) -> bool | None:
    """Decide if a new repository is private; None for its owner's default.

    Args:
        target: The repository's present state.
        wish: True for private, False for public, None if neither was requested.
        hidden: The sources that not everyone may see.

    Raises:
        PublishError: a hidden source would become public, or the repository's privacy isn't the requested one.
    """
    if target.exists and wish is not None and target.private != wish:
        how, flag = ("public", "--private") if wish else ("private", "--public")
        raise PublishError(
            f"{target.repo_id}: exists and is {how}, but {flag} was given. Change that in its settings on the Hub, or"
            " choose another repository"
        )
    if target.exists and hidden and not target.private and wish is None:
        raise PublishError(
            f"{target.repo_id}: is public, but not everyone may see {some(hidden)}. Pass --public if its owner allows"
            " that, or choose a private repository"
        )
    # A wish takes precedence: --public says that the source's owner allows it.
    return True if hidden and wish is None else wish
