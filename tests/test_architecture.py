"""Imports point down (CONTRIBUTING, "Where things are"): the table says what a module may import of the package."""

import ast
from pathlib import Path

import hf_tsv

PACKAGE = Path(hf_tsv.__file__).parent

GROUND = {"addresses", "errors", "checkpoint", "bundled", "outputs", "__init__"}
ALLOWED = {
    "addresses": set(),
    "errors": set(),
    "checkpoint": set(),
    "bundled": set(),
    "outputs": set(),
    "linalg": set(),
    "modules": set(),
    "resources": set(),
    "masks": set(),
    "methods": {"linalg", "masks"},
    "loaders": {"companions", "linalg", "modules"},
    "writers": set(),
    "journal": {"writers"},
    "processes": {"writers"},
    "companions": {"tokenizer", "writers"},
    "recipe": {"compression", "linalg", "methods", "modules"},
    "tokenizer": {"writers"},
    "vocabulary": {"loaders", "recipe", "tokenizer"},
    "matching": {"modules", "recipe", "tokenizer", "vocabulary"},
    "planner": {"compression", "methods", "modules", "recipe", "vocabulary"},
    "hub": {"loaders", "companions"},
    "sources": {"adapters", "companions", "hub", "loaders", "recipe", "tokenizer"},
    "stored": {"linalg", "methods", "planner", "resources"},
    "staged": {"journal", "linalg", "loaders", "writers"},
    "compressing": {"compression", "planner", "recipe"},
    "compressed": {
        *(
            "adapters",
            "companions",
            "compressing",
            "compression",
            "journal",
            "linalg",
            "loaders",
            "methods",
            "planner",
            "recipe",
        ),
        *("run", "staged", "stored"),
    },
    "residuals": {"adapters", "compressed", "compressing", "compression", "journal", "loaders", "planner", "run"},
    "masked": {"companions", "loaders", "masks", "methods", "planner", "run", "stored", "writers"},
    "as_adapter": {"adapters", "compressed", "compressing", "compression", "journal", "planner", "run"},
    "run": {"linalg", "loaders", "methods", "planner", "resources", "stored"},
    "compression": {"linalg"},
    "adapters": {"compression", "linalg", "loaders", "modules", "writers"},
    "evaluation": {"adapters", "companions", "loaders", "recipe", "run", "sources"},
    "tunable": {"methods", "modules", "planner", "recipe"},
    "tuning": {"evaluation", "loaders", "masked", "masks", "planner", "recipe", "run", "stored", "tunable"},
    "inspection": {"compression", "linalg", "masks", "methods", "modules", "planner", "recipe", "run", "stored"},
    "record": {"methods", "planner", "resources", "writers"},
    "cards": {"methods", "modules", "writers"},
    "publishing": {"cards", "companions", "hub", "record", "writers"},
}
ABOVE = {
    "adapting",
    "api",
    "in_memory",
    "inputs",
    "measuring",
    "pushing",
    "restored",
    "unfinished",
    "verified",
    "cli",
    "demo",
    "__main__",
    "__init__",
}


def imports(path: Path) -> set[str]:
    """Parts of the package that a file imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "hf_tsv" else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("hf_tsv.")}
    return found


def test_imports_point_down() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part not in ABOVE:
            extra = imports(path) - ALLOWED[part] - GROUND - {part, "__version__"}
            wrong += [f"{path.relative_to(PACKAGE)} imports {name}" for name in sorted(extra)]
    assert not wrong


def test_only_the_hub_talks_to_a_network() -> None:
    networks = ("httpx", "requests", "urllib", "socket", "http")
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("hub", "demo"):
            continue
        text = path.read_text("utf-8")
        assert not any(f"import {name}" in text for name in networks), path
