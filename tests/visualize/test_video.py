"""Attention over the frames of a video."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from dinov2_hf.backbones import StockBackbone
from dinov2_hf.cli import main
from dinov2_hf.cli.visualize import _MASS
from dinov2_hf.data import EvalTransform
from dinov2_hf.features import FeatureExtractor
from dinov2_hf.visualize import (
    animate_attention,
    attention_maps,
    attention_masks,
    color_heads,
    open_frames,
    open_picture,
)
from dinov2_hf.visualize.attention_masks import MASS


def pictures(count, size=(48, 32)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def folder(tmp_path):
    """Eleven frames whose names sort otherwise than their numbers."""
    (tmp_path / "frames").mkdir()
    for number, picture in enumerate(pictures(11)):
        picture.save(tmp_path / "frames" / f"{number}.png")
    (tmp_path / "frames" / "notes.txt").write_text("not a frame")
    return tmp_path / "frames"


def frames_of(path):
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(image)]


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(folder):
    assert [name for _, name in open_frames([str(folder)])] == [f"{number}.png" for number in range(11)]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_frames_of_an_animated_picture_are_taken_with_their_duration(tmp_path, suffix):
    drawn, path = pictures(3), tmp_path / f"clip{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=120, **options)
    frames = open_frames([str(path)])
    assert len(frames) == 3 and frames.seconds == pytest.approx(0.12)
    for (data, name), picture, number in zip(frames, drawn, range(3)):
        assert name == f"clip{suffix}, frame {number}"
        shown = open_picture(data, name, 48, 8).shown.astype(int)
        assert np.abs(shown - np.asarray(picture)).mean() < (20 if suffix == ".gif" else 1)  # of 256 colours


def test_frames_are_thinned_evenly_and_last_as_long(folder):
    frames = open_frames([str(folder)])
    few = frames.thinned(3)
    assert [name for _, name in few] == ["0.png", "5.png", "10.png"]
    assert len(few) * few.seconds == pytest.approx(len(frames) * frames.seconds)
    assert frames.thinned(None) is frames and frames.thinned(99) is frames


def test_encoded_videos_and_what_is_not_there_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"0")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    for name, kind, message in (
        ("clip.mp4", ValueError, "is an encoded video, which is not read; write its frames to a folder first: ffmpeg"),
        ("empty", ValueError, "has no frames"),
        ("nothing", FileNotFoundError, "does not exist"),
        ("broken.gif", ValueError, "is not a picture that can be read"),
    ):
        with pytest.raises(kind, match=message) as caught:
            open_frames([str(tmp_path / name)])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_every_frame_is_beside_what_the_heads_look_at_in_it(backbone, folder, tmp_path, suffix):
    path = tmp_path / f"video{suffix}"
    frames = open_frames([str(folder)]).thinned(4)
    assert animate_attention(backbone, frames, path, 48) == 4
    drawn = frames_of(path)
    with Image.open(path) as image:
        image.load()
        assert image.info["duration"] == pytest.approx(1000 * 0.04 * 11 / 4, abs=10) and image.info["loop"] == 0
    assert len(drawn) == 4 and drawn[0].shape == (32, 96, 3)
    for found, (data, name) in zip(drawn, frames):
        picture = open_picture(data, name, 48, 8)
        attention = attention_maps(backbone, picture)
        colored = color_heads(picture, attention, attention_masks(attention))
        expected = np.concatenate((picture.shown, colored), axis=1).astype(int)
        assert np.abs(found - expected).mean() < 30  # 256 colours, or a lossy code: others differ by 60


def test_frames_of_other_proportions_are_refused(backbone, folder, tmp_path):
    pictures(1, size=(32, 32))[0].save(folder / "5.png")
    with pytest.raises(ValueError, match=r"5.png has 48 x 48 pixels and the first frame 32 x 48; give frames of one"):
        animate_attention(backbone, open_frames([str(folder)]), tmp_path / "video.gif", 48)
    assert not (tmp_path / "video.gif").exists()


def test_other_heads_files_and_models_are_refused(backbone, folder, tmp_path):
    frames = open_frames([str(folder)]).thinned(1)
    with pytest.raises(ValueError, match="head 3 is not one of the 2 heads of tiny; use 1 to 2"):
        animate_attention(backbone, frames, tmp_path / "video.gif", 48, heads=[0, 2])
    with pytest.raises(ValueError, match="ends neither in .gif nor in .webp"):
        animate_attention(backbone, frames, tmp_path / "video.mp4", 48)
    with pytest.raises(ValueError, match="ResNetModel has no CLS token, so there is no attention"):
        animate_attention(resnet(), frames, tmp_path / "video.gif", 64)


def test_any_vision_transformer_of_transformers_is_drawn(folder, tmp_path):
    from transformers import DeiTConfig, DeiTModel

    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=8)
    network = StockBackbone(DeiTModel(DeiTConfig(**shape, image_size=48)))
    backbone = FeatureExtractor.of(network, EvalTransform(48, 48, (0.5,) * 3, (0.5,) * 3), "DeiT")
    for path in folder.iterdir():
        path.unlink()
    for number, picture in enumerate(pictures(2, (48, 48))):
        picture.save(folder / f"{number}.png")
    assert animate_attention(backbone, open_frames([str(folder)]), tmp_path / "video.webp", 48) == 2
    assert frames_of(tmp_path / "video.webp")[0].shape == (48, 96, 3)


def resnet():
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    network = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]))
    return FeatureExtractor.of(StockBackbone(network), EvalTransform(36, 32, (0.5,) * 3, (0.5,) * 3), "a ResNet")


def test_command_draws_heads_and_replaces_only_its_own_files(model_folder, photographs, folder, tmp_path, capsys):
    model = ["--model", str(model_folder), "--device", "cpu", "--image-size", "48"]
    main(["visualize", "heads", *map(str, photographs[:2]), *model, "--output", str(tmp_path / "heads.png")])
    with Image.open(tmp_path / "heads.png") as image:
        assert image.width == 4 * 190  # image, all heads, two heads
    for suffix in (".gif", ".webp"):
        output = tmp_path / f"clip{suffix}"
        arguments = ["visualize", "video", str(folder), *model, "--output", str(output), "--count", "2"]
        main([*arguments, "--fps", "5"])
        main([*arguments, "--mass", "0.3", "--heads", "2"])
        assert f"{output}: 2 frames" in capsys.readouterr().out
        pictures(1)[0].save(output)
        with pytest.raises(SystemExit):
            main(arguments)
        assert "exists already, and this command did not write it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--mass", "1.5"], "1.5 is not a share of the attention"),
        (["--fps", "99"], "99 is not a number of frames a second"),
        (["--output", "video.mp4"], "ends neither in .gif nor in .webp"),
    ],
)
def test_impossible_options_are_refused(model_folder, folder, capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        main(["visualize", "video", str(folder), "--model", str(model_folder), *options])
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_command_has_the_published_share():
    assert _MASS == MASS == 0.6
