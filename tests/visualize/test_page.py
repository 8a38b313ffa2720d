"""The page, in a real browser: Chromium without a window, driven by selenium, against the served command."""

import asyncio
import base64
import http.client
import io
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pytest
from PIL import Image

from dinov2_hf.cli import main
from dinov2_hf.features import open_backbone
from dinov2_hf.visualize import (
    attention_maps,
    best_patch,
    find_foreground,
    open_picture,
    patch_features,
    pca_colors,
    similarity_maps,
)
from dinov2_hf.visualize.attention import attention_range
from dinov2_hf.visualize.board import MOST_IMAGES, Board
from dinov2_hf.visualize.page import serve_page
from dinov2_hf.visualize.sheet import heat_colors
from dinov2_hf.visualize.similarity import similarity_range

from ..patience import HANGS

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
IMAGE_SIZE = 96
# where a change is tested for others, a missing browser is an error and not a reason to say nothing
needs_a_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and not os.environ.get("CI"),
    reason="no chromium and chromedriver here; on Debian: apt install chromium chromium-driver",
)


def in_a_browser(test):
    return pytest.mark.slow(needs_a_browser(test))


def free_port():
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


@contextmanager
def served(model_folder, log, image_size):
    """The page of the command, served by a process of its own: its address and its process."""
    port = free_port()
    command = [sys.executable, "-m", "dinov2_hf.cli", "visualize", "page", "--model", str(model_folder)]
    command += ["--image-size", str(image_size), "--port", str(port), "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NICEGUI"))}
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + HANGS
        while time.monotonic() < until and process.poll() is None:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            pytest.fail(f"the page is not served: {log.read_text()}")
        yield f"http://127.0.0.1:{port}", process
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.terminate()
        process.wait(HANGS)


@pytest.fixture(scope="module")
def page(model_folder, tmp_path_factory):
    """The address of a page, and its process."""
    with served(model_folder, tmp_path_factory.mktemp("page") / "log", IMAGE_SIZE) as found:
        yield found


@pytest.fixture(scope="module")
def address(page):
    return page[0]


def resident(process):
    """The memory of a process, in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[1]) / 1024


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or "chromium"
    flags = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-component-update"]
    flags += ["disable-background-networking", "disable-sync", "disable-dev-shm-usage", "window-size=1280,1400"]
    for flag in [*flags, f"user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER or "chromedriver"))
    yield driver
    driver.quit()


class Visit:
    """What a person does on the page."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.set_window_size(1280, 1400)
        browser.get(address)
        self.wait(lambda: self.all("input[type=file]"))

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def wait(self, condition):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        patient = WebDriverWait(self.browser, HANGS, 0.05, [StaleElementReferenceException])
        return patient.until(lambda _: condition())

    def upload(self, *paths, cards=None):
        """Gives files to the page and waits for so many cards."""
        self.all("input[type=file]")[0].send_keys("\n".join(map(str, paths)))
        if cards is not None:
            self.wait(lambda: len(self.all(".card")) == cards and "looking" not in self.text(".drop").lower())

    def text(self, selector):
        return " | ".join(element.text for element in self.all(selector))

    def tile(self, card, tile):
        # raises what `wait` ignores while the page replaces its cards
        selector = f".card:nth-of-type({card + 1}) .tile:nth-of-type({tile + 1}) .stage"
        return self.browser.find_element("css selector", selector)

    def patches(self, card, tile):
        """What lies over the image in a tile: RGBA `[h, w, 4]`."""
        source = self.tile(card, tile).find_element("css selector", ".patches").get_attribute("src")
        return decode(source)

    def click(self, card, tile, row, column, grid):
        """Clicks into the middle of a patch."""
        from selenium.webdriver import ActionChains

        stage = self.tile(card, tile)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
        x = ((column + 0.5) / grid[1] - 0.5) * stage.size["width"]
        y = ((row + 0.5) / grid[0] - 0.5) * stage.size["height"]
        ActionChains(self.browser).move_to_element_with_offset(stage, round(x), round(y)).click().perform()

    def chosen(self, row, column):
        self.wait(lambda: f"row {row + 1} · col {column + 1}" in self.text(".match.self"))


def decode(source):
    kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", source).groups()
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.format.lower() == kind
        return np.asarray(image)


@pytest.fixture
def visit(browser, address):
    return Visit(browser, address)


