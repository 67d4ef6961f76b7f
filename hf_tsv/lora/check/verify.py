"""Checks that PEFT computes the intended weights from a written adapter.

Nearly every mistake in an adapter's files is silent: PEFT loads them and computes something else. So every adapter is
loaded again, and the resulting weights are compared with the base's plus the change.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_tsv.checkpoints.dtypes import DTYPES
from hf_tsv.checkpoints.folder import open_checkpoint
from hf_tsv.checkpoints.protocol import Checkpoint
from hf_tsv.checkpoints.safetensors import SafetensorsCheckpoint, read_header
from hf_tsv.errors import CheckpointError
from hf_tsv.lora.architecture import Architecture
from hf_tsv.lora.check.inputs import random_inputs
from hf_tsv.lora.format import ADAPTER_WEIGHTS, FACTOR_MARK
from hf_tsv.lora.names import Piece
from hf_tsv.lora.read.sidecar import read_sidecar
from hf_tsv.lora.skeleton import model_class_of, quiet

ADAPTER = "default"  # PEFT's name for a single adapter
MOST_REPORTED = 5
CHUNK = 2**20  # numbers compared at once
LOGITS_ROUNDINGS = 64.0  # allowed error of an output, in float32 roundings of the largest one


@dataclass(frozen=True)
class Verification:
    """The result of a successful comparison.

    Attributes:
        tensors: Number of the checkpoint's tensors that were compared. Those in the sidecar, which PEFT doesn't read,
            were compared with the base's.
        largest_error: The largest error of a weight, merged or not, relative to the norm of its change.
        logits_error: The largest error of an output, relative to the largest output; None if outputs weren't compared,
            by choice or because this package can't make up inputs for the model.
    """

    tensors: int
    largest_error: float
    logits_error: float | None = None


def verify_adapter(
    folder: Path,
    architecture: Architecture,
    expected: Callable[[str], Tensor],
    *,
    forward: bool = False,
) -> Verification:
    """Load an adapter with PEFT and compare the resulting weights with the expected ones.

    Every tensor of the checkpoint is compared: as PEFT changes it at each call, merged and, if the base has it, with
    the adapter switched off. Differences are measured in the Frobenius norm; those that rounding the factors and
    weights to their dtypes explains are allowed.

    Args:
        folder: The adapter's folder.
        architecture: The base model's architecture.
        expected: Returns the tensor that should result for a name in the checkpoint, preferably in float32. It isn't
            called for tensors in the sidecar, which PEFT leaves as in the base.
        forward: True to also compare the outputs for a random input.

    Raises:
        CheckpointError: PEFT can't load or merge it, or something differs; the message names the parameters.
    """
    with quiet(), torch.no_grad():
        return _Check(folder, architecture, expected).run(forward=forward)


class _Check:
    """A check with one model in memory: first the base, then with the adapter, then merged.

    Attributes:
        in_base: Names of the tensors that the base has in the fine-tune's shape; any others belong to a head.
        beside: Names of the tensors in the sidecar.
        factor_rounding: The relative spacing of the factors' coarsest dtype, or float32's if that is coarser.
        problems: Descriptions of all differences.
        largest: The largest error of a weight so far, relative to the norm of its change.
    """

    def __init__(self, folder: Path, architecture: Architecture, expected: Callable[[str], Tensor]) -> None:
        self.folder = folder
        self.architecture = architecture
        self.base: Checkpoint = open_checkpoint(architecture.folder)
        headers = architecture.headers
        same_shape = [name for name in self.base.names() if self.base.info(name).shape == headers[name].shape]
        self.in_base = frozenset(same_shape)
        self.beside = read_sidecar(folder).keys()
        self.of_finetune = expected
        # The comparison is in float32 at best.
        file = SafetensorsCheckpoint([folder / ADAPTER_WEIGHTS], label=str(folder))
        dtypes = {DTYPES[file.info(name).dtype].torch for name in file.names() if f".{FACTOR_MARK}" in name}
        self.factor_rounding = max(_rounding(dtype) for dtype in (torch.float32, *dtypes))
        self.problems: list[str] = []
        self.largest = 0.0

    def run(self, *, forward: bool) -> Verification:
        from peft import PeftModel

        model = _load_base(self.architecture, in_float32=forward)
        inputs = random_inputs(model) if forward else None
        base_outputs = _outputs(model, inputs)
        try:
            adapted = PeftModel.from_pretrained(model, str(self.folder)).eval()
        except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{self.folder}: PEFT can't load it: {error}") from error
        wrapped = adapted.get_base_model()  # the model's own class, containing PEFT's layers
        for name, key, piece in self._parts():
            original, effective = _values(wrapped, key)
            self._compare(name, key, piece, effective, "unmerged")
            if name in self.in_base:
                in_base = piece.rows_of(self.base.read(name)).to(original.dtype)
                if not torch.equal(piece.within(original), in_base):
                    self.problems.append(f"{key}: with the adapter switched off it differs from the base's")
        try:
            unmerged_outputs = _outputs(adapted, inputs)
        except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{self.folder}: the base runs, but not with the adapter in PEFT: {error}") from error
        # PEFT can't switch off an adapter that has no tensors.
        is_empty = not read_header(self.folder / ADAPTER_WEIGHTS)
        with nullcontext() if is_empty else adapted.disable_adapter():
            disabled_outputs = _outputs(adapted, inputs)
        # From here on the model in memory is a different one: merged, and later with the expected weights copied in.
        try:
            merged = adapted.merge_and_unload()
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.folder}: PEFT can't merge it: {error}") from error
        state = merged.state_dict()
        for name, key, piece in self._parts():
            self._compare(name, key, piece, state[key], "merged")
        merged_outputs = _outputs(merged, inputs)
        for name, key, piece in self._parts():
            piece.within(state[key]).copy_(piece.rows_of(self._expected(name)))
        expected_outputs = _outputs(merged, inputs)
        logits_error = None
        if inputs:
            difference = _largest_difference(base_outputs, disabled_outputs)
            # The weights were compared bit by bit, but sums in another order round differently.
            if not difference <= LOGITS_ROUNDINGS * _rounding(torch.float32) * _largest_of(expected_outputs):
                self.problems.append(
                    f"outputs: with the adapter switched off they differ from the base's by {difference:.2g}"
                )
            moved = _largest_difference(expected_outputs, base_outputs)
            errors = [
                self._output_error("unmerged", unmerged_outputs, expected_outputs, moved),
                self._output_error("merged", merged_outputs, expected_outputs, moved),
            ]
            logits_error = max(errors)
        if self.problems:
            lines = [f"{self.folder}: {problem}" for problem in self.problems[:MOST_REPORTED]]
            more = len(self.problems) - len(lines)
            if more:
                lines.append(f"{self.folder}: and {more} more such differences")
            raise CheckpointError(lines)
        return Verification(len(self.architecture.located.pieces), self.largest, logits_error)

    def _expected(self, name: str) -> Tensor:
        """Return the tensor that PEFT should produce: tensors in the sidecar stay as in the base."""
        return self.base.read(name) if name in self.beside else self.of_finetune(name)

    def _parts(self) -> Iterator[tuple[str, str, Piece]]:
        """Yield each tensor of the checkpoint with each parameter that holds it or a piece of it, tied ones too."""
        for name, pieces in self.architecture.located.pieces.items():
            for piece in pieces:
                yield name, piece.parameter, piece
                for key in self.architecture.aliases.get(piece.parameter, ()):
                    if key not in self.architecture.sources:
                        yield name, key, piece

    # Weights

    def _compare(self, name: str, key: str, piece: Piece, actual: Tensor, how: str) -> None:
        """Compare a checkpoint tensor with the rows of a parameter that hold it."""
        expected = piece.rows_of(self._expected(name))
        if name in self.in_base:
            base = piece.rows_of(self.base.read(name))
            change = _distance(expected, base)
        else:  # the fine-tune's own head
            change = _norm(expected)
        error = _distance(expected, piece.within(actual))
        # Rounding errors of the factors are relative to the change, those of the weights relative to the weights.
        weight_rounding = max(_rounding(actual.dtype), _rounding(expected.dtype))
        allowed = 4 * self.factor_rounding * change + 2 * weight_rounding * _norm(expected)
        if not error <= allowed:  # so that NaN counts as a difference
            self.problems.append(
                f"{key}: {how}, it differs from {name} of the base plus its change by {error:.2g}, where the change is"
                f" {change:.2g}"
            )
        if change:
            self.largest = max(self.largest, error / change)

    # Outputs

    def _output_error(self, how: str, actual: list[Tensor], expected: list[Tensor], moved: float) -> float:
        """Compare outputs, and return the largest difference relative to the largest output.

        Args:
            how: How the adapter was applied, for the message.
            actual: The model's outputs.
            expected: The expected outputs.
            moved: The largest change of an output, which sets the allowance for rounding of the factors.
        """
        scale = _largest_of(expected)
        error = _largest_difference(actual, expected)
        allowed = LOGITS_ROUNDINGS * _rounding(torch.float32) * scale + 16 * self.factor_rounding * moved
        if not error <= allowed:
            self.problems.append(
                f"outputs: {how}, they differ from those of the base plus the change by {error:.2g}, more than rounding"
                f" explains ({allowed:.2g})"
            )
        return error / scale


def _load_base(architecture: Architecture, *, in_float32: bool) -> Any:
    """Load the base as users do, but in float32 to compare outputs, because 16-bit rounding would hide differences."""
    config, model_class = model_class_of(architecture.config_folder)
    try:
        model = model_class.from_pretrained(
            architecture.folder,
            config=config,
            dtype=torch.float32 if in_float32 else "auto",
            local_files_only=True,
            ignore_mismatched_sizes=True,  # the fine-tune's head may differ in size
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{architecture.folder}: transformers can't load it: {error}") from error
    return model.eval()


def _values(model: Any, key: str) -> tuple[Tensor, Tensor]:
    """Return a parameter as in the base, and as it acts at each call with the adapter."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    original = effective = model
    *path, local = key.split(".")
    for part in path:
        original = getattr(original, part)
        effective = getattr(effective, part)
        # A module stored whole exists twice: the base's copy and the adapter's copy.
        if isinstance(original, ModulesToSaveWrapper):
            original = original.original_module
        if isinstance(effective, ModulesToSaveWrapper):
            effective = effective.modules_to_save[ADAPTER]
    if isinstance(original, LoraLayer):
        value = getattr(original.get_base_layer(), local)
        delta = _lora_delta(original, local)
        if delta is None:
            return value, value
        return value, value.float() + delta.float()
    return getattr(original, local), getattr(effective, local)


