"""Markdown that untrusted text can't break out of.

Names of models, tasks and tensors are untrusted. So a template escapes every value that it prints, except those that a
filter (`code`, `fence`, `link`) has made safe in its own way.
"""

import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_tsv.files.bundled import bundled


class Markdown(str):
    """Text that is meant as Markdown, which templates print unchanged."""

    __slots__ = ()


_SIGNIFICANT = re.compile(
    r"[\\`\[\]<>&|~$]"  # anywhere
    r"|\*(?!\s)|(?<!\s)\*"  # an asterisk that isn't between spaces
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore that isn't within a word
    r"|^[-+=#]|^\d+(?=[.)](\s|$))"  # lists and headings, at the start of a block
    r"|:(?=//)|(?i:w(?=ww\.))"  # addresses, which the Hub turns into links
)
_PLAIN_CODE = re.compile(r"[\w.,:;/@+=*()\[\]{}-]+", re.ASCII)
_PUNCTUATION = re.compile(r"[^\w ]|_")


def text(value: object) -> Markdown:
    """Escape one line, to be shown literally in a paragraph, a heading, a table cell or a link's label."""
    if isinstance(value, Markdown):
        return value
    line = one_line(str(value))
    return Markdown(_SIGNIFICANT.sub(_as_entities, line))


def code(value: object) -> Markdown:
    """Format one line as code. It uses HTML if needed: backticks in a table can't safely hold pipes or backticks."""
    line = one_line(str(value))
    if _PLAIN_CODE.fullmatch(line):
        return Markdown(f"`{line}`")
    return Markdown("<code>" + _PUNCTUATION.sub(_as_entities, line) + "</code>")


def fence(content: str, language: str) -> Markdown:
    """Put lines unchanged between fences longer than any run of backticks in them."""
    longest = max(map(len, re.findall("`+", content)), default=0)
    marks = "`" * max(3, longest + 1)
    content = content.rstrip("\n")
    return Markdown(f"{marks}{language}\n{content}\n{marks}")


def score(value: object) -> str:
    """Format a measured number with four digits; empty if it wasn't measured."""
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def link(label: object, url: str) -> Markdown:
    return Markdown(f"[{text(label)}]({quote(url, safe=':/')})")


def one_line(value: str) -> str:
    """Replace line breaks by spaces, and invisible characters, which could reorder or hide text, by U+FFFD."""
    characters = []
    for character in " ".join(value.split()):
        is_invisible = unicodedata.category(character).startswith("C")  # control, format, surrogate, unassigned
        characters.append("\ufffd" if is_invisible else character)
    return "".join(characters)


def _as_entities(match: re.Match[str]) -> str:
    return "".join(f"&#{ord(c)};" for c in match[0])


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(bundled("cards")),
        autoescape=False,  # its HTML rules don't fit Markdown
        finalize=text,  # escapes every printed value
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "fence": fence, "link": link, "score": score}
    return environment


def sections(template: str, contents: Mapping[str, Any]) -> dict[str, str]:
    """Render each block of a card's template with the contents; empty ones are left out."""
    loaded = _templates().get_template(template)
    context = loaded.new_context(dict(contents))
    texts: dict[str, str] = {}
    for name, block in loaded.blocks.items():
        block_text = "".join(block(context)).strip("\n")
        if block_text:
            texts[name] = block_text
    return texts
