"""The tools we compare with, each in an environment of its own, so that neither sees the other's versions."""

import json
import subprocess
import sys
import venv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CACHE = Path(__file__).parent / ".cache"
TORCH = "torch==2.13.0"
_VERSIONS = """
import importlib.metadata as m, json, platform, sys
print(json.dumps({"python": platform.python_version()} | {name: m.version(name) for name in sys.argv[1:]}))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with one pinned distribution.

    Attributes:
        name: Its folder in the cache.
        requirement: What pip installs, once torch is there; none for the environment that runs us.
        reported: Distributions whose versions belong to the results.
    """

    name: str
    requirement: str
    reported: tuple[str, ...]

    @cached_property
    def python(self) -> str:
        """Its interpreter, made on first use: some 2 GB and a few minutes."""
        if not self.requirement:
            return sys.executable
        folder = CACHE / self.name
        python, complete = folder / "bin" / "python", folder / f"complete-{self.requirement}"
        if not complete.exists():
            print(f"Installing {self.requirement} into {folder} ...", file=sys.stderr)
            venv.create(folder, with_pip=True, clear=True)
            # torch alone and first: resolved together with the rest, pip may take a CUDA build of it.
            for requirements in ([TORCH], [self.requirement, TORCH]):
                pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                subprocess.run([*pip, *requirements], check=True)
            complete.touch()
        return str(python)

    def versions(self) -> dict[str, str]:
        """Python's and the reported distributions' versions."""
        found = subprocess.run(
            [self.python, "-c", _VERSIONS, *self.reported], check=True, capture_output=True, text=True
        )
        return dict(json.loads(found.stdout))


OURS = Environment("ours", "", ("torch", "numpy", "scipy", "safetensors"))
FUSION_BENCH = Environment(
    "fusion-bench", "fusion-bench==0.2.33", ("fusion-bench", "torch", "transformers", "safetensors")
)
MERGEKIT = Environment("mergekit", "mergekit==0.1.5", ("mergekit", "torch", "transformers", "safetensors"))
PEFT = Environment("peft", "peft==0.21.2", ("peft", "torch", "transformers", "safetensors"))
