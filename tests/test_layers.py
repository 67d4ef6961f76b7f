"""What import-linter (pyproject.toml) doesn't hold: who talks to a network, and how tests are built."""

import ast
from collections.abc import Iterator
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


def own_statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    """Every statement of a function, without those of the functions and classes inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))


def test_no_test_returns_early() -> None:
    """It would be counted although it has asserted nothing. Leave the case out of the parameters, or skip it."""
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                returns = [statement for statement in own_statements(node) if isinstance(statement, ast.Return)]
                assert not returns, f"{path}:{returns[0].lineno}"