@pytest.fixture(scope="module")
def expected(model_folder, photographs):
    """What three photographs have to look like, by the functions of the library."""
    backbone = open_backbone(str(model_folder))
    pictures = [open_picture(path.read_bytes(), path.name, IMAGE_SIZE, 8) for path in photographs[:3]]
    return backbone, pictures, [patch_features(backbone, picture) for picture in pictures]


def heats(features, image, row, column):
    maps = similarity_maps(features, image, row, column)
    return [heat_colors(values.numpy(), *similarity_range(maps)) for values in maps], maps


def close(first, second):
    return first.shape == second.shape and np.abs(first.astype(int) - second.astype(int)).max() <= 1


@in_a_browser
def test_empty_page_names_the_model_and_fetches_nothing_from_elsewhere(visit, address, model_folder):
    assert visit.text("[data-testid=model]") == model_folder.name
    assert "patch 8" in visit.text(".model") and "width 32" in visit.text(".model")
    assert "Drop images here" in visit.text(".drop")
    assert visit.text(".intro h2") == "Similarity | Components | Attention"
    assert not visit.all(".card")
    fetched = visit.browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(fetched) > 5
    assert [name for name in fetched if not name.startswith((address, "data:"))] == []
    assert [line for line in visit.browser.get_log("browser") if line["level"] == "SEVERE"] == []


@in_a_browser
def test_uploaded_photographs_are_shown_with_their_components_and_attention(visit, photographs, expected):
    backbone, pictures, features = expected
    visit.upload(*photographs[:3], cards=3)
    assert visit.text(".card h2") == " | ".join(picture.name for picture in pictures)
    rendered = (
        "return [...document.querySelectorAll('.stage img')].every((image) => image.complete && image.naturalWidth)"
    )
    visit.wait(lambda: visit.browser.execute_script(rendered))
    colors = pca_colors(features, find_foreground(features))
    for card, picture in enumerate(pictures):
        photo = decode(visit.tile(card, 0).find_element("css selector", "img").get_attribute("src"))
        assert np.abs(photo.astype(int) - picture.shown).mean() < 6  # JPEG
        box = visit.tile(card, 0).size
        assert box["width"] / box["height"] == pytest.approx(photo.shape[1] / photo.shape[0], rel=0.02)
        assert close(visit.patches(card, 2), (colors[card].numpy() * 255).round().astype(np.uint8))
        values = attention_maps(backbone, picture).mean(dim=0)
        assert close(visit.patches(card, 3), heat_colors(values.numpy(), *attention_range(values)))


@in_a_browser
def test_the_heat_map_is_that_of_the_clicked_patch(visit, photographs, expected):
    _, pictures, features = expected
    visit.upload(*photographs[:3], cards=3)
    shapes = [tuple(part.shape[:2]) for part in features]
    for image, tile, row, column in (
        (1, 0, 2, 1),
        (1, 0, 8, 7),
        (0, 1, 0, 0),
        (2, 2, 5, 3),
        (0, 3, *(side - 1 for side in shapes[0])),
    ):
        visit.click(image, tile, row, column, shapes[image])
        visit.chosen(row, column)
        wanted, maps = heats(features, image, row, column)
        visit.wait(lambda: close(visit.patches(image, 1), wanted[image]))  # noqa: B023 - asked at once
        others = []
        for card, values in enumerate(maps):
            assert close(visit.patches(card, 1), wanted[card])
            place = (row, column) if card == image else best_patch(values)[:2]
            style = visit.tile(card, 0).find_element("css selector", ".mark").get_attribute("style")
            left, top = (float(re.search(rf"{side}: ([\d.]+)%", style)[1]) for side in ("left", "top"))
            assert left == pytest.approx(100 * (place[1] + 0.5) / shapes[card][1], abs=0.01)
            assert top == pytest.approx(100 * (place[0] + 0.5) / shapes[card][0], abs=0.01)
            if card != image:
                others.append((best_patch(values)[2], pictures[card].name))
        assert not close(
            visit.patches(image, 1), heats(features, image, (row + 3) % shapes[image][0], column)[0][image]
        )
        matches = [element.text.split("\n") for element in visit.all(".matches .match")]
        assert matches == [[f"{cosine:.2f}", name] for cosine, name in sorted(others, reverse=True)]


