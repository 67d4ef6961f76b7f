"""The Hugging Face Hub: pins sources, checks access, reads headers and weights, and pushes outputs.

No other part uses the network.
"""

from hf_tsv.hub._client import Hub
from hf_tsv.hub._facts import SourceFacts, facts_of_folder, header_of_card
from hf_tsv.hub._pinned import Pinned
from hf_tsv.hub._push import Commit, Pushed, Repository, Target
from hf_tsv.hub._remote import RemoteCheckpoint, Slice
from hf_tsv.hub._repository import Weights

__all__ = [
    "Commit",
    "Hub",
    "Pinned",
    "Pushed",
    "RemoteCheckpoint",
    "Repository",
    "Slice",
    "SourceFacts",
    "Target",
    "Weights",
    "facts_of_folder",
    "header_of_card",
]
