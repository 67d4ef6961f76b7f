"""What the address of a model on the Hub is made of."""


def in_repository(path: str) -> tuple[str, str]:
    """The id of the repository, and the folder in it: `org/name/checkpoints/3` is `checkpoints/3` of `org/name`."""
    owner, _, rest = path.partition("/")
    name, _, folder = rest.partition("/")
    return (f"{owner}/{name}" if name else owner), folder
