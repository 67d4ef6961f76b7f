"""One model on the Hub at one commit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pinned:
    """A model repository, or a folder in one, at one commit.

    Attributes:
        repo_id: The repository's id, `user/name`.
        requested_revision: The branch, tag or commit as the person wrote it; None for the default branch.
        sha: The commit that the revision stood for, 40 hexadecimal digits.
        folder: The model's folder in the repository, empty for its top; file names are relative to this folder.
    """

    repo_id: str
    requested_revision: str | None
    sha: str
    folder: str = ""

    @property
    def label(self) -> str:
        """The model's name in messages."""
        path = f"{self.repo_id}/{self.folder}" if self.folder else self.repo_id
        if self.requested_revision is None:
            return path
        # A commit is shortened as in git; a branch or a tag stays as the person wrote it.
        is_commit = self.requested_revision == self.sha
        return f"{path}@{self.sha[:7] if is_commit else self.requested_revision}"

    def within(self, file: str) -> str:
        """The path in the repository of one of the model's files."""
        return f"{self.folder}/{file}" if self.folder else file
