"""The environment of every test; the fixtures are in tests/support."""

import pytest

from tests.support import environment

# Here rather than in a fixture: the plugins, which are imported next, import what reads the environment once.
environment.isolate()

pytest_plugins = ["tests.support.delta_fixtures", "tests.support.hub_fixtures", "tests.support.pushes"]


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Only after pytest itself has seen whether a person wants colours."""
    environment.plain_terminal()
