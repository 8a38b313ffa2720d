"""The code in the pages: fenced blocks, and the files that some of them are."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_FENCE = re.compile(
    r'^```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    """Relative to the repository."""
    line: int
    """Of its first line of code."""
    language: str
    title: str
    """Name of the file that it is; empty: it is none."""
    text: str


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text, name = page.read_text(), str(page.relative_to(ROOT))
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(name, line, match["language"], match["title"] or "", match["text"]))
    assert text.count("```") == 2 * len(found), f"{name} has a fence that is not read"
    return found


def write_parts(folder: Path, suffix: str = ".py") -> dict[str, Path]:
    """Writes the parts of the pages under docs/extend, without their tests, to a folder; their paths by module name."""
    written = {}
    for page in sorted((DOCS / "extend").glob("*.md")):
        for block in blocks_of(page):
            if block.title.endswith(suffix) and not block.title.startswith("test_"):
                path = folder / block.title
                path.write_text(block.text)
                written[path.stem] = path
    return written