@in_a_browser
def test_arrow_keys_move_the_patch(visit, photographs, expected):
    features = expected[2]
    visit.upload(*photographs[:2], cards=2)
    visit.click(1, 0, 0, 1, features[1].shape[:2])
    visit.chosen(0, 1)
    for key, place in (
        ("\ue014", (0, 2)),
        ("\ue015", (1, 2)),
        ("\ue013", (0, 2)),
        ("\ue013", (0, 2)),
        ("\ue012", (0, 1)),
    ):
        visit.tile(1, 0).send_keys(key)  # right, down, up, up against the border, left
        visit.chosen(*place)


@in_a_browser
def test_files_dropped_anywhere_on_the_page_are_taken(visit, photographs):
    data = base64.b64encode(photographs[0].read_bytes()).decode()
    visit.browser.execute_script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "dropped.jpg", {type: "image/jpeg"}));
        for (const type of ["dragenter", "dragover", "drop"])
            document.body.dispatchEvent(new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        """,
        data,
    )
    visit.wait(lambda: visit.text(".card h2") == "dropped.jpg")
    assert "dragging" not in visit.all("body")[0].get_attribute("class")


@in_a_browser
def test_a_file_that_is_no_image_is_named_and_the_others_are_shown(visit, photographs, tmp_path):
    broken, truncated = tmp_path / "holiday.jpg", tmp_path / "half.jpg"
    broken.write_text("not an image")
    truncated.write_bytes(photographs[1].read_bytes()[:1000])
    visit.upload(broken, photographs[0], truncated, cards=1)
    assert visit.text(".card h2") == photographs[0].name
    alarms = [element.text for element in visit.all(".alarm > span")]
    assert len(alarms) == 2 and alarms[0].startswith("holiday.jpg is not an image that can be read")
    assert alarms[1].startswith("half.jpg is not an image that can be read")
    visit.all(".alarm button")[0].click()
    visit.wait(lambda: len(visit.all(".alarm")) == 1)
    visit.upload(photographs[1], cards=2)
    assert not visit.all(".alarm")


@in_a_browser
def test_names_of_files_are_text_and_not_html(visit, photographs, tmp_path):
    path = tmp_path / "<b onclick=alert(1)>bold<b>.jpg"
    shutil.copy(photographs[0], path)
    visit.upload(path, cards=1)
    assert visit.text(".card h2") == path.name and not visit.all(".card h2 b")


@in_a_browser
def test_files_that_are_too_large_and_too_many_are_refused(visit, photographs, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(bytes(21 << 20))
    visit.upload(large)
    visit.wait(lambda: "large.png (21 MB) was left out: 20 MB a file are the most" in visit.text(".alarm"))
    copies = [shutil.copy(photographs[0], tmp_path / f"{index:02}.jpg") for index in range(13)]
    visit.upload(*copies, cards=12)
    assert "12.jpg was left out: 12 images are the most" in visit.text(".alarm")


@in_a_browser
def test_components_heads_and_images_can_be_chosen(visit, photographs, expected):
    backbone, pictures, features = expected
    visit.upload(*photographs[:3], cards=3)
    visit.all(".q-toggle")[0].click()
    whole = [(part.numpy() * 255).round().astype(np.uint8) for part in pca_colors(features)]
    visit.wait(lambda: len(visit.all(".card")) == 3 and close(visit.patches(1, 2), whole[1]))

    visit.all(".q-select")[0].click()
    visit.wait(lambda: len(visit.all(".q-menu .q-item")) == 3)  # the mean and two heads
    visit.all(".q-menu .q-item")[2].click()
    values = attention_maps(backbone, pictures[0])[1]
    visit.wait(lambda: close(visit.patches(0, 3), heat_colors(values.numpy(), *attention_range(values))))

    visit.all(".card:nth-of-type(1) .head button")[0].click()
    visit.wait(lambda: len(visit.all(".card")) == 2)
    assert visit.text(".card h2") == f"{pictures[1].name} | {pictures[2].name}"
    rest = [(part.numpy() * 255).round().astype(np.uint8) for part in pca_colors(features[1:])]
    visit.wait(lambda: close(visit.patches(0, 2), rest[0]))
    visit.wait(lambda: len(visit.all(".matches .match")) == 1)
    visit.all(".tools .push")[0].click()
    visit.wait(lambda: not visit.all(".card") and "Drop images here" in visit.text(".drop"))


@in_a_browser
@pytest.mark.parametrize(("width", "columns"), [(1280, 4), (800, 2)])
def test_the_page_fits_its_window_in_light_and_dark(visit, photographs, width, columns):
    visit.browser.set_window_size(width, 1000)
    visit.upload(*photographs[:2], cards=2)
    inner, content = visit.browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert content <= inner
    tops = [element.location["y"] for element in visit.all(".card:nth-of-type(1) .stage")]
    assert len(tops) == 4 and tops.count(tops[0]) == columns

    def luminance():
        color = visit.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 3

    switch = visit.all("header button")[0]
    switch.click()
    visit.wait(lambda: luminance() > 220 and "light" in switch.get_attribute("aria-label"))
    switch.click()
    visit.wait(lambda: luminance() < 40 and "dark" in switch.get_attribute("aria-label"))


@in_a_browser
def test_files_of_one_name_are_all_shown(visit, photographs, tmp_path):
    paths = []
    for number, photograph in enumerate(photographs[:2]):
        (tmp_path / str(number)).mkdir()
        paths.append(shutil.copy(photograph, tmp_path / str(number) / "same.jpg"))
    visit.upload(*paths, cards=2)
    assert visit.text(".card h2") == "same.jpg | same.jpg"


@in_a_browser
def test_an_image_of_too_many_pixels_is_named_and_not_decoded(visit, page, photographs, tmp_path):
    (tmp_path / "bomb.png").write_bytes(large_png(13_300))
    before = resident(page[1])
    visit.upload(tmp_path / "bomb.png", photographs[0], cards=1)
    assert "bomb.png (13,300 x 13,300 pixels) was left out: 50,000,000 pixels to decode" in visit.text(".alarm")
    assert resident(page[1]) < before + 100  # 530 MB of pixels


@in_a_browser
def test_a_visitor_does_not_wait_for_all_images_of_another(visit, address, photographs, tmp_path):
    (tmp_path / "0.png").write_bytes(large_png(6_000))
    for number in range(1, 12):
        shutil.copy(tmp_path / "0.png", tmp_path / f"{number}.png")
    first = visit.browser.current_window_handle
    visit.upload(*sorted(tmp_path.glob("*.png")))
    visit.wait(lambda: "Looking at image" in visit.text(".drop"))
    visit.browser.switch_to.new_window("tab")
    try:
        other = Visit(visit.browser, address)
        other.upload(photographs[0], cards=1)
        visit.browser.switch_to.window(first)
        assert not visit.all(".card") and "Looking at image" in visit.text(".drop")
        visit.wait(lambda: len(visit.all(".card")) == 12)
    finally:
        for handle in visit.browser.window_handles:
            if handle != first:
                visit.browser.switch_to.window(handle)
                visit.browser.close()
        visit.browser.switch_to.window(first)


@in_a_browser
def test_fifty_visitors_leave_no_memory_behind(browser, model_folder, photographs, tmp_path):
    with served(model_folder, tmp_path / "log", 256) as (address, process):  # 8.4 MB of attention an image
        first, found = browser.current_window_handle, {}
        for number in range(1, 51):
            browser.switch_to.new_window("tab")
            Visit(browser, address).upload(photographs[number % len(photographs)], cards=1)
            browser.close()
            browser.switch_to.window(first)
            found[number] = resident(process)
    assert found[50] - found[10] < 60, found


@pytest.mark.slow
def test_a_tab_that_vanishes_is_forgotten(address, photographs):
    """One that opens its socket and then neither closes it nor answers."""

    async def vanish():
        async with aiohttp.ClientSession() as session:
            async with session.get(address) as response:
                client = client_of(await response.text())
            words = f"EIO=4&transport=websocket&client_id={client}&implicit_handshake=true&tab_id=t&document_id=d"
            async with session.ws_connect(f"{address}/_nicegui_ws/socket.io/?{words}&old_tab_id=") as silent:
                await silent.receive()
                await silent.send_str("40")
                upload = f"{address}/upload/{client}"
                statuses = []
                while len(statuses) < 60 and 404 not in statuses:
                    form = aiohttp.FormData()
                    form.add_field("file", photographs[0].read_bytes(), filename="a.jpg")
                    async with session.post(upload, data=form) as response:
                        statuses.append(response.status)
                    await asyncio.sleep(1)
                return statuses

    statuses = asyncio.run(vanish())
    assert statuses[0] == 200 and statuses[-1] == 404, statuses


@pytest.mark.slow
@pytest.mark.parametrize("length", ["Content-Length: 629145600", "Transfer-Encoding: chunked"])
def test_a_body_that_is_too_long_is_refused_and_not_kept(page, length):
    address, process = page
    upload = f"/upload/{client_of(ask(address, '/')[1])}"
    place, before = urlsplit(address), resident(process)
    head = [f"POST {upload} HTTP/1.1", f"Host: {place.netloc}", "Content-Type: multipart/form-data; boundary=b", length]
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f.jpg"\r\n\r\n'
    sent = 0
    with socket.create_connection((place.hostname, place.port), timeout=HANGS) as client:
        client.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
        client.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        try:
            while sent < 600:  # MB
                client.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
                sent += 1
            answer = client.recv(1 << 16)
        except ConnectionError:  # the page reads no more, and the system may drop its answer
            answer = b""
    assert sent < (300 if "chunked" in length else 50) and answer.startswith((b"HTTP/1.1 413", b""))
    assert resident(process) < before + 50
    if length.startswith("Content"):
        assert ask(address, upload, "POST", **{"Content-Length": str(600 << 20)})[0] == 413
    assert ask(address, upload, "POST", **{"Content-Length": "0"})[0] == 415


def client_of(html):
    """The name by which the page knows a tab."""
    return re.search(r"'client_id': '([\w-]+)'", html)[1]


def ask(address, path, method="GET", **headers):
    """Status and text of a request without a body."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=HANGS)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/nothing", "/admin/x?y", "/_nicegui/nothing", "/_nicegui_ws/nothing", "/upload"])
