"""What the pages say holds: the messages that they quote exist."""

import ast
import re
from functools import cache

import pytest

from .pages import DOCS, ROOT

EXTEND = sorted((DOCS / "extend").glob("*.md"))


@cache
def texts_of_the_package():
    """The constant texts of the package, one long string; parts of f-strings are apart."""
    nodes = [node for path in (ROOT / "src").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def messages_of(page):
    """The messages in the table under `What is checked`, and their parts without what stands for values."""
    section = re.search(r"^## What is checked\n(.*?)^## ", page.read_text(), re.S | re.M)
    rows = [line for line in section[1].splitlines() if line.startswith("|")] if section else []
    for row in rows[2:]:
        for message in re.findall(r"`([^`]*…[^`]*|[^`]*NAME[^`]*)`", row):
            yield message, re.split(r"…|\b[A-Z]{3,}\b", message)


@pytest.mark.parametrize("page", EXTEND, ids=lambda page: page.stem)
def test_messages_on_the_page_are_those_of_the_package(page):
    found = list(messages_of(page))
    assert bool(found) == (page.stem != "index")
    for message, parts in found:
        for part in filter(None, (part.strip(" ;)") for part in parts)):
            assert part in texts_of_the_package(), message
