"""Segmentation and depth over images."""

import io

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.visualize import Picture, depth_overlay, draw_depths, draw_labels, label_overlay, read_map
from dinov2_hf.visualize.sheet import distinct_colors

GREY = np.full((8, 12, 3), 100, np.uint8)


def saved(array):
    buffer = io.BytesIO()
    if isinstance(array, Image.Image):
        array.save(buffer, "PNG")
    else:
        np.save(buffer, array)
    return buffer.getvalue()


def test_a_label_has_one_colour_wherever_it_is():
    labels = np.array([[0, 3], [3, 255]])
    drawn = label_overlay(GREY, labels)
    colors = distinct_colors(4)
    expected = (0.38 * 100 + 0.62 * colors).round()
    assert np.array_equal(drawn[0, 0], expected[0])
    assert np.array_equal(drawn[0, 11], expected[3]) and np.array_equal(drawn[7, 0], expected[3])
    alone = label_overlay(GREY, np.full((1, 1), 3))
    assert np.array_equal(alone[0, 0], expected[3])


def test_ignored_pixels_stay_as_they_are():
    drawn = label_overlay(GREY, np.array([[0, 255, -1]]))
    assert (drawn[:, 4:] == 100).all() and (drawn[:, :4] != 100).any(axis=2).all()
    assert (label_overlay(GREY, np.array([[0, 9]]), ignored=9)[:, 6:] == 100).all()


def test_maps_of_any_size_cover_the_whole_image_without_mixing():
    labels = np.arange(8).reshape(2, 4)
    drawn = label_overlay(GREY, labels)
    for row in range(8):
        for column in range(12):
            own = label_overlay(GREY, labels[row // 4 : row // 4 + 1, column // 3 : column // 3 + 1])
            assert np.array_equal(drawn[row, column], own[0, 0])


def test_colours_of_labels_can_be_told_apart():
    colors = distinct_colors(24).astype(int)
    distance = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 1000 * np.eye(24)
    assert distance.min() >= 24
    assert np.array_equal(distinct_colors(5), distinct_colors(200)[:5])


def test_labels_that_are_not_whole_are_refused():
    with pytest.raises(ValueError, match="use --kind depth"):
        label_overlay(GREY, np.array([[0.5, 1.0]]))


def test_near_is_red_far_is_blue_and_unknown_is_grey():
    image = np.zeros((4, 4, 3), np.uint8) + np.array([90, 20, 200], np.uint8)
    drawn = depth_overlay(image, np.array([[1.0, 10.0], [0.0, np.nan]]), 1.0, 10.0).astype(int)
    near, far = drawn[0, 0], drawn[0, 3]
    assert near[0] > near[2] + 50 and far[2] > far[0]
    for unknown in (drawn[3, 0], drawn[3, 3]):
        assert len(set(unknown.tolist())) == 1


def test_maps_are_read_as_they_are_stored():
    labels = np.array([[0, 7], [255, 150]], np.uint8)
    assert np.array_equal(read_map(saved(Image.fromarray(labels)), "m.png"), labels)
    indexed = Image.new("P", (2, 2))
    indexed.putpalette([200, 10, 30] * 256)
    indexed.putdata(labels.ravel().tolist())
    assert np.array_equal(read_map(saved(indexed), "m.png"), labels)  # the indices, not their colours
    deep = np.array([[1000, 65535]], np.uint16)
    assert np.array_equal(read_map(saved(Image.fromarray(deep)), "m.png"), deep)
    meters = np.array([[0.5, 3.25]])
    assert np.array_equal(read_map(saved(meters), "m.npy"), meters)


@pytest.mark.parametrize(
    "data",
    [
        b"text",
        saved(Image.new("RGB", (4, 4))),
        saved(np.zeros((2, 3, 4))),
        saved(np.zeros((0, 3))),
        saved(np.array(["a"])),
    ],
)
def test_what_is_no_map_is_refused_with_what_is(data):
    with pytest.raises(ValueError, match=r"m\.png .*give a \.npy array \[H, W\], or a PNG of one channel"):
        read_map(data, "m.png")


def test_sheet_of_labels_has_overlay_and_legend(tmp_path):
    picture = Picture("name", np.full((3, 40, 40), 255, np.uint8))
    labels = np.array([[1, 1, 1, 2]])
    path = draw_labels([picture], [labels], tmp_path / "l.png", {1: "sky", 2: "sea"})
    with Image.open(path) as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    colors = distinct_colors(3).astype(int)
    over = (0.38 * 255 + 0.62 * colors).round()

    def count(color):
        return (np.abs(drawn - color) <= 2).all(axis=2).sum()

    assert count(over[1]) == pytest.approx(3 * count(over[2]), rel=0.1)
    assert count(colors[1]) > 30 and count(colors[2]) > 30  # in the legend, at full strength


def test_depths_of_several_images_have_one_scale(tmp_path):
    pictures = [Picture(name, np.full((3, 40, 40), 128, np.uint8)) for name in ("near", "far")]
    path = draw_depths(pictures, [np.full((2, 2), 1.0), np.full((2, 2), 9.0)], tmp_path / "d.png")
    with Image.open(path) as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    expected = [
        depth_overlay(picture.shown, np.array([[depth]]), 1.0, 9.0)[0, 0] for picture, depth in zip(pictures, (1, 9))
    ]
    places = [np.argwhere((np.abs(drawn - color) <= 2).all(axis=2)) for color in expected]
    assert min(map(len, places)) > 5000
    assert places[0][:, 1].mean() < places[1][:, 1].mean()


def test_maps_without_any_depth_are_refused(tmp_path):
    picture = Picture("name", np.full((3, 8, 8), 128, np.uint8))
    with pytest.raises(ValueError, match="no depth above 0"):
        draw_depths([picture], [np.zeros((2, 2))], tmp_path / "d.png")
