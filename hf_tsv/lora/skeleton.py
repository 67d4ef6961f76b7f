"""A transformers model without its weights."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from hf_tsv.errors import CheckpointError


def make_skeleton(config_folder: Path) -> Any:
    """Build the model that a folder's config.json names: a PreTrainedModel on the meta device, with weights tied.

    Raises:
        CheckpointError: transformers and PEFT are not installed, or transformers has no such model class.
    """
    config, model_class = model_class_of(config_folder)
    with torch.device("meta"):
        model = model_class(config)
    model.tie_weights()
    return model


def check_installed() -> None:
    """Check that the packages for reading and writing adapters are installed.

    Raises:
        CheckpointError: transformers or PEFT is not installed.
    """
    try:
        for package in ("peft", "transformers"):
            import_module(package)
    except ImportError as error:
        raise CheckpointError(
            f"adapters: PEFT and transformers can't be imported: {error}. Run pip install --upgrade peft transformers"
        ) from error


def model_class_of(config_folder: Path) -> tuple[Any, Any]:
    """Return a folder's configuration and the transformers class that it names. No code from the folder is run.

    Raises:
        CheckpointError: as in `make_skeleton`.
    """
    check_installed()
    import transformers

    path = config_folder / "config.json"
    try:
        names = json.loads(path.read_text("utf-8")).get("architectures") or ["none"]
        config = transformers.AutoConfig.from_pretrained(config_folder, trust_remote_code=False)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: transformers can't read this configuration: {error}") from error
    model_class = getattr(transformers, names[0], None)
    if not isinstance(model_class, type) or not issubclass(model_class, transformers.PreTrainedModel):
        raise CheckpointError(
            f"{path}: 'architectures' names {names[0]!r}, which is not a model class of transformers"
            f" {transformers.__version__}. Adapters can be made for these classes only"
        )
    return config, model_class


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers and PEFT: any problem that their warnings point to is checked on the tensors."""
    from transformers.utils import logging as untyped

    logging: Any = untyped  # its functions have no types
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
