"""References to models: on the Hub or in a folder, with or without an adapter on top."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.errors import HfUriError, HFValidationError
from huggingface_hub.utils import parse_hf_uri, validate_repo_id

from hf_tsv.errors import RecipeError

_FOLDER = re.compile(r"[./~]")  # no Hub id begins with one of these


@dataclass(frozen=True)
class ModelRef:
    """A model as a recipe names it: `path[@revision][+adapter[@revision]]`.

    `path` and `adapter` are each a Hub id, with or without a folder in the repository after it, an `hf://` URI, the
    address of a page on the Hub, or a local folder.

    ModelRef.parse("org/name")                     a Hub id
    ModelRef.parse("org/name@v1.0")                at a branch, tag or commit
    ModelRef.parse("org/name+org/adapter@main")    with an adapter on top
    ModelRef.parse("org/name/checkpoints/3@v1")    a folder in a repository
    ModelRef.parse("./folder")                     a local folder

    Attributes:
        path: The model's Hub id, perhaps with a folder in the repository, or its local folder.
        revision: The model's branch, tag or commit on the Hub, None for the default branch.
        adapter: Hub id or folder of the adapter on top, if any.
        adapter_revision: The adapter's branch, tag or commit, None for the default branch.
        text: The reference as written.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    text: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> "ModelRef":
        """Read a reference.

        A relative path starts at the current directory, as in mergekit, and if no folder is there, at `folder`, the
        recipe's folder. If the whole text is the path of a folder, it means that folder, even with '@' or '+' in it.

        Raises:
            RecipeError: the text isn't a reference.
        """
        whole = _folder(text, folder)
        if whole:  # first of all, because a folder's name may contain '@' and '+'
            return cls(whole, text=text)
        model, plus, adapter = _cut(text, "+", folder)
        if plus and not adapter:
            raise RecipeError(f"nothing follows '+' in '{text}', expected an adapter.")
        path, revision = _source(model, text, folder)
        on_top, its_revision = _source(adapter, text, folder) if adapter else (None, None)
        return cls(path, revision, on_top, its_revision, text)

    @property
    def is_local(self) -> bool:
        """True if the model's path is an existing folder, or is written as one."""
        return is_local(self.path)

    @property
    def default_name(self) -> str:
        """The task's name unless the recipe gives one: the last part of the adapter's path, or else of the model's."""
        source = self.adapter or self.path
        # Resolved, because `.` has no name. Without leading dots, because no task's name starts with one.
        last = Path(source).resolve().name if is_local(source) else source.rsplit("/", 1)[-1]
        return re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip(".")

    def __str__(self) -> str:
        return self.text


def is_local(path: str) -> bool:
    """True if a path is an existing folder, or is written as one."""
    return bool(_FOLDER.match(path)) or _folder(path, None) is not None


def _folder(path: str, beside: Path | None) -> str | None:
    """The folder's path, relative to the current directory or else to `beside`; None if there is no such folder."""
    if not path:
        return None
    try:
        here = Path(path).expanduser()
        places = [here] if beside is None else [here, beside / here]
        for place in places:
            if place.is_dir():
                found = str(place)
                # Written as a path, so that it isn't mistaken for a Hub id later.
                return found if _FOLDER.match(found) else f"./{found}"
    except (OSError, RuntimeError, ValueError):  # too long for a path, no such ~user, or a NUL in it
        return None
    return None


def _cut(text: str, sign: str, folder: Path | None) -> tuple[str, str, str]:
    """Split `text` at the sign after the longest folder name, or else at the first: text before, sign, text after."""
    at = [i for i, letter in enumerate(text) if letter == sign]
    behind_folder = [i for i in at if _folder(text[:i], folder)]
    first = at[0] if at else len(text)
    cut = max(behind_folder, default=first)
    return text[:cut], text[cut : cut + 1], text[cut + 1 :]


def _source(part: str, text: str, folder: Path | None) -> tuple[str, str | None]:
    """Path and revision of one side of the `+` in `text`."""
    if part.startswith(("hf://", "https://")):
        try:
            parsed = parse_hf_uri(part)
        except HfUriError as error:
            raise RecipeError(f"'{part}' isn't the address of a model: {error}") from None
        path = f"{parsed.id}/{parsed.path_in_repo}" if parsed.path_in_repo else parsed.id
        if parsed.type != "model" or not _is_hub_id(path):
            raise RecipeError(f"'{part}' isn't the address of a model, expected hf://org/name[@revision][/folder].")
        return path, parsed.revision
    whole = _folder(part, folder)
    if whole:
        return whole, None
    path, at, revision = _cut(part, "@", folder)
    if at and not revision:
        raise RecipeError(f"nothing follows '@' in '{text}', expected a branch, tag or commit.")
    if at and (is_local(path) or _folder(path, folder)):
        raise RecipeError(f"'{path}' is a path, and only models on the Hub have revisions. Leave '@{revision}' out.")
    try:
        here = Path(path).expanduser()
        is_file = here.is_file() or (folder is not None and (folder / here).is_file())
    except (OSError, RuntimeError, ValueError):  # as in `_folder`
        is_file = False
    if is_file:
        raise RecipeError(f"'{path}' is a file, expected the folder it is in.")
    if not is_local(path) and not _is_hub_id(path):
        raise RecipeError(
            f"'{text}' is neither a folder here nor a Hub id, expected org/name[/folder][@revision][+adapter]."
        )
    return path, revision or None


def _is_hub_id(path: str) -> bool:
    """True if a path is a repository's id, alone or followed by a folder."""
    repo_id, folder = in_repository(path)
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return False
    # No part of the folder's path may be empty, or lead elsewhere as `..` does.
    return repo_id == path or all(part.strip(".") and "\\" not in part for part in folder.split("/"))


def in_repository(path: str) -> tuple[str, str]:
    """Split a path into repository id and folder: `org/name/checkpoints/3` is `checkpoints/3` of `org/name`."""
    owner, _, rest = path.partition("/")
    name, _, folder = rest.partition("/")
    return (f"{owner}/{name}" if name else owner), folder