def _lora_delta(layer: Any, local: str) -> Any:
    """Return PEFT's addition to a parameter of a wrapped module; None if it adds nothing."""
    while hasattr(layer, "parameter_name"):  # wrappers are nested if several parameters are targeted
        if layer.parameter_name == local:
            return layer.get_delta_weight(ADAPTER)
        layer = layer.base_layer
    if ADAPTER not in getattr(layer, "scaling", {}):
        return None
    if local == "bias":
        if not layer.lora_bias[ADAPTER]:
            return None
        return layer.lora_B[ADAPTER].bias * layer.scaling[ADAPTER]
    return layer.get_delta_weight(ADAPTER)


def _outputs(model: Any, inputs: Mapping[str, Tensor] | None) -> list[Tensor]:
    """Run a model and return its floating-point output tensors; empty without inputs."""
    returned = model(**inputs).to_tuple() if inputs else ()
    return [value for value in returned if isinstance(value, Tensor) and value.is_floating_point()]


def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def _norm(tensor: Tensor) -> float:
    """Return the Frobenius norm, summed in float64."""
    wide = tensor if tensor.is_floating_point() else tensor.double()
    return float(torch.linalg.vector_norm(wide, dtype=torch.float64))


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the Frobenius norm of a - b, computed in chunks to save memory."""
    a_chunks = torch.split(a.flatten(), CHUNK)
    b_chunks = torch.split(b.flatten(), CHUNK)
    norms = [_norm(_wide(x) - _wide(y)) for x, y in zip(a_chunks, b_chunks, strict=True)]
    return math.hypot(*norms)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _largest_of(tensors: Iterable[Tensor]) -> float:
    return max(_largest(tensor) for tensor in tensors)


def _largest_difference(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    return max(_largest(a - b) for a, b in zip(these, those, strict=True))


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
