"""The Hugging Face Hub: sources pinned, access checked, headers and weights read. The only part on a network."""

from hf_tsv.hub._client import Hub, Pinned
from hf_tsv.hub._facts import SourceFacts
from hf_tsv.hub._remote import RemoteCheckpoint, Slice
from hf_tsv.hub._repository import Weights

__all__ = ["Hub", "Pinned", "RemoteCheckpoint", "Slice", "SourceFacts", "Weights"]
