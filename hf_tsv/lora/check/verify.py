"""Whether PEFT makes of a written adapter what it was meant to be.

Nearly every mistake in an adapter's files is silent: PEFT loads them and computes something else. So every adapter is
loaded back, and the weights that come out are compared with the base's plus the change.
"""

import math
from collections.abc import Callable, Iterator, Mapping
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

ADAPTER = "default"  # PEFT's name for the one adapter
MOST_TOLD = 5
CHUNK = 2**20  # numbers compared at once
LOGITS_ROUNDINGS = 64.0  # that the largest logit may be off by


@dataclass(frozen=True)
class Verification:
    """What was compared; nothing differed.

    Attributes:
        tensors: How many of the checkpoint's tensors.
        largest_error: The largest difference of a weight, merged or not, relative to the norm of its change.
        logits_error: The largest difference of an output, relative to the largest output; None where outputs were
            not asked for, or the model takes inputs that this package can't make up.
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
    """Load an adapter by PEFT and compare it with what it was made of.

    Every tensor of the checkpoint is compared: as PEFT adds to it at each call, as it is merged, and, as the base has
    it, with the adapter switched off. Differences are measured in the Frobenius norm, and what rounding the factors and
    the weights to their dtypes explains is allowed.

    Args:
        folder: The adapter's.
        architecture: The base model's.
        expected: Gives the tensor that the adapter should make of one of the checkpoint's, best in float32. It is not
            asked for what the sidecar holds: PEFT leaves that as in the base.
        forward: Compare the outputs for a random input too.

    Raises:
        CheckpointError: PEFT can't load it, or something differs; names the modules.
    """
    with quiet(), torch.no_grad():
        return _Check(folder, architecture, expected).run(forward=forward)


class _Check:
    """One model in memory: the base, then with the adapter, then merged."""

    def __init__(self, folder: Path, architecture: Architecture, expected: Callable[[str], Tensor]) -> None:
        self.folder = folder
        self.architecture = architecture
        self.base: Checkpoint = open_checkpoint(architecture.folder)
        headers = architecture.headers
        self.in_base = frozenset(n for n in self.base.names() if self.base.info(n).shape == headers[n].shape)
        self.beside = read_sidecar(folder).keys()
        self.given = expected
        self.rounding = _factor_rounding(folder)
        self.problems: list[str] = []
        self.largest = 0.0

    def run(self, *, forward: bool) -> Verification:
        model = _load_base(self.architecture, in_float32=forward)
        inputs = random_inputs(model) if forward else None
        base = _outputs(model, inputs)
        adapted = self._load_adapter(model)
        self._compare_unmerged(adapted)
        unmerged = self._adapted_outputs(adapted, inputs)
        with adapted.disable_adapter() if read_header(self.folder / ADAPTER_WEIGHTS) else nullcontext():
            disabled = _outputs(adapted, inputs)
        merged = self._merge(adapted)
        state = merged.state_dict()
        self._compare_merged(state)
        outputs = {"unmerged": unmerged, "merged": _outputs(merged, inputs)}
        self._overwrite(state)
        error = self._compare_outputs(outputs, base, disabled, _outputs(merged, inputs)) if inputs else None
        if self.problems:
            raise CheckpointError(self._told())
        return Verification(len(self.architecture.located.pieces), self.largest, error)

    def _load_adapter(self, model: Any) -> Any:
        from peft import PeftModel

        try:
            return PeftModel.from_pretrained(model, str(self.folder)).eval()
        except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{self.folder}: PEFT can't load it: {error}") from error

    def _adapted_outputs(self, adapted: Any, inputs: Mapping[str, Tensor] | None) -> list[Tensor]:
        try:
            return _outputs(adapted, inputs)
        except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{self.folder}: the base runs, but not with the adapter in PEFT: {error}") from error

    def _merge(self, adapted: Any) -> Any:
        try:
            return adapted.merge_and_unload()
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.folder}: PEFT can't merge it: {error}") from error

    def _expected(self, name: str) -> Tensor:
        return self.base.read(name) if name in self.beside else self.given(name)

    def _parts(self) -> Iterator[tuple[str, str, Piece]]:
        """Every tensor of the checkpoint with every parameter that holds it or a piece of it."""
        for name, pieces in self.architecture.located.pieces.items():
            for piece in pieces:
                yield name, piece.parameter, piece
                for key in self.architecture.aliases.get(piece.parameter, ()):
                    if key not in self.architecture.sources:
                        yield name, key, piece

    def _compare_unmerged(self, adapted: Any) -> None:
        model = adapted.get_base_model()
        for name, key, piece in self._parts():
            original, effective = _values(model, key)
            self._compare(name, key, piece, effective, "unmerged")
            if name in self.in_base:
                wanted = _rows_of(self.base.read(name), piece).to(original.dtype)
                if not torch.equal(_part(original, piece), wanted):
                    self.problems.append(f"{key}: with the adapter switched off it differs from the base's")

    def _compare_merged(self, state: Mapping[str, Tensor]) -> None:
        for name, key, piece in self._parts():
            self._compare(name, key, piece, state[key], "merged")

    def _compare(self, name: str, key: str, piece: Piece, found: Tensor, how: str) -> None:
        """Compare a tensor of the checkpoint with the rows of a parameter that hold it."""
        expected = _rows_of(self._expected(name), piece)
        base = _rows_of(self.base.read(name), piece) if name in self.in_base else None
        change = _norm(expected) if base is None else _distance(expected, base)
        error = _distance(expected, _part(found, piece))
        kept = max(_rounding(found.dtype), _rounding(expected.dtype))
        if not error <= 4 * self.rounding * change + 2 * kept * _norm(expected):
            self.problems.append(
                f"{key}: {how}, expected {name} as the base plus its change, got it off by {error:.2g}"
                f" where the change is {change:.2g}"
            )
        self.largest = max(self.largest, error / change if change else 0.0)

    def _overwrite(self, state: Mapping[str, Tensor]) -> None:
        for name, key, piece in self._parts():
            _part(state[key], piece).copy_(_rows_of(self._expected(name), piece))

    def _compare_outputs(
        self, outputs: Mapping[str, list[Tensor]], base: list[Tensor], disabled: list[Tensor], expected: list[Tensor]
    ) -> float:
        """Compare what the model says; the largest difference relative to the largest output."""
        scale = max(_largest(t) for t in expected)
        off = max(_largest(a - b) for a, b in zip(base, disabled, strict=True))
        if not off <= LOGITS_ROUNDINGS * _rounding(torch.float32) * scale:  # its weights were compared to the bit
            self.problems.append(f"outputs: with the adapter switched off they differ from the base's by {off:.2g}")
        moved = max(_largest(a - b) for a, b in zip(expected, base, strict=True))
        allowed = LOGITS_ROUNDINGS * _rounding(torch.float32) * scale + 16 * self.rounding * moved
        worst = 0.0
        for how, found in outputs.items():
            error = max(_largest(a - b) for a, b in zip(found, expected, strict=True))
            worst = max(worst, error / scale)
            if not error <= allowed:
                self.problems.append(
                    f"outputs: {how}, expected those of the base plus the change within {allowed:.2g}"
                    f" but got {error:.2g} off"
                )
        return worst

    def _told(self) -> list[str]:
        told = [f"{self.folder}: {problem}" for problem in self.problems[:MOST_TOLD]]
        more = len(self.problems) - len(told)
        return [*told, f"{self.folder}: and {more} more such differences"] if more else told


def _load_base(architecture: Architecture, *, in_float32: bool) -> Any:
    """The base as people load it; in float32 where outputs are compared, which rounding to 16 bits would blur."""
    config, model_class = model_class_of(architecture.config_folder)
    try:
        model = model_class.from_pretrained(
            architecture.folder,
            config=config,
            dtype=torch.float32 if in_float32 else "auto",
            local_files_only=True,
            ignore_mismatched_sizes=True,  # a head of the fine-tune's own size
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{architecture.folder}: transformers can't load it: {error}") from error
    return model.eval()


def _values(model: Any, key: str) -> tuple[Tensor, Tensor]:
    """A parameter as the base has it, and as it works with the adapter at each call."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    original = effective = model
    *path, local = key.split(".")
    for part in path:
        original, effective = getattr(original, part), getattr(effective, part)
        if isinstance(original, ModulesToSaveWrapper):
            original = original.original_module
        if isinstance(effective, ModulesToSaveWrapper):
            effective = effective.modules_to_save[ADAPTER]
    if isinstance(original, LoraLayer):
        value = getattr(original.get_base_layer(), local)
        delta = _lora_delta(original, local)
        return value, value if delta is None else value.float() + delta.float()
    return getattr(original, local), getattr(effective, local)


