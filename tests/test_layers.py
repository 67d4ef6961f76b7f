"""What import-linter (pyproject.toml) doesn't hold: only `hub/` talks to a network, and tests know no other tests."""

import ast
from pathlib import Path

import hf_tsv

PACKAGE = Path(hf_tsv.__file__).parent
TESTS = Path(__file__).parent


def module_name(path: Path) -> str:
    return ".".join(("tests", *path.relative_to(TESTS).with_suffix("").parts))


def imported_by(path: Path) -> set[str]:
    """The dotted name of everything that a module of the tests imports, at its top or inside a function."""
    names: set[str] = set()
    package = module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = above if node.module is None else [*above, node.module]
            names |= {".".join([*origin, alias.name]) for alias in node.names}
    return names


def test_only_the_hub_talks_to_a_network() -> None:
    networks = ("httpx", "requests", "urllib", "socket", "http")
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] == "hub":
            continue
        text = path.read_text("utf-8")
        assert not any(f"import {name}" in text for name in networks), path


def test_what_tests_share_is_in_support() -> None:
    """A test module that another one imports can't be changed by itself."""
    test_modules = {module_name(path) for path in TESTS.rglob("test_*.py")}
    for path in TESTS.rglob("*.py"):
        for name in imported_by(path):
            # `from tests.a.test_b import c` and `from tests.a import test_b` alike
            assert not {name, name.rpartition(".")[0]} & test_modules, f"{path} imports {name}"
