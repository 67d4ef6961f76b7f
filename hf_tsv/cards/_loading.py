"""The library and classes that load a model, by the configuration beside its weights."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Pattern of a transformers class's name: the Auto class that loads all such classes, and their task on the Hub.
AUTO_CLASSES = {
    r"\w+ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    r"\w+ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    r"(?!Data2VecAudio|Hubert|SEW|UniSpeech|Wav2Vec2|WavLM)\w+ForSequenceClassification": (
        "AutoModelForSequenceClassification",
        "text-classification",
    ),
    r"\w+ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    r"\w+ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    r"\w+ForSemanticSegmentation": ("AutoModelForSemanticSegmentation", "image-segmentation"),
    r"\w+ForAudioClassification": ("AutoModelForAudioClassification", "audio-classification"),
    r"\w+ForCTC": ("AutoModelForCTC", "automatic-speech-recognition"),
}
# The model type in config_sentence_transformers.json, and its task on the Hub.
SENTENCE_CLASSES = {
    "SentenceTransformer": "sentence-similarity",
    "SparseEncoder": "feature-extraction",
    "MultiVectorEncoder": "feature-extraction",
    "CrossEncoder": None,  # its task depends on its labels
}


@dataclass(frozen=True)
class Loading:
    """The library and classes that load a model.

    Attributes:
        library: The library's name on the Hub.
        model_class: The library's class for the model.
        input_class: The library's class for the tokenizer or processor, if there is one beside the model.
        pipeline_tag: The model's task on the Hub, if it is certain.
    """

    library: str
    model_class: str
    input_class: str | None = None
    pipeline_tag: str | None = None


def loading(folder: Path) -> Loading | None:
    """Find how an output is loaded; None if neither transformers nor sentence-transformers knows its configuration."""
    if (folder / "modules.json").is_file():
        named = str(read_json(folder / "config_sentence_transformers.json").get("model_type"))
        model_class = named if named in SENTENCE_CLASSES else "SentenceTransformer"
        return Loading("sentence-transformers", model_class, pipeline_tag=SENTENCE_CLASSES[model_class])
    config = read_json(folder / "config.json")
    if not {"architectures", "model_type"} & config.keys():
        return None

    listed = config.get("architectures")
    architecture = str(listed[0]) if isinstance(listed, list) and listed else ""
    # The snippet is code that people run, so only a name may get into it. With auto_map, transformers lacks the class.
    is_own_class = re.fullmatch(r"[A-Z][A-Za-z0-9]*", architecture) and "auto_map" not in config
    model_class = architecture if is_own_class else "AutoModel"
    pipeline_tag = None
    # An Auto class is used only if it is certain to load the same architecture.
    for pattern, (auto_class, task) in AUTO_CLASSES.items():
        if re.fullmatch(pattern, architecture):
            model_class, pipeline_tag = auto_class, task
            break

    files = {path.name for path in folder.iterdir()}
    input_class = None
    if files & {"processor_config.json", "preprocessor_config.json"}:
        input_class = "AutoProcessor"
    elif files & {"tokenizer_config.json", "tokenizer.json"}:
        input_class = "AutoTokenizer"
    return Loading("transformers", model_class, input_class, pipeline_tag)


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration; empty if it is missing or malformed, which is no reason to lose a merge."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
