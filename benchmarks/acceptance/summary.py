"""The lines of results as tables in Markdown."""

from __future__ import annotations

import json
from pathlib import Path


def summarise(path: Path) -> str:
    """A table of the sections, what did not pass, and the tables of each section.

    Raises:
        ValueError: a line that is not of an acceptance.
    """
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            lines.append((line.pop("section"), line.pop("table"), line))
        except (ValueError, KeyError, AttributeError):
            raise ValueError(f"{path}: line {number} is not a result of this script; give its results.jsonl") from None
    tables: dict[tuple[str, str], list[dict]] = {}
    for section, table, row in lines:
        tables.setdefault((section, table), []).append(row)
    parts = []
    statuses = tables.pop(("acceptance", "sections"), [])
    if statuses:
        parts.append("## Sections\n\n" + table_of(statuses))
    bad = [
        f"- {section}, {table}: {', '.join(f'{key} {value}' for key, value in row.items())}"
        for section, table, row in lines
        if row.get("passed") is False or "error" in row
    ]
    parts.append("## Not passed, or ended by an error\n\n" + ("\n".join(bad) or "Nothing.") + "\n")
    for (section, table), rows in tables.items():
        parts.append(f"## {section}: {table}\n\n" + table_of(rows))
    return "\n".join(parts)


def table_of(rows: list[dict]) -> str:
    """Columns in the order in which rows first name them; columns of numbers are aligned to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = [all(type(row.get(column)) in (int, float, type(None)) for row in rows) for column in columns]
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "/")
