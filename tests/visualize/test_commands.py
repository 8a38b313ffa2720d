"""`dinov2-hf visualize`, as a person meets it."""

import logging

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.cli import main
from dinov2_hf.evaluation import predict_map
from dinov2_hf.evaluation.dense_heads import HeadMeta, build_head, save_dense_head
from dinov2_hf.features import open_backbone
from dinov2_hf.visualize import draw_depths, draw_labels, open_picture

from .conftest import CLOTHING


@pytest.fixture
def command(model_folder, tmp_path):
    """Runs an action with the tiny model and returns the picture it leaves."""

    def run(action, *arguments):
        output = tmp_path / "out" / f"{action}.png"
        model = [] if "--maps" in arguments else ["--model", model_folder, "--device", "cpu"]
        main(
            ["visualize", action, *map(str, model), "--image-size", "48", "--output", str(output), *map(str, arguments)]
        )
        with Image.open(output) as image:
            assert image.format == "PNG"
            return np.asarray(image.convert("RGB")).astype(int)

    run.model = model_folder
    return run


@pytest.fixture
def refusal(model_folder, capsys):
    """What an action says that ends with status 2, in one line."""

    def run(action, *arguments):
        model = [] if action == "overlay" or "--model" in arguments else ["--model", model_folder, "--device", "cpu"]
        with pytest.raises(SystemExit) as caught:
            main(["visualize", action, *map(str, model), *map(str, arguments)])
        assert caught.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


def colors(drawn):
    return len(np.unique(drawn.reshape(-1, 3), axis=0))


