"""What the page is built of: pictures that can be clicked, the legend, and what the browser does by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sheet import heat_colors

# where a patch was clicked, in shares of the picture; arrow keys move the chosen one
CLICKED = """(event) => {
    const box = event.currentTarget.getBoundingClientRect();
    emit((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
}"""
MOVED = """(event) => {
    const moves = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
    if (moves[event.key]) { event.preventDefault(); emit(...moves[event.key]); }
}"""
# files may be dropped anywhere; without this the browser would leave the page and show them
DROPPED = """
const files = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
let depth = 0;
addEventListener("dragenter", (event) => { if (files(event)) { depth++; document.body.classList.add("dragging"); } });
addEventListener("dragleave", (event) => {
    if (files(event) && --depth <= 0) document.body.classList.remove("dragging");
});
addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    depth = 0;
    document.body.classList.remove("dragging");
    getElement(UPLOADER).addFiles(event.dataTransfer.files);
});
"""
REJECTED = "(files) => emit(files.map((entry) => [entry.file.name, entry.file.size, entry.failedPropValidation]))"
FAILED = "() => emit()"


class Tile:
    """A picture with a title and a mark on a patch."""

    def __init__(self, name: str, title, layer, mark) -> None:
        self.name, self.title, self.layer, self.mark = name, title, layer, mark

    def point(self, place: tuple[int, int], grid: tuple[int, int], ring: bool) -> None:
        """Marks a patch: a frame, or a ring around it."""
        top, left = (100 * (index + 0.5) / count for index, count in zip(place, grid))
        height, width = (100 / count for count in grid)
        size = f"width: {1.6 * width}%" if ring else f"width: {width}%; height: {height}%"
        self.mark.style(replace=f"left: {left}%; top: {top}%; {size}")
        self.mark.classes(add="ring" if ring else "", remove="" if ring else "ring")
        self.mark.set_visibility(True)


@dataclass(frozen=True)
class Card:
    """The tiles of an image that change."""

    image: Tile
    similarity: Tile
    attention: Tile | None


class Legend:
    """The colours of similarity with their values."""

    def __init__(self) -> None:
        from nicegui import ui

        stops = heat_colors(np.linspace(0, 1, 9), 0, 1)[:, :3]
        with ui.element("div").classes("legend"):
            text("span", "cosine")
            self.low = text("span", "")
            colors = ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in stops)
            ui.element("i").style(f"background: linear-gradient(to right, {colors})")
            self.high = text("span", "")

    def show(self, low: float, high: float) -> None:
        """Writes the lowest and the highest value."""
        self.low.text, self.high.text = f"{low:.2f}", f"{high:.2f}"


def text(tag: str, content: str):
    """An element with text in it, which is never read as HTML."""
    from nicegui.elements.mixins.text_element import TextElement

    return TextElement(tag=tag, text=content)


def image_of(source: str):
    """An image without a text of its own: what is around it names it."""
    from nicegui import ui

    image = ui.element("img")
    image.props["src"], image.props["alt"], image.props["draggable"] = source, "", "false"
    return image
