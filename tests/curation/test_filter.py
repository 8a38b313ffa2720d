"""Which images pass, and what hooks may do."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.config import SourceConfig
from dinov2_hf.config.curation import CurationConfig, FilterConfig
from dinov2_hf.curation.collections import open_collections
from dinov2_hf.curation.filter import Dropped, FilterStage, examine
from dinov2_hf.curation.hooks import apply_hooks, load_hook
from dinov2_hf.curation.stage import Context

from .made import disc


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "broken"),
        (b"no image", "broken"),
        (encoded(disc(0))[:2000], "broken"),
        (encoded(disc(0).resize((31, 80))), "small"),
        (encoded(disc(0).resize((200, 40))), "elongated"),
        (encoded(Image.new("RGB", (96, 96), "teal")), "blank"),
    ],
)
def test_what_does_not_pass_has_a_reason(data, reason):
    with pytest.raises(Dropped, match=f"^{reason}$"):
        examine(data, FilterConfig())


def test_what_passes_has_its_size_and_hashes():
    image = disc(0).resize((160, 120))
    found = examine(encoded(image), FilterConfig())
    assert (found["width"], found["height"], found["replacement"]) == (160, 120, None)
    assert found["perceptual_hash"] != examine(encoded(disc(1)), FilterConfig())["perceptual_hash"]
    assert found["bytes_hash"] != examine(encoded(image, "BMP"), FilterConfig())["bytes_hash"]


def test_limits_are_inclusive():
    config = FilterConfig(min_side=40, max_aspect=2.0)
    assert examine(encoded(disc(0).resize((80, 40))), config)["width"] == 80
    with pytest.raises(Dropped, match="elongated"):
        examine(encoded(disc(0).resize((81, 40))), config)


def test_a_hook_drops_by_false_and_replaces_by_an_image():
    config = FilterConfig(hooks=["mine:drop"])
    with pytest.raises(Dropped, match="^hook mine:drop$"):
        examine(encoded(disc(0)), config, [lambda image: False])
    kept = examine(encoded(disc(0)), config, [lambda image: True])
    assert kept["replacement"] is None
    turned = examine(encoded(disc(0)), config, [lambda image: image.resize((50, 60))])
    replacement = Image.open(io.BytesIO(turned["replacement"]))
    assert replacement.size == (50, 60) == (turned["width"], turned["height"])
    assert replacement.format == "PNG"  # lossless, as it came


def test_hooks_see_the_whole_upright_image_and_what_those_before_made_of_it():
    sizes = []
    data = encoded(disc(0).resize((900, 600)), "JPEG")

    def halve(image):
        sizes.append(image.size)
        return image.resize((image.width // 2, image.height // 2))

    examine(data, FilterConfig(hooks=["a:a", "a:a"]), [halve, halve])
    assert sizes == [(900, 600), (450, 300)]


def test_a_hook_that_answers_anything_else_is_refused():
    with pytest.raises(ValueError, match="mine:odd returned None; return True, False or an image"):
        apply_hooks(["mine:odd"], [lambda image: None], disc(0))


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such_function", "math:pi"])
def test_a_hook_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=f"filter.hooks has '{name}'"):
        load_hook(name)


def test_deep_arrays_pass():
    values = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    file = io.BytesIO()
    np.save(file, values)
    assert examine(file.getvalue(), FilterConfig())["width"] == 64


def test_broken_images_of_the_pool_are_listed_beside_the_curated_ones(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(5):
        data = encoded(disc(number))
        (pool / f"{number}.png").write_bytes(data[:2000] if number in (1, 3) else data)
    config = CurationConfig(
        pool={"web": SourceConfig(path=str(pool))}, output_dir=str(tmp_path / "out"), rows_per_shard=2
    )
    stage = FilterStage(Context(config, open_collections(config)))
    for unit in range(stage.steps()["filter"]):
        stage.do("filter", unit)
    assert stage.summary() == {"images": 5, "kept": 3, "dropped": {"broken": 2}}
    lines = [line.split("\t") for line in (tmp_path / "out" / "broken.txt").read_text().splitlines()]
    assert [(kind, name) for kind, name, _ in lines] == [("image", str(pool / f"{number}.png")) for number in (1, 3)]
    assert all("truncated" in reason for _, _, reason in lines)


def test_broken_shards_of_a_streamed_pool_are_listed_and_what_can_be_read_of_them_is_kept(tmp_path):
    for shard in range(3):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for number in range(2):
                data = encoded(disc(2 * shard + number))
                entry = tarfile.TarInfo(f"{shard}-{number}.png")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: whole.index(b"1-1.png") + 700])
    config = CurationConfig(
        pool={"web": SourceConfig(path=str(tmp_path / "*.tar"), streaming=True)}, output_dir=str(tmp_path / "out")
    )
    stage = FilterStage(Context(config, open_collections(config)))
    for unit in range(stage.steps()["filter"]):
        stage.do("filter", unit)
    assert stage.summary() == {"images": 5, "kept": 5, "dropped": {}, "broken_shards": 1}
    (line,) = (tmp_path / "out" / "broken.txt").read_text().splitlines()
    assert line.startswith(f"shard\t{tmp_path / '1.tar'}\tbroken off: unexpected end of data")
