"""The page, in a real browser: Chromium without a window, driven by selenium, against the served command."""

import base64
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

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
from dinov2_hf.visualize.page import serve_page
from dinov2_hf.visualize.sheet import heat_colors
from dinov2_hf.visualize.similarity import similarity_range

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


@pytest.fixture(scope="module")
def address(model_folder, tmp_path_factory):
    """The page of the command, served by a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "dinov2_hf.cli", "visualize", "page", "--model", str(model_folder)]
    command += ["--image-size", str(IMAGE_SIZE), "--port", str(port), "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NICEGUI"))}
    log = tmp_path_factory.mktemp("page") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 90
        while time.monotonic() < until and process.poll() is None:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            pytest.fail(f"the page is not served: {log.read_text()}")
        yield f"http://127.0.0.1:{port}"
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.terminate()
        process.wait(20)


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

    def wait(self, condition, seconds=30):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        patient = WebDriverWait(self.browser, seconds, 0.05, [StaleElementReferenceException])
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