def _lora_delta(layer: Any, local: str) -> Any:
    """What PEFT adds to a parameter of a wrapped module, None when it adds nothing."""
    while hasattr(layer, "parameter_name"):  # one wrapper around the other where several parameters are targeted
        if layer.parameter_name == local:
            return layer.get_delta_weight(ADAPTER)
        layer = layer.base_layer
    if ADAPTER not in getattr(layer, "scaling", {}):
        return None
    if local == "bias":
        return layer.lora_B[ADAPTER].bias * layer.scaling[ADAPTER] if layer.lora_bias[ADAPTER] else None
    return layer.get_delta_weight(ADAPTER)


def _part(parameter: Tensor, piece: Piece) -> Tensor:
    """The rows of a parameter that a piece of a checkpoint's tensor is."""
    matrix = parameter if piece.expert is None else parameter[piece.expert]
    return matrix if piece.rows is None else matrix[piece.row : piece.row + piece.rows]


def _rows_of(tensor: Tensor, piece: Piece) -> Tensor:
    """The rows of a checkpoint's tensor that a piece is."""
    return tensor if piece.rows is None else tensor[piece.first : piece.first + piece.rows]


def _outputs(model: Any, inputs: Mapping[str, Tensor] | None) -> list[Tensor]:
    found = model(**inputs).to_tuple() if inputs else ()
    return [value for value in found if isinstance(value, Tensor) and value.is_floating_point()]


def _factor_rounding(folder: Path) -> float:
    """The relative spacing of the coarsest dtype that factors are stored in; what is compared is in float32 at best."""
    file = SafetensorsCheckpoint([folder / ADAPTER_WEIGHTS], label=str(folder))
    stored = {file.info(name).dtype for name in file.names() if f".{FACTOR_MARK}" in name}
    return max(_rounding(dtype) for dtype in (torch.float32, *(DTYPES[name].torch for name in stored)))


def _rounding(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def _norm(tensor: Tensor) -> float:
    """The Frobenius norm, summed in float64."""
    wide = tensor if tensor.is_floating_point() else tensor.double()
    return float(torch.linalg.vector_norm(wide, dtype=torch.float64))


def _distance(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of a - b, some numbers at a time."""
    xs, ys = (torch.split(tensor.flatten(), CHUNK) for tensor in (a, b))
    return math.hypot(*(_norm(_wide(x) - _wide(y)) for x, y in zip(xs, ys, strict=True)))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0