def test_pca_of_files_with_and_without_background(command, photographs, capsys):
    without = command("pca", "--images", *photographs[:3])
    assert "pca.png: 3 images" in capsys.readouterr().out
    whole = command("pca", "--images", *photographs[:3], "--keep-background")
    assert without.shape == whole.shape and colors(without) > 100

    def blank(drawn):  # in the lower half, where the patches are
        return (drawn[drawn.shape[0] // 2 + 20 :] == 255).all(axis=2).mean()

    assert blank(without) > blank(whole) + 0.05


def test_pca_of_a_set_takes_evenly_spaced_images_of_its_split(command, capsys):
    command("pca", "--images", CLOTHING, "--split", "validation", "--count", 3)
    assert "3 images" in capsys.readouterr().out


def test_attention_of_a_folder(command, photographs, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO, "dinov2_hf")
    (tmp_path / "linked").symlink_to(photographs[0].parent)
    drawn = command("attention", "--images", tmp_path / "linked", "--count", 2)
    assert "2 images" in capsys.readouterr().out
    assert any(message.startswith(f"{tmp_path / 'linked'}: ") for message in caplog.messages)
    assert drawn.shape[1] == 4 * 190 and colors(drawn) > 100  # image, mean, two heads


def test_matches_of_two_images(command, photographs):
    assert colors(command("matches", "--images", *photographs[:2], "--pairs", 5, "--keep-background")) > 100


@pytest.mark.parametrize("count", [1, 3])
def test_matches_of_other_than_two_images_are_refused(refusal, photographs, count):
    message = refusal("matches", "--images", *photographs[:count])
    assert f"matches are those of two images, and --data gives {count}; name two files" in message


def test_neighbours_of_a_set(command, photographs, tmp_path):
    arguments = ["--images", photographs[0], "--collection", CLOTHING, "--collection-split", "validation", "-k", 2]
    drawn = command("neighbours", *arguments, "--cache", tmp_path / "cache")
    assert drawn.shape[1] == 3 * 190 and colors(drawn) > 100
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def test_similarity_to_a_point(command, photographs, refusal):
    first = command("similarity", "--images", *photographs[:2], "--point", "0.1,0.1")
    second = command("similarity", "--images", *photographs[:2], "--point", "0.5,0.6")
    assert (first != second).any()
    message = refusal("similarity", "--images", photographs[0], "--point", "7,0.5")
    assert "point=7.0,0.5 lies outside of the image" in message
    assert "'middle' is not a point" in refusal("similarity", "--images", photographs[0], "--point", "middle")


def test_overlay_of_labels_and_of_depths(command, photographs, tmp_path):
    labels, depth, names = tmp_path / "labels.png", tmp_path / "depth.npy", tmp_path / "classes.txt"
    Image.fromarray(np.array([[0, 1], [1, 255]], np.uint8)).save(labels)
    np.save(depth, np.linspace(1, 5, 12).reshape(3, 4))
    names.write_text("wall\nshoe\n")
    assert colors(command("overlay", "--images", photographs[0], "--maps", labels, "--classes", names)) > 100
    assert colors(command("overlay", "--images", photographs[0], "--maps", depth, "--kind", "depth")) > 100


@pytest.mark.parametrize("kind", ["segmentation", "linear_depth"])
def test_overlay_of_what_a_head_predicts(command, photographs, tmp_path, kind):
    known = {"depth_range": (0.1, 10.0)} if kind == "linear_depth" else {"classes": ("a", "b", "c")}
    head = build_head(HeadMeta(kind, (1, 2), 32, 2, 3, **known))
    save_dense_head(head, tmp_path / "head.safetensors")
    drawn = command("overlay", "--images", *photographs[:2], "--head", tmp_path / "head.safetensors")
    backbone = open_backbone(str(command.model))
    pictures = [open_picture(path.read_bytes(), path.name, 48, 8) for path in photographs[:2]]
    maps = [predict_map(backbone, head.eval(), picture.pixels).numpy() for picture in pictures]
    if kind == "segmentation":
        expected = draw_labels(pictures, maps, tmp_path / "e.png", {0: "a", 1: "b", 2: "c"})
    else:
        expected = draw_depths(pictures, maps, tmp_path / "e.png")
    with Image.open(expected) as image:
        wanted = np.asarray(image.convert("RGB"))
    assert (drawn[40:] == wanted[40:]).all()  # below the title, which names the model and the head


def test_a_head_needs_its_backbone(refusal, command, photographs, tmp_path):
    save_dense_head(build_head(HeadMeta("segmentation", (4,), 64, 4, 3)), tmp_path / "head.safetensors")
    asked = ["--images", photographs[0], "--head", tmp_path / "head.safetensors"]
    assert "--head needs the backbone that it was trained on: --model" in refusal("overlay", *asked)
    message = refusal("overlay", *asked, "--model", command.model)
    assert "the head is for a backbone of 4 blocks of width 64" in message


def test_overlay_needs_a_map_for_each_image(refusal, photographs, tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    message = refusal("overlay", "--images", *photographs[:2], "--maps", tmp_path / "a.npy")
    assert "--maps has 1 files for 2 images; give one for each, in their order" in message
    assert "labels are whole numbers" in refusal(
        "overlay", "--images", photographs[0], "--maps", _half(tmp_path), "--output", tmp_path / "x.png"
    )
    assert not (tmp_path / "x.png").exists()


def _half(folder):
    np.save(folder / "half.npy", np.full((2, 2), 0.5))
    return folder / "half.npy"


def test_what_is_no_image_is_named(refusal, tmp_path):
    broken = tmp_path / "holiday.jpg"
    broken.write_text("not an image")
    assert "holiday.jpg is not an image that can be read" in refusal("pca", "--images", broken)


def test_what_does_not_exist_is_named(refusal, photographs, tmp_path):
    assert f"{tmp_path}/nothing does not exist" in refusal("pca", "--images", tmp_path / "nothing")
    assert f"{tmp_path}/model" in refusal("pca", "--images", photographs[0], "--model", tmp_path / "model")


def test_a_size_that_the_patch_does_not_divide_is_refused(refusal, photographs):
    message = refusal("pca", "--images", photographs[0], "--image-size", 100)
    assert "--image-size=100 is not a multiple of" in message and "use 96 or 104" in message


def test_a_device_that_is_not_there_is_refused(refusal, photographs):
    assert "device=abacus cannot be used" in refusal("pca", "--images", photographs[0], "--device", "abacus")
