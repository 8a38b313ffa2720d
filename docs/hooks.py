"""Hooks of MkDocs: README and CHANGELOG as pages, and links to what is not a page.

`README.md` is the page `index.md` and `CHANGELOG.md` the page `changelog.md`; both are read where they are. A link to a
file or folder that the site does not have, such as `../src/dinov2_hf/config/`, becomes its text.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""Pages that lie outside `docs/`, by their place in the repository."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files, config):
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    uri = page.file.src_uri
    source = next((source for source, name in PAGES.items() if name == uri), f"docs/{uri}")

    def replace(match):
        mark, text, target, anchor = match.groups()
        place = normpath(join(dirname(source), target))
        if "://" in target or not (ROOT / place).exists():
            return match[0]  # MkDocs says which file does not exist
        inside = PAGES.get(place) or place.removeprefix("docs/")
        if files.get_file_from_path(inside) is None:
            return text
        return f"{mark}[{text}]({relpath(inside, dirname(uri) or '.')}{anchor or ''})"

    return LINK.sub(replace, markdown)