def test_paths_that_are_not_there_are_not_found(address, path):
    assert ask(address, path)[0] in (404, 405)


@pytest.mark.slow
def test_other_names_and_other_pages_are_refused(address):
    socket_path = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    for path in ("/", socket_path, "/favicon.ico"):
        assert ask(address, path)[0] == 200
        assert ask(address, path, Host="evil.example")[0] == 403
        assert ask(address, path, Origin="https://evil.example")[0] == 403
        assert ask(address, path, Origin=address)[0] == 200
    assert "--allow" in ask(address, "/", Host="evil.example")[1]


def large_png(side):
    """A black PNG file of so many pixels a side, in a few kilobytes."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(side + 1)) for _ in range(side)) + rows.flush()  # a filter byte and grey pixels
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(backbone, monkeypatch):
    monkeypatch.setattr("dinov2_hf.data.pictures.Picture.decode", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=r"bomb.png \(9,000 x 9,000 pixels\) was left out: 50,000,000"):
        Board(backbone, 32).look(large_png(9_000), "bomb.png")


def test_a_board_keeps_no_more_images_than_it_says(backbone, photographs):
    board = Board(backbone, 32)
    for _ in range(MOST_IMAGES):
        board.entries.append(board.look(photographs[0].read_bytes(), "a.jpg"))
    with pytest.raises(ValueError, match="a.jpg was left out: 12 images are the most; remove others first"):
        board.look(photographs[0].read_bytes(), "a.jpg")


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1", "http"])
def test_a_port_that_does_not_exist_is_refused(port, model_folder, backbone, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["visualize", "page", str(model_folder), f"--port={port}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert f"{port} is not a port; give a number from 1 to 65535" in said
    pytest.importorskip("nicegui", reason="the page needs NiceGUI: pip install 'dinov2_hf[page]'")
    if port.isdecimal():
        with pytest.raises(ValueError, match=f"port={port} is not a port"):
            serve_page(backbone, 32, port=int(port))


def test_an_address_that_is_taken_is_told(backbone):
    pytest.importorskip("nicegui", reason="the page needs NiceGUI: pip install 'dinov2_hf[page]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"127.0.0.1:{port} cannot be listened on: .*; choose another with --port"):
            serve_page(backbone, 32, port=port)


def test_without_nicegui_the_extra_is_named(backbone, monkeypatch):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    with pytest.raises(ImportError, match=r'the page needs NiceGUI: pip install "dinov2_hf\[page\]"'):
        serve_page(backbone, 32)
