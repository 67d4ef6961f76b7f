"""Whether something may go into a repository: its owner, its licence, and who may see what."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from hf_tsv.cards import LICENCE_ID, Licence, NamedTerms, inherited, licence_in
from hf_tsv.errors import PublishError, some
from hf_tsv.hub import Hub, Repository, Target

TASK = "{task}"


@dataclass(frozen=True)
class Pushing:
    """Where an output is pushed to, and how.

    Attributes:
        repo: `user/name`; for adapters also `user/name-{task}`, a repository each.
        create_pr: Open a pull request instead of committing to the main branch.
        private: Whether a new repository is private; None for private where a source is private or gated, else as its
            owner's settings say.
        license: The licence to carry, in the Hub's word; None for what follows from the sources.
        message: The commit message: its first line, and maybe more; None for what was done. The sources come below it.
    """

    repo: str
    create_pr: bool = False
    private: bool | None = None
    license: str | None = None
    message: str | None = None

    def repositories(self, tasks: Sequence[str] | None) -> dict[str, tuple[str, ...] | None]:
        """The repositories, each with the tasks that go there; None for a merged model, which is no task's.

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
    """What is to go into a repository, as far as it matters for whether it may.

    Attributes:
        terms: What the sources of it say of themselves: the licence follows from them.
        named: The same of all models that the recipe names, which goes along: not everyone may know of private ones.
        card: The output's card, if there is one: a licence that a person wrote into its header counts as chosen.
        tasks: The tasks whose adapters go there; None for all that the output is.
    """

    terms: Sequence[NamedTerms]
    named: Sequence[NamedTerms]
    card: str = ""
    tasks: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Destination:
    """A repository that was found fit for what is to go there.

    Attributes:
        repository: The way to it.
        target: How it stands.
        private: Whether it is made private, when it has to be made.
        licence: The licence chosen by a person; None for what follows from the sources.
        tasks: The tasks whose adapters go there; None for all that the output is.
        message: The commit message; None for what was done.
    """

    repository: Repository
    target: Target
    private: bool | None
    licence: Licence | None
    tasks: tuple[str, ...] | None = None
    message: str | None = None

    def prepare(self) -> None:
        """Make the repository if it isn't there."""
        if not self.target.exists:
            self.repository.create(private=self.private)


def check(pushing: Pushing, repo_id: str, contents: Contents, hub: Hub) -> Destination:
    """Check whether something may go where it is to go, before anything is written.

    Args:
        pushing: What was asked for.
        repo_id: The repository.
        contents: What goes there.
        hub: How to reach the Hub.

    Raises:
        HubError: the repository can't be written.
        PublishError: licence or privacy forbids it.
    """
    licence = licence_of_card(pushing.license, contents.terms, contents.card)
    following = inherited([named.terms for named in contents.terms])
    if not licence and not following.licence:
        stated = ", ".join(f"{named.name}: {named.terms.license_label or 'none named'}" for named in contents.terms)
        raise PublishError(f"licence: {following.why} ({stated}). Look at their terms, then pass --license")
    repository = Repository(hub, repo_id, create_pr=pushing.create_pr)
    target = repository.check()
    # A model that is only named by the recipe matters where its mere name is nobody's business.
    secret = [named for named in contents.named if named.terms.may_be_private and named not in contents.terms]
    hidden = [named.name for named in contents.terms if named.terms.gated or named.terms.may_be_private]
    hidden += [named.name for named in secret]
    private = _privacy(target, pushing.private, hidden)
    return Destination(repository, target, private, licence, contents.tasks, pushing.message)


def check_replaces_no_source(pushing: Pushing, repo_id: str, source_ids: Sequence[str]) -> None:
    """Check that a push doesn't replace a model of the recipe. `source_ids`: their repositories.

    Raises:
        PublishError: it would.
    """
    if repo_id in source_ids and not pushing.create_pr:
        raise PublishError(
            f"{repo_id}: is one of the recipe's models, which the push would replace. Choose another name, or pass"
            " --create-pr"
        )


def licence_of_card(option: str | None, terms: Sequence[NamedTerms], card: str) -> Licence | None:
    """The licence that a person chose, by the option or in a card's header; None when nobody did.

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
    # What follows from the sources was written by us.
    if following and written["license"] == following.id:
        return None
    return Licence(written["license"], written.get("license_name"), written.get("license_link"))


def _privacy(target: Target, wish: bool | None, hidden: Sequence[str]) -> bool | None:
    """Decide whether to make a repository private, if it has to be made; None for its owner's settings.

    Args:
        target: The repository as it is.
        wish: What was asked for: private, public, or nothing.
        hidden: The sources that not everyone may see.

    Raises:
        PublishError: the public would see what not everyone may, or the repository is otherwise than it was asked for.
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
    # A wish counts for more: --public says that its owner allows it.
    return True if hidden and wish is None else wish
