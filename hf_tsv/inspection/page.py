"""The summary as one HTML page that needs nothing else: no network, no other file."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_tsv._version import __version__

_IN_A_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(summary: Mapping[str, Any]) -> str:
    """The page of a summary as `summarize` makes it. Whatever names hold, none becomes markup or script."""
    data = Markup(json.dumps(summary, separators=(",", ":")).translate(_IN_A_SCRIPT))
    return _templates().get_template("page.html.j2").render(s=summary, data=data, version=__version__)


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
