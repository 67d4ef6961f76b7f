"""The summary as one self-contained HTML page, which needs no network and no other file."""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_tsv._version import __version__
from hf_tsv.inspection.summary import Summary

_IN_A_SCRIPT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render_page(summary: Summary) -> str:
    """Render the page of a summary. No character of a name becomes markup or script."""
    plain = summary.plain()
    text = json.dumps(plain, separators=(",", ":"))
    # JSON allows these characters as escapes, so the data can't end the script that contains them.
    data = Markup(text.translate(_IN_A_SCRIPT))
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html.j2").render(s=plain, data=data, version=__version__)
