"""What import-linter (pyproject.toml) doesn't hold: only `hub/` talks to a network."""

from pathlib import Path

import hf_tsv

PACKAGE = Path(hf_tsv.__file__).parent


def test_only_the_hub_talks_to_a_network() -> None:
    networks = ("httpx", "requests", "urllib", "socket", "http")
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] == "hub":
            continue
        text = path.read_text("utf-8")
        assert not any(f"import {name}" in text for name in networks), path
