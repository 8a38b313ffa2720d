"""The command line, as a person meets it."""

import io
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from dinov2_hf.cli import main
from dinov2_hf.config import load_config

RED, BLUE = (255, 51, 0), (0, 51, 255)
TINY = ["crops.global_size=56", "crops.local_size=28", "crops.num_local=3"]


def encode(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Ten red images of 80 x 60 pixels, ten blue ones of 100 x 60, and a text that says it is a JPEG."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(20):
        width, color = ((80, RED), (100, BLUE))[index % 2]
        pixels = np.broadcast_to(np.array(color, dtype=np.uint8), (60, width, 3)).copy()
        (folder / f"{index:02}.png").write_bytes(encode(pixels))
    (folder / "broken.jpg").write_text("not an image")
    return folder


def fails(capsys, *arguments):
    """What a command that ends with status 2 says."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def config_lines(report):
    return yaml.safe_load(report.split("Config lines:")[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_stats_measure_what_the_images_hold(folder, capsys, workers):
    main(["data", "stats", f"data.train.path={folder}", "--workers", str(workers), *TINY])
    report = capsys.readouterr().out
    assert "20 images read, all there are" in report
    assert "broken       1 (4.8%)" in report and "broken.jpg" in report
    assert "width        smallest 80, median 90, largest 100" in report
    assert "height       smallest 60, median 60, largest 60" in report
    colors = config_lines(report)["colors"]
    assert colors["mean"] == [0.5, 0.2, 0.5]
    assert colors["std"] == [0.5, 0, 0.5]


@pytest.mark.parametrize("action", [["stats", "--workers", "0"], ["show", "--images", "2"]], ids=["stats", "show"])
def test_what_was_found_is_said_once(action, folder, tmp_path, caplog):
    (folder / "notes.txt").write_text("")
    options = ["--output", str(tmp_path / "batch.png")] if action[0] == "show" else []
    with caplog.at_level(logging.INFO, "dinov2_hf"):
        main(["data", *action, f"data.train.path={folder}", *options, *TINY])
    assert caplog.messages.count(f"data.train: {folder}: 21 images; ignored 1 .txt") == 1


def test_stats_of_a_part_say_so(folder, capsys):
    main(["data", "stats", "--images", "7", f"data.train.path={folder}", "--workers", "0", *TINY])
    assert "drawn at random" in capsys.readouterr().out


def test_lines_that_stats_print_are_a_config(tmp_path, capsys):
    """Of five channels, too, for which no mean is known before."""
    rng = np.random.default_rng(0)
    rows = ["image"]
    for index in range(8):
        np.save(tmp_path / f"{index}.npy", rng.random((60, 70, 5)).astype(np.float32) * [1, 0.5, 0.5, 0.5, 0.2])
        rows.append(f"{index}.npy")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    source = [f"data.train.path={tmp_path / 'table.csv'}", "data.train.image_column=image"]
    main(["data", "stats", *source, "model.num_channels=5", "--workers", "0", *TINY])
    lines = config_lines(capsys.readouterr().out)
    assert lines["colors"]["mean"] == pytest.approx([0.5, 0.25, 0.25, 0.25, 0.1], abs=0.01)
    assert lines["colors"]["std"] == pytest.approx(np.array([1, 0.5, 0.5, 0.5, 0.2]) / 12**0.5, abs=0.01)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(lines))
    config = load_config(tmp_path / "run.yaml", source)
    assert config.model.num_channels == 5 and config.colors.mean == lines["colors"]["mean"]


@pytest.mark.parametrize("workers", [0, 2])
def test_stats_of_a_stream_with_a_broken_shard_count_every_image_once_and_name_the_shard(tmp_path, capsys, workers):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 60, 80, 3), dtype=np.uint8)
    for shard in range(2):
        images = pa.table({"image": [encode(image) for image in pixels[shard::2]]})
        pq.write_table(images, tmp_path / f"{shard}.parquet", row_group_size=5, use_dictionary=False)
    chunk = pq.read_metadata(tmp_path / "1.parquet").row_group(0).column(0)
    with open(tmp_path / "1.parquet", "r+b") as file:
        file.seek(chunk.data_page_offset)
        file.write(b"\xff" * chunk.total_compressed_size)
    stream = [f"data.train.path={tmp_path}", "data.train.streaming=true", "data.shuffle_buffer=4"]
    main(["data", "stats", *stream, "--workers", str(workers), *TINY])
    report = capsys.readouterr().out
    assert "15 images read, all there are" in report and "broken       0 (0.0%)" in report
    assert "broken files 1 of 2" in report and report.count("1.parquet: row group 0 cannot be read") == 1


def test_stats_of_nothing_but_broken_files_give_the_reason(tmp_path, capsys):
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_text("not an image")
    message = fails(capsys, "data", "stats", f"data.train.path={tmp_path}", "--workers", "0")
    assert "none of 3 images can be decoded" in message and "not an image" in message


@pytest.mark.parametrize("num_local", [0, 3])
def test_sheet_shows_the_crops_and_tints_masked_patches_alone(folder, tmp_path, capsys, num_local):
    output = tmp_path / "pictures" / "batch.png"
    still = [f"colors.{name}_probability=0" for name in ("jitter", "grayscale", "solarize")]
    options = [*TINY[:2], f"crops.num_local={num_local}", "colors.blur_probability=[0,0,0]", *still]
    main(["data", "show", f"data.train.path={folder}", "--images", "4", "--output", str(output), *options])
    sheet = np.asarray(Image.open(output).convert("RGB")).astype(int)
    tinted = 0
    for row in range(4):
        top = 22 + row * 62
        for left in (6, 68):
            crop = sheet[top : top + 56, left : left + 56]
            plain = min(RED, BLUE, key=lambda color: np.abs(crop - color).max(axis=2).min())
            for patch in crop.reshape(4, 14, 4, 14, 3).swapaxes(1, 2).reshape(16, -1, 3):
                shown = np.unique(patch, axis=0)
                assert len(shown) == 1
                tinted += int(np.abs(shown[0] - plain).max() > 1)
        for view in range(num_local):
            local = sheet[top : top + 28, 130 + 34 * view : 130 + 34 * view + 28]
            assert np.abs(local - plain).max() <= 1
    # half of the eight crops, between 0.1 and 0.5 of 16 patches each
    assert 4 <= tinted <= 32
    assert sheet.shape[1] == 130 + num_local * 34
    assert "batch.png" in capsys.readouterr().out


def test_sheet_of_one_channel_is_grey(tmp_path, capsys):
    ramp = np.linspace(0, 65535, 60 * 70).reshape(60, 70).astype(np.uint16)
    (tmp_path / "images").mkdir()
    Image.fromarray(ramp).save(tmp_path / "images" / "ramp.png")
    output = tmp_path / "batch.png"
    options = ["model.num_channels=1", "ibot.loss_weight=0", "colors.jitter_probability=0"]
    source = f"data.train.path={tmp_path / 'images'}"
    main(["data", "show", source, "--images", "1", "--output", str(output), *options, *TINY])
    crop = np.asarray(Image.open(output))[22:78, 6:62].astype(int)
    assert (crop == crop[:, :, :1]).all() and crop.std() > 10


def test_what_a_user_can_mend_is_said_in_one_line(folder, tmp_path, capsys):
    assert "/nowhere does not exist" in fails(capsys, "data", "show", "data.train.path=/nowhere")
    assert "data.train.path is not set" in fails(capsys, "data", "stats")
    assert "did you mean" in fails(capsys, "data", "stats", "data.train.pat=/x")
    assert "unrecognized arguments: --imagse" in fails(capsys, "data", "stats", "--imagse", "data.train.path=/x")
    assert "0 is not positive" in fails(capsys, "data", "show", "--images", "0")
    target = tmp_path / "file"
    target.write_text("")
    message = fails(capsys, "data", "show", f"data.train.path={folder}", "--output", str(target / "a.png"), *TINY)
    assert "file" in message
