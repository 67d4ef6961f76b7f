"""The kinds of files in a model's folder, recognised by their names."""

from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from itertools import product
from pathlib import PurePosixPath

from hf_tsv.files.names import CARD_FILE, LOCK_FILE, MASKS, PARTS, PICTURES, RECIPE_FILE, RECORD_FILE

SIDE_FILE_MAX_BYTES = 100_000_000  # above every tokenizer, below every weight file that matters

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
OTHER_WEIGHTS = (
    *("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf", "*.ggml", "*.ot", "*.tflite", "*.keras", "*.pb"),
    *("*.npz", "*.npy", "*.mlmodel", "*.pdparams", "*.nemo", "*.mar", "*.tar", "*.gz", "*.zip"),
)
OTHER_FOLDERS = (
    *("onnx", "openvino", "coreml", "original", "runs", "logs", "checkpoint-*"),
    *("adapters*", MASKS, PICTURES, PARTS),  # in an output of this package
)
PICTURE_FILES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.mp4", "*.wav", "*.mp3", "*.pdf")
ABOUT_THE_SOURCE = (
    *(CARD_FILE, "adapter_config.json", "*.index.json", "trainer_state.json", "*_results.json"),
    *(RECORD_FILE, RECIPE_FILE, LOCK_FILE),
)
LEFT_OUT = (*PICKLES, *OTHER_WEIGHTS, *PICTURE_FILES, *ABOUT_THE_SOURCE)
LICENCES = ("licen[sc]e*", "notice*", "use_policy*")
MODULE_FOLDERS = "[0-9]*_*"  # 1_Pooling, 2_Dense: the modules of a sentence-transformers model

GENERATION_CONFIG = "generation_config.json"  # refers to tokens
TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("spiece*", "chat_template.*", "sentencepiece*", "normalizer.json"),
)


def side_files(files: Mapping[str, int]) -> tuple[str, ...]:
    """Return the files to copy with the weights: configuration, tokenizer, processor, templates, modules, licence.

    Cards, logs, pictures, weights in any format and files larger than 100 MB are left out. The weights of a numbered
    module folder (`2_Dense/model.safetensors`) are included, because the model doesn't load without them.

    Args:
        files: Size in bytes of every file of the model, by its path in the model's folder.
    """
    chosen = []
    for file, nbytes in files.items():
        path = PurePosixPath(file)
        folders = path.parts[:-1]
        is_hidden = any(part.startswith(".") for part in path.parts)
        if nbytes > SIDE_FILE_MAX_BYTES or is_hidden or matches(OTHER_FOLDERS, folders):
            continue
        if path.name.endswith(".safetensors"):
            # Only a module's weights are copied: all others are the merged weights, or a copy of them.
            goes_along = len(folders) == 1 and fnmatch(folders[0], MODULE_FOLDERS)
        else:
            goes_along = not matches(LEFT_OUT, [path.name])
        if goes_along:
            chosen.append(file)
    return tuple(sorted(chosen))


def matches(patterns: Collection[str], names: Collection[str]) -> bool:
    """Return True if any of the names matches any of the patterns, which are shell patterns."""
    return any(fnmatch(name, pattern) for name, pattern in product(names, patterns))
