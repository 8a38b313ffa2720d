"""A page on this machine: drop images, see components and attention, click a patch and see what is like it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from ..config.checks import multiple_of_patch
from ..features import FeatureExtractor
from ..files import first_line
from .board import MOST_BYTES, MOST_IMAGES, Board, Similarity, data_uri, too_large
from .page_guard import UPLOAD_PATH, Guard
from .page_parts import CLICKED, DROPPED, FAILED, MOVED, REJECTED, Card, Legend, Tile, image_of, text
from .page_style import FAVICON, STYLE
from .pictures import PATCHES_A_SIDE

if TYPE_CHECKING:
    from starlette.datastructures import FormData, UploadFile

logger = logging.getLogger(__name__)

RECONNECT_SECONDS = 3.0
"""How long a closed tab may come back before its images are freed. A tab is taken for closed too where it answers
nothing for about twice as long."""
_MOST_AT_ONCE = MOST_IMAGES * MOST_BYTES
"""Bytes of the files of an upload."""
_FORM_BYTES = 1 << 20
"""What a form adds to its files."""
_FAILED = f"The files did not arrive: {_MOST_AT_ONCE >> 20} MB at once are the most; drop fewer, or reload the page"

_TALLEST = 380
"""Pixels of an image on the screen."""
_DARK = {None: ("brightness_auto", "as the system"), False: ("light_mode", "light"), True: ("dark_mode", "dark")}
_INTRODUCTION = {
    "Similarity": "Click a patch of any image: all patches of all images take the colour of the cosine of their "
    "features and those of the clicked one, and the nearest patch of each image is shown.",
    "Components": "The first three principal components of the patch features of all images as red, green and blue, "
    "without the background. Parts that are alike have one colour.",
    "Attention": "How much CLS looks at each patch in the last block, as the mean of the heads or head by head.",
}


def serve_page(
    backbone: FeatureExtractor,
    image_size: int | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    show: bool = False,
    allowed: Sequence[str] = (),
) -> None:
    """Serves the page until it is interrupted.

    Args:
        image_size: longer side in pixels, a multiple of the patch; default: 37 patches.
        host: the address to listen on; whoever reaches it can have images looked at.
        show: open it in a browser.
        allowed: names that the page may be asked for under, apart from those of `host`; see `Guard`.

    Raises:
        ImportError: without NiceGUI.
        ValueError: the address cannot be listened on, or the patch does not divide the size.
    """
    try:
        import nicegui
        from nicegui import ui
    except ImportError:
        raise ImportError('the page needs NiceGUI: pip install "dinov2_hf[page]"') from None
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse

    image_size = image_size or PATCHES_A_SIDE * backbone.stride
    multiple_of_patch("image_size", image_size, backbone.stride)
    _refuse_taken(host, port)
    turn = asyncio.Lock()
    pages: WeakValueDictionary[str, _Page] = WeakValueDictionary()
    address = f"[{host}]" if ":" in host else host
    print(f"{backbone.name}: http://{address}:{port} (Ctrl+C ends it)", flush=True)

    @ui.page("/")
    async def build() -> None:
        client = ui.context.client
        page = pages[client.id] = _Page(Board(backbone, image_size), turn)
        client.on_delete(page.close)
        await page.build(f"{UPLOAD_PATH[1:]}{client.id}")

    # one route for all visitors: FastAPI keeps what it once called, so that a route of a visitor's own is never freed
    async def upload(request: Request) -> PlainTextResponse:
        page = pages.get(request.path_params["client"])
        if page is None:
            return PlainTextResponse("This tab is closed; open the page again.\n", 404)
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return PlainTextResponse("Send images as multipart/form-data.\n", 415)
        nicegui.background_tasks.create(page.receive(await request.form()), name="upload")
        return PlainTextResponse("")

    async def not_found(request: Request, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("There is nothing here; the page is at /.\n", 404)

    nicegui.app.add_route(f"{UPLOAD_PATH}{{client}}", upload, methods=["POST"])
    nicegui.app.add_exception_handler(404, not_found)
    nicegui.app.add_middleware(Guard, host=host, allowed=allowed, most_bytes=_MOST_AT_ONCE + _FORM_BYTES)
    ui.run(
        host=host,
        port=port,
        title=f"{backbone.name} · dinov2_hf",
        favicon=FAVICON,
        dark=None,
        reload=False,
        show=show,
        show_welcome_message=False,
        reconnect_timeout=RECONNECT_SECONDS,
        tailwind=False,
    )


def _refuse_taken(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ValueError(f"port={port} is not a port; choose one from 1 to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be listened on: {error}; choose another with --port") from None


class _Page:
    """What one visitor sees. Handlers run in the page's event loop, images are decoded and computed in a thread.

    Args:
        turn: shared by all visitors: one image at a time is decoded and passes through the backbone.
    """

    def __init__(self, board: Board, turn: asyncio.Lock) -> None:
        self.board, self.turn = board, turn
        self.changing = asyncio.Lock()
        """Held while images come or go."""
        self.closed = False
        self.head: int | None = None
        self.keep_background = False
        self.chosen: tuple[int, int, int] | None = None
        """Image, row and column of the patch that is compared."""
        self.shown: list[Card] = []

    def close(self) -> None:
        """Frees the images of a tab that is closed."""
        self.closed = True
        self.board.entries.clear()

    async def build(self, upload_url: str) -> None:
        from nicegui import ui

        ui.add_css(STYLE)
        ui.colors(primary="#5b66d6")
        with ui.element("main").classes("board"):
            self._build_top()
            self._build_drop(upload_url)
            self.alarms = ui.element("div").classes("alarms").props('role="alert"')
            self.intro = ui.element("section").classes("intro")
            with self.intro:
                for name, sentence in _INTRODUCTION.items():
                    with ui.element("div").classes("panel"):
                        text("h2", name)
                        text("p", sentence).classes("hint")
            self.tools = ui.element("section").classes("panel tools")
            self.picked = ui.element("section").classes("panel")
            self.cards = ui.element("div").style("display: contents")
        await self._rebuild()

    def _build_top(self) -> None:
        from nicegui import ui

        backbone, dark = self.board.backbone, ui.dark_mode(None)

        def turn() -> None:
            dark.value = {None: False, False: True, True: None}[dark.value]
            icon, name = _DARK[dark.value]
            button.props(f'icon={icon} aria-label="Colours: {name}"')
            tip.text = f"Colours: {name}"

        with ui.element("header").classes("top"):
            text("h1", "What the patches see")
            with ui.element("div").classes("model"):
                text("b", backbone.name).props('data-testid="model"')
                text("span", f"patch {backbone.stride}")
                text("span", f"width {backbone.width}")
                text("span", f"{backbone.num_layers} blocks")
                text("span", f"images to {self.board.image_size} px")
            button = ui.button(icon=_DARK[None][0], on_click=turn, color=None).props("flat round dense").classes("push")
            button.props('aria-label="Colours: as the system"')
            with button:
                tip = ui.tooltip("Colours: as the system")

    def _build_drop(self, upload_url: str) -> None:
        from nicegui import ui

        uploader = ui.element("q-uploader").classes("uploader").props("multiple auto-upload batch")
        uploader.props["url"] = upload_url
        uploader.props["max-file-size"], uploader.props["max-total-size"] = MOST_BYTES, _MOST_AT_ONCE
        uploader.on("rejected", lambda event: self._reject(event.args), js_handler=REJECTED)
        uploader.on("failed", lambda: self._alarm(_FAILED), js_handler=FAILED)
        self.uploader = uploader
        with ui.element("button").classes("drop").props('type="button"') as self.drop:
            self.invitation = text("span", "Drop images here, or click to choose").classes("big")
            text(
                "span",
                f"JPEG, PNG, WebP, TIFF, …, up to {MOST_IMAGES} images of {MOST_BYTES >> 20} MB. They stay on "
                "this machine, in memory.",
            ).classes("hint")
        self.drop.on("click", lambda: uploader.run_method("pickFiles"))
        ui.add_body_html(f"<script>{{{DROPPED.replace('UPLOADER', str(uploader.id))}}}</script>")

    async def receive(self, form: FormData) -> None:
        """Takes the files of an upload, one after the other."""
        from starlette.datastructures import UploadFile

        try:
            async with self.changing:
                if self.closed:
                    return
                self.alarms.clear()
                files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
                for number, file in enumerate(files, 1):
                    self.invitation.text = f"Looking at image {number} of {len(files)} …"
                    await self._take(file, PurePath(file.filename or "image").name)
                    if self.closed:
                        return
                self.uploader.run_method("reset")
                await self._rebuild()
        finally:
            await form.close()

    async def _take(self, file: UploadFile, name: str) -> None:
        from nicegui import run

        if (file.size or 0) > MOST_BYTES:
            return self._alarm(too_large(name, file.size or 0))
        try:
            async with self.turn:
                if self.closed:
                    return
                entry = await run.io_bound(self.board.look, await file.read(), name)
        except Exception as error:
            if not isinstance(error, ValueError):  # of the machine or the model, not of the image
                logger.exception("%s cannot be shown", name)
            if not self.closed:
                self._alarm(str(error) if isinstance(error, ValueError) else f"{name}: {first_line(error)}")
            return
        if entry is not None and not self.closed:  # None where the page is ending
            self.board.entries.append(entry)

    def _reject(self, files: list[tuple[str, int, str]]) -> None:
        for name, size, reason in files:
            if reason == "max-total-size":
                most = f"{_MOST_AT_ONCE >> 20} MB at once are the most"
                self._alarm(f"{name} ({size / 2**20:.0f} MB) was left out: {most}; drop fewer")
            else:
                self._alarm(too_large(name, size))

    def _alarm(self, message: str) -> None:
        from nicegui import ui

        with self.alarms, ui.element("div").classes("alarm") as line:
            text("span", message)
            button = ui.button(icon="close", on_click=line.delete, color=None)
            button.props('flat round dense size=sm aria-label="Close"')

    async def _rebuild(self) -> None:
        """Draws everything again: components are of all images, so that a new one changes them all."""
        from nicegui import run

        board = self.board
        some = bool(board.entries)
        self.invitation.text = "Drop more images here" if some else "Drop images here, or click to choose"
        self.drop.classes(add="small" if some else "", remove="" if some else "small")
        self.intro.set_visibility(not some)
        for element in (self.tools, self.picked, self.cards):
            element.clear()
            element.set_visibility(some)
        if not some:
            return
        if self.chosen is None:
            rows, columns = board.entries[0].grid
            self.chosen = (0, rows // 2, columns // 2)
        colors = await run.io_bound(board.colors, self.keep_background)
        if colors is None or self.closed:  # None where the page is ending
            return
        with self.tools:
            self._build_tools()
        self.shown = []
        with self.cards:
            for index in range(len(board.entries)):
                self.shown.append(self._build_card(index, colors[index]))
        await self._show_similarity()

    def _build_tools(self) -> None:
        from nicegui import ui

        async def keep(event) -> None:
            self.keep_background = not event.value
            async with self.changing:
                await self._rebuild()

        def look(event) -> None:
            self.head = None if event.value < 0 else event.value
            for index, card in enumerate(self.shown):
                self._show_attention(index, card)

        async def clear() -> None:
            async with self.changing:
                self.board.entries.clear()
                self.chosen = self.head = None
                await self._rebuild()

        ui.switch("Components without background", value=not self.keep_background, on_change=keep)
        first = self.board.entries[0].attention
        if first is not None:
            names = {-1: "mean of all heads"} | {head: f"head {head + 1}" for head in range(len(first))}
            value = -1 if self.head is None else self.head
            ui.select(names, label="Attention", value=value, on_change=look).props("dense options-dense")
        self.legend = Legend()
        ui.button("Remove all", icon="delete_outline", on_click=clear, color=None).props("flat no-caps").classes("push")

    def _build_card(self, index: int, colors: np.ndarray) -> Card:
        from nicegui import ui

        entry = self.board.entries[index]

        async def remove() -> None:
            async with self.changing:
                self.board.remove(index)
                assert self.chosen is not None
                image, row, column = self.chosen
                self.chosen = None if image == index else (image - (image > index), row, column)
                await self._rebuild()

        with ui.element("article").classes("panel card"):
            with ui.element("div").classes("head"):
                text("h2", entry.picture.name)
                rows, columns = entry.grid
                text("span", f"{rows} × {columns} patches").classes("hint")
                button = ui.button(icon="close", on_click=remove, color=None).props("flat round dense size=sm")
                button.props["aria-label"] = f"Remove {entry.picture.name}"
            with ui.element("div").classes("tiles"):
                image = self._tile(index, "Photograph", entry.photo)
                similarity = self._tile(index, "Similarity", entry.photo, np.zeros((1, 1, 4), np.uint8))
                self._tile(index, "Components", None, colors)
                attention = None
                if entry.attention is not None:
                    attention = self._tile(index, "Attention of CLS", entry.photo, np.zeros((1, 1, 4), np.uint8))
                else:
                    with ui.element("div").classes("tile"):
                        text("div", "Attention of CLS").classes("name")
                        text("div", "This model has no CLS token, or keeps its attention to itself.").classes("none")
        card = Card(image, similarity, attention)
        self._show_attention(index, card)
        return card

    def _tile(self, index: int, name: str, photo: str | None, patches: np.ndarray | None = None) -> Tile:
        """A picture that can be clicked: a photograph, patches, or patches over a photograph in grey."""
        from nicegui import ui

        entry = self.board.entries[index]
        height, width = entry.picture.pixels.shape[1:]

        async def click(event) -> None:
            x, y = event.args
            await self._choose(index, int(y * entry.grid[0]), int(x * entry.grid[1]))

        async def move(event) -> None:
            if self.chosen is not None and self.chosen[0] == index:
                await self._choose(index, self.chosen[1] + event.args[0], self.chosen[2] + event.args[1])

        with ui.element("figure").classes("tile").style("margin: 0"):
            title = text("figcaption", name).classes("name")
            stage = ui.element("div").classes("stage")
            stage.style(f"aspect-ratio: {width} / {height}; width: min(100%, {_TALLEST * width / height:.0f}px)")
            stage.on("click", click, js_handler=CLICKED)
            if patches is None:
                stage.props('tabindex="0"').on("keydown", move, js_handler=MOVED)
            stage.props["role"] = "img"
            stage.props["aria-label"] = f"{name} of {entry.picture.name}. A click chooses a patch, arrow keys move it."
            with stage:
                layer = None
                if photo:
                    image_of(photo).classes("under" if patches is not None else "")
                if patches is not None:
                    layer = image_of(data_uri(patches)).classes("patches")
                mark = ui.element("div").classes("mark")
                mark.set_visibility(False)
        return Tile(name, title, layer, mark)

    async def _choose(self, image: int, row: int, column: int) -> None:
        rows, columns = self.board.entries[image].grid
        self.chosen = (image, min(max(row, 0), rows - 1), min(max(column, 0), columns - 1))
        await self._show_similarity()

    async def _show_similarity(self) -> None:
        from nicegui import run

        chosen, board = self.chosen, self.board
        assert chosen is not None
        similarity = await run.io_bound(board.similarity, *chosen)
        if similarity is None or self.closed:  # None where the page is ending
            return
        if chosen != self.chosen or len(similarity.maps) != len(self.shown):  # another was clicked meanwhile
            return
        self.legend.show(similarity.low, similarity.high)
        best = {match.image: match for match in similarity.matches}
        for index, card in enumerate(self.shown):
            card.similarity.layer.props["src"] = data_uri(similarity.heat(index))
            if index == chosen[0]:
                card.similarity.title.text = f"Similarity to row {chosen[1] + 1}, column {chosen[2] + 1}"
                place = chosen[1:]
            else:
                match = best[index]
                card.similarity.title.text = f"Similarity, best patch {match.cosine:.2f}"
                place = (match.row, match.column)
            for tile in (card.image, card.similarity):
                tile.point(place, board.entries[index].grid, ring=index != chosen[0])
        self.picked.clear()
        with self.picked:
            self._build_matches(similarity)

    def _build_matches(self, similarity: Similarity) -> None:
        from nicegui import ui

        assert self.chosen is not None
        board, (image, row, column) = self.board, self.chosen
        with ui.element("div").classes("chosen"):
            with ui.element("div").classes("match self"):
                image_of(data_uri(board.around(image, row, column)))
                text("b", "chosen")
                text("span", f"row {row + 1} · col {column + 1}")
            with ui.element("div").style("flex: 1 1 320px; min-width: 0"):
                text("h2", "Nearest patch of each other image").style("margin-bottom: 8px")
                if not similarity.matches:
                    text(
                        "div", "Drop a second image, and its patch that is most like the chosen one stands here."
                    ).classes("hint")
                with ui.element("div").classes("matches"):
                    for match in similarity.matches:
                        with ui.element("div").classes("match"):
                            image_of(data_uri(board.around(match.image, match.row, match.column)))
                            text("b", f"{match.cosine:.2f}")
                            text("span", board.entries[match.image].picture.name)

    def _show_attention(self, index: int, card: Card) -> None:
        colors = self.board.attention(index, self.head)
        if card.attention is not None and colors is not None:
            card.attention.layer.props["src"] = data_uri(colors)
            name = "mean of heads" if self.head is None else f"head {self.head + 1}"
            card.attention.title.text = f"Attention of CLS, {name}"
