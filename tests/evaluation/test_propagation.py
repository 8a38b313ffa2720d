import logging

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image, List
from PIL import Image as Pillow

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.config import SourceConfig, load_config
from dinov2_hf.config.evaluations import PropagationEvaluation
from dinov2_hf.data import EvalTransform
from dinov2_hf.evaluation.base import Evaluation
from dinov2_hf.evaluation.datasets import MaskedVideos
from dinov2_hf.evaluation.metrics.video import (
    BoundaryAccuracy,
    RegionSimilarity,
    boundary,
    boundary_accuracy,
    region_similarity,
    statistics,
)
from dinov2_hf.evaluation.object_masks import palette, save_contact_sheet, tint
from dinov2_hf.evaluation.propagation import Propagation, _plan, decide, evaluate_propagation, propagate, soft_masks
from dinov2_hf.features import FeatureExtractor

from .moving import as_dataset, encoded, moving_videos

# --- J and F ---------------------------------------------------------------------------------------------------------


def square(top, left, side=10, shape=(30, 40)):
    mask = np.zeros(shape, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


EMPTY = np.zeros((30, 40), dtype=bool)


def test_identical_masks_score_1():
    for mask in (square(5, 5), square(0, 0), ~EMPTY, EMPTY):
        assert region_similarity(mask, mask) == boundary_accuracy(mask, mask) == 1


def test_a_mask_where_there_is_none_scores_0_and_so_does_the_reverse():
    for pair in ((square(5, 5), EMPTY), (EMPTY, square(5, 5))):
        assert region_similarity(*pair) == boundary_accuracy(*pair) == 0


def test_shifted_square_has_the_overlap_computed_by_hand():
    # 10 x 10 pixels, 4 to the right: 60 in both, 140 in either
    assert region_similarity(square(5, 5), square(5, 9)) == pytest.approx(60 / 140)


def test_boundary_runs_along_the_object_one_pixel_wide():
    lines = boundary(square(5, 5, side=4))
    # the pixels above and to the left of the square's edges: 5 x 5 of them, less the 3 x 3 inside
    expected = square(4, 4, side=5) & ~square(5, 5, side=3)
    np.testing.assert_array_equal(lines, expected)
    assert not boundary(~EMPTY).any()  # the edge of the frame is no boundary
    half = np.zeros((6, 8), dtype=bool)
    half[:, 3:] = True
    np.testing.assert_array_equal(np.argwhere(boundary(half)), [[row, 2] for row in range(6)])


@pytest.mark.parametrize("shift, expected", [(1, 1.0), (2, 0.0)])
def test_boundaries_match_within_the_bound_and_not_beyond_it(shift, expected):
    # the diagonal of 60 x 80 is 100 pixels: 0.008 of it, rounded up, is 1 pixel
    masks = [np.zeros((60, 80), dtype=bool) for _ in range(2)]
    masks[0][:, 20:] = True
    masks[1][:, 20 + shift :] = True
    assert boundary_accuracy(*masks) == expected
    assert boundary_accuracy(*masks, bound=0.02) == 1  # 2 pixels


def test_boundary_accuracy_is_the_harmonic_mean_of_precision_and_recall():
    # a line down at column 9, and a further one that matches nothing
    true, found = (np.zeros((60, 80), dtype=bool) for _ in range(2))
    true[:, 10:] = True
    found[:, 10:50] = True
    # precision 60 of 120 pixels, recall 60 of 60
    assert boundary_accuracy(found, true) == pytest.approx(2 * 0.5 / 1.5)


@pytest.mark.parametrize("bound", [0.008, 0.05, 0.15])
def test_boundary_accuracy_equals_the_naive_one_by_dilation_with_a_disk(bound):
    rng = np.random.default_rng(0)
    coarse = rng.random((2, 8, 10)) < 0.3
    masks = coarse.repeat(5, axis=1).repeat(5, axis=2)
    radius = int(np.ceil(bound * np.hypot(40, 50)))
    lines = [boundary(mask) for mask in masks]
    dilated = []
    for line in lines:
        grown = np.zeros_like(line)
        for y, x in np.argwhere(line):
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    if dy * dy + dx * dx <= radius * radius and 0 <= y + dy < 40 and 0 <= x + dx < 50:
                        grown[y + dy, x + dx] = True
        dilated.append(grown)
    precision = (lines[0] & dilated[1]).sum() / lines[0].sum()
    recall = (lines[1] & dilated[0]).sum() / lines[1].sum()
    assert 0 < precision <= 1
    assert boundary_accuracy(*masks, bound) == pytest.approx(2 * precision * recall / (precision + recall))


def test_statistics_are_those_computed_by_hand():
    mean, recall, decay = statistics(np.array([1.0, 0.8, 0.6, 0.5, 0.1]))
    # above one half: 3 of 5; quarters with their borders: (1 + 0.8) / 2 - (0.5 + 0.1) / 2
    assert (mean, recall, decay) == (pytest.approx(60), pytest.approx(60), pytest.approx(60))
    assert statistics(np.array([0.4])) == [pytest.approx(40), 0, 0]


def as_video(masks):
    return [Pillow.fromarray(np.asarray(mask, dtype=np.uint8)) for mask in masks]


def test_first_and_last_frame_do_not_count():
    wrong, right = EMPTY, square(5, 5)
    score = RegionSimilarity().compute(
        predictions=[as_video([wrong, right, right, wrong])], references=[as_video([right] * 4)]
    )
    assert score["mean"] == score["recall"] == 100 and score["objects"] == [[100, 100, 0]]


def test_score_is_the_mean_over_objects_and_not_over_videos():
    both = square(5, 5) + 2 * square(5, 25).astype(int)
    videos = [[both, square(5, 5), both], [square(5, 5)] * 3]  # of the first, the second object is lost
    references = [[both] * 3, [square(5, 5)] * 3]
    pair = {"predictions": list(map(as_video, videos)), "references": list(map(as_video, references))}
    for metric in (RegionSimilarity(), BoundaryAccuracy()):
        score = metric.compute(**pair)
        assert score["mean"] == pytest.approx(200 / 3)
        assert [values[0] for values in score["objects"]] == [100, 0, 100]


def test_void_pixels_and_frames_without_reference_do_not_count():
    reference = square(5, 5).astype(np.uint8)
    reference[:, 20:] = 255
    found = square(5, 5) | square(5, 25)  # the second part lies in the void
    true = as_video([square(5, 5), reference, reference, square(5, 5)])
    true[2] = None
    score = RegionSimilarity().compute(predictions=[as_video([EMPTY, found, EMPTY, EMPTY])], references=[true])
    assert score["mean"] == 100


@pytest.mark.parametrize(
    "references, message",
    [([EMPTY] * 3, "no object"), ([square(5, 5)] * 2, "none with a reference"), ([np.ones((4, 4))] * 3, r"\(4, 4\)")],
)
def test_videos_that_cannot_be_scored_are_refused(references, message):
    with pytest.raises(ValueError, match=message):
        RegionSimilarity().compute(predictions=[as_video([EMPTY] * len(references))], references=[as_video(references)])


# --- propagation -----------------------------------------------------------------------------------------------------


def naive_propagation(target, context, masks, neighbors, radius, temperature):
    """Patch by patch, in plain loops."""
    height, width = target.shape[1:]
    found = torch.zeros(masks.shape[1], height, width)
    for y in range(height):
        for x in range(width):
            candidates = []
            for frame in range(len(context)):
                for row in range(height):
                    for column in range(width):
                        if radius == 0 or max(abs(row - y), abs(column - x)) <= radius:
                            cosine = (target[:, y, x] @ context[frame, :, row, column]).item()
                            candidates.append((cosine, masks[frame, :, row, column]))
            nearest = sorted(candidates, key=lambda pair: -pair[0])[:neighbors]
            weights = torch.tensor([np.exp(cosine / temperature) for cosine, _ in nearest])
            for weight, (_, labels) in zip(weights / weights.sum(), nearest, strict=True):
                found[:, y, x] += weight * labels
    return found


@pytest.fixture
def frames():
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(4, 6, 7, 5, generator=generator), dim=1)
    masks = torch.rand(3, 2, 7, 5, generator=generator).softmax(dim=1)
    return features[0], features[1:], masks


@pytest.mark.parametrize("radius, neighbors", [(0, 5), (1, 1), (1, 50), (2, 5), (12, 1000)])
@pytest.mark.parametrize("chunk", [1, 600, 1 << 24])
def test_propagation_equals_the_naive_one_in_chunks_of_any_size(radius, neighbors, chunk, frames, monkeypatch):
    monkeypatch.setattr("dinov2_hf.evaluation.propagation._CHUNK", chunk)
    found = propagate(*frames, neighbors=neighbors, radius=radius, temperature=0.1)
    torch.testing.assert_close(found, naive_propagation(*frames, neighbors, radius, 0.1))


def test_soft_masks_stay_shares(frames):
    found = propagate(*frames)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(7, 5))


def test_masks_follow_features_that_move():
    generator = torch.Generator().manual_seed(0)
    scene = torch.randn(16, 8, 20, generator=generator)  # unlike features, seen through a window that moves right
    masks = torch.zeros(2, 8, 20)
    masks[1, 2:5, 6:9] = 1
    masks[0] = 1 - masks[1]
    propagation = Propagation(scene[:, :, :12], masks[:, :, :12], context_frames=2, neighbors=1, radius=2)
    for shift in range(1, 4):
        found = propagation.step(scene[:, :, shift : shift + 12])
        expected = masks[:, :, shift : shift + 12]
        # what has come into sight at the right is background by its neighbours; the object is followed exactly
        torch.testing.assert_close(found[:, :, :9], expected[:, :, :9])


@pytest.mark.parametrize("context_frames", [0, 1, 3])
def test_context_is_the_first_frame_and_the_last_ones(context_frames):
    scenes = torch.eye(7)
    scenes[1:, 0] = 0.5  # a frame is like itself, less like the first one, and least like the others
    scenes = scenes.view(7, 7, 1, 1)
    one, other = torch.eye(2).view(2, 2, 1, 1)
    for again in range(6):
        propagation = Propagation(scenes[0], one, context_frames, neighbors=1, radius=0)
        for scene in scenes[1:6]:
            propagation.step(scene)
        for _, masks in propagation._last:
            masks.copy_(other)  # so that the label says which frame it is from
        # of frames 1 to 5 those within the context label their repetition; in place of older ones the first does
        expected = other if again > 5 - context_frames else one
        torch.testing.assert_close(propagation.step(scenes[again]), expected)


def test_masks_of_the_first_frame_are_those_of_the_nearest_pixels():
    mask = np.zeros((16, 24), dtype=np.uint8)
    mask[:8, :8], mask[8:, 16:], mask[8:, 8:16] = 1, 7, 255
    masks = soft_masks(mask, [1, 7], 2, 3)
    assert masks[1].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert masks[2].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert masks[0].tolist() == [[0, 1, 1], [1, 1, 0]]


def test_decision_stretches_each_mask_and_keeps_empty_ones_empty():
    masks = torch.zeros(3, 4, 4)
    masks[1, 1, 1] = 0.3  # weaker than the background everywhere, but nowhere stronger than there
    masks[0] = 1 - masks[1]
    classes = decide(masks, 8, 8)
    assert classes.shape == (8, 8)
    assert set(classes.unique().tolist()) == {0, 1}
    assert (classes[2:4, 2:4] == 1).all() and (classes[:2] == 0).all()
    assert (decide(torch.eye(3)[0].view(3, 1, 1).expand(3, 4, 4), 8, 8) == 0).all()  # background alone


# --- videos ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving():
    return moving_videos()


@pytest.fixture(scope="module")
def table(moving, tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "validation.parquet"
    as_dataset(moving).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def davis(moving, tmp_path_factory):
    """The same as files laid out as DAVIS 2017, the masks with a palette."""
    root = tmp_path_factory.mktemp("davis")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("a\nb\nc\n")
    for name, (frames, masks) in zip("abc", moving):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True)
        for number, (frame, mask) in enumerate(zip(frames, masks)):
            # PNG under the name of JPEG, so that both sources hold the same pixels
            (root / f"JPEGImages/480p/{name}/{number:05}.jpg").write_bytes(encoded(frame)["bytes"])
            picture = Pillow.fromarray(mask)
            picture.putpalette(palette().ravel().tolist())
            picture.save(root / f"Annotations/480p/{name}/{number:05}.png")
    return root


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=64)
    )
    return FeatureExtractor.of(model, EvalTransform(64, 64, [0.5] * 3, [0.25] * 3))


def run(backbone, path, split="train", output=None, **options):
    config = PropagationEvaluation(
        test=SourceConfig(path=str(path), split=split), **{"resize_size": 192, "num_workers": 0, "radius": 3} | options
    ).check()
    evaluation = Evaluation(backbone, config, Accelerator(cpu=True), output)
    return {result.metric: result for result in evaluate_propagation(evaluation)}


def values_of(results):
    return {name: result.value for name, result in results.items()}


@pytest.fixture(scope="module")
def results(backbone, table):
    return run(backbone, table)


def test_random_features_follow_moving_objects_far_better_than_standing_still(results, moving):
    pair = {
        "predictions": [as_video([masks[0]] * len(masks)) for _, masks in moving],
        "references": [as_video(masks) for _, masks in moving],
    }
    still = [metric().compute(**pair)["mean"] for metric in (RegionSimilarity, BoundaryAccuracy)]
    assert sum(still) / 2 < 15
    assert results["j_mean"].value > 45 and results["f_mean"].value > 40
    assert results["j_mean"].value - still[0] > 30 and results["f_mean"].value - still[1] > 30


def test_figures_come_with_intervals_and_agree(results):
    assert list(results) == [
        "j_and_f",
        *(f"{letter}_{name}" for letter in "jf" for name in ("mean", "recall", "decay")),
    ]
    values = values_of(results)
    assert values["j_and_f"] == pytest.approx((values["j_mean"] + values["f_mean"]) / 2)
    for result in results.values():
        assert result.interval[0] <= result.value <= result.interval[1]
        assert "(%)" in result.title


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 3}, {"batch_size": 100, "num_workers": 1}])
def test_batches_and_workers_change_nothing(options, results, backbone, table):
    found = values_of(run(backbone, table, **options))
    # features of another batch differ in their last digits, and with them a pixel here and there
    assert found == pytest.approx(values_of(results), abs=0.2)


def test_davis_folder_gives_the_figures_of_the_table(results, backbone, davis):
    found = run(backbone, davis, split="validation")
    assert values_of(found) == values_of(results)


def test_whole_evaluation_equals_the_naive_one(results, backbone, moving):
    """Frame by frame, with plain propagation, the published order of steps."""
    transform, scores = backbone.transform, {RegionSimilarity: [], BoundaryAccuracy: []}
    for frames, masks in moving:
        features = []
        for frame in frames:
            pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
            pixels = torch.nn.functional.interpolate(pixels, (192, 256), mode="bicubic", antialias=True)
            (_, patches), *_ = backbone.features(transform.normalize(pixels), 1)
            features.append(torch.nn.functional.normalize(patches[0], dim=0))
        soft = [soft_masks(masks[0], [1, 2], 24, 32)]
        found = [masks[0]]
        for time in range(1, len(frames)):
            context = [0, *range(max(time - 7, 1), time)]
            soft.append(
                propagate(
                    features[time],
                    torch.stack([features[index] for index in context]),
                    torch.stack([soft[index] for index in context]),
                    radius=3,
                )
            )
            found.append(decide(soft[-1], 96, 128).numpy())
        for metric, objects in scores.items():
            objects += metric().compute(predictions=[as_video(found)], references=[as_video(masks)])["objects"]
    for metric, letter in ((RegionSimilarity, "j"), (BoundaryAccuracy, "f")):
        values = [results[f"{letter}_{name}"].value for name in ("mean", "recall", "decay")]
        assert np.mean(scores[metric], axis=0) == pytest.approx(values, abs=0.2)


def test_shares_of_processes_are_disjoint_complete_and_equally_long(table):
    videos = MaskedVideos(SourceConfig(path=str(table)))
    whole = _plan(videos, 3, 0, 1)
    shares = [_plan(videos, 3, rank, 2) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == whole
    assert {video for video, _, _ in shares[0]} & {video for video, _, _ in shares[1]} == set()
    for video in range(3):
        spans = [(start, stop) for number, start, stop in whole if number == video]
        assert [frame for start, stop in spans for frame in range(start, stop)] == list(range(7 + video))


# --- what is wrong with videos ---------------------------------------------------------------------------------------


def variant(moving, tmp_path, change):
    frames, masks = (list(part) for part in moving[0])
    rows = as_dataset([(frames, masks), moving[1]]).to_dict()
    change(rows)
    path = tmp_path / "videos.parquet"
    Dataset.from_dict(rows, features=Features(frames=List(Image()), masks=List(Image()))).to_parquet(path)
    return path


def test_broken_frames_are_left_out_and_named(backbone, moving, tmp_path, caplog):
    def change(rows):
        rows["frames"][0][3] = {"bytes": b"a text", "path": None}

    with caplog.at_level(logging.WARNING):
        found = run(backbone, variant(moving, tmp_path, change))
    assert "left out a frame that cannot be decoded: row 0, frame 3" in caplog.text
    assert 40 < found["j_mean"].value < 100


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows["frames"][0].__setitem__(0, {"bytes": b"a text", "path": None}), "first frame"),
        (lambda rows: rows["masks"][0].__setitem__(0, None), "first frame has no mask"),
        (lambda rows: rows["masks"][0].__setitem__(slice(1, None), [None] * 6), "no frame between"),
        (
            lambda rows: rows["masks"][0].__setitem__(0, encoded(np.full((96, 128), 255, dtype=np.uint8))),
            "has no object",
        ),
        (lambda rows: rows["frames"].__setitem__(0, []) or rows["masks"].__setitem__(0, []), "no frames"),
    ],
)
def test_videos_that_cannot_be_followed_are_left_out_and_named(change, message, backbone, moving, tmp_path, caplog):
    path = tmp_path / "other.parquet"
    as_dataset([moving[1]]).to_parquet(path)
    with caplog.at_level(logging.WARNING):
        found = run(backbone, variant(moving, tmp_path, change))
    assert message in caplog.text
    assert found["j_mean"].value == pytest.approx(run(backbone, path)["j_mean"].value)


def test_truncated_first_frame_leaves_the_video_out(backbone, moving, tmp_path, caplog):
    def change(rows):
        data = rows["frames"][0][0]["bytes"]
        rows["frames"][0][0] = {"bytes": data[: len(data) // 2], "path": None}

    with caplog.at_level(logging.WARNING):
        run(backbone, variant(moving, tmp_path, change))
    assert "its first frame cannot be decoded" in caplog.text


def test_set_of_which_nothing_counts_is_refused(backbone, moving, tmp_path):
    def change(rows):
        rows["masks"] = [[None] * len(masks) for masks in rows["masks"]]

    with pytest.raises(ValueError, match="none of the 2 videos"):
        run(backbone, variant(moving, tmp_path, change))


def test_masks_in_colours_are_refused_naming_the_remedy(backbone, moving, tmp_path):
    def change(rows):
        rows["masks"][0][0] = encoded(np.zeros((96, 128, 3), dtype=np.uint8))

    with pytest.raises(ValueError, match="has colours .mode RGB., not indices; save it as"):
        run(backbone, variant(moving, tmp_path, change))


def test_missing_path_and_impossible_values_are_refused(backbone):
    with pytest.raises(ValueError, match="test.path is not set"):
        run(backbone, "")
    for options, message in [
        ({"crop_size": 224}, "crop_size=224"),
        ({"neighbors": 0}, "neighbors=0"),
        ({"radius": -1}, "radius=-1"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"resize_size": 0}, "resize_size=0"),
        ({"context_frames": -1}, "context_frames=-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            PropagationEvaluation(**options).check()


def test_shipped_config_holds_the_published_values(pytestconfig):
    path = pytestconfig.rootpath / "configs/evaluate/propagation_davis2017.yaml"
    config = load_config(path, ["test.path=/data/DAVIS"], PropagationEvaluation)
    assert (config.resize_size, config.context_frames, config.neighbors) == (480, 7, 5)
    assert (config.radius, config.temperature, config.test.split) == (12, 0.1, "validation")


# --- pictures --------------------------------------------------------------------------------------------------------


def test_output_folder_takes_pictures_and_masks_that_score_the_same(backbone, davis, moving, results, tmp_path):
    run(backbone, davis, split="validation", output=tmp_path, pictures=2, save_masks=True)
    folder = tmp_path / "propagation"
    assert sorted(path.name for path in folder.glob("*.png")) == ["a.png", "b.png"]
    saved = [sorted((folder / "masks" / name).glob("*.png")) for name in "abc"]
    assert [path.name for path in saved[0]] == [f"{number:05}.png" for number in range(7)]
    assert Pillow.open(saved[0][0]).mode == "P"
    score = RegionSimilarity().compute(
        predictions=[list(map(str, paths)) for paths in saved],
        references=[as_video(masks) for _, masks in moving],
    )
    assert score["mean"] == pytest.approx(results["j_mean"].value)


def test_palette_is_that_of_davis():
    assert palette()[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette()[8].tolist() == [64, 0, 0] and palette()[255].tolist() == [224, 224, 192]


def test_outline_runs_along_the_inside_of_an_object_on_all_sides():
    mask = square(10, 10, 6).astype(np.uint8)
    tinted = tint(np.zeros((30, 40, 3), dtype=np.uint8), mask)
    np.testing.assert_array_equal((tinted == 255).all(axis=2), square(10, 10, 6) & ~square(11, 11, 4))
    assert not tinted[mask == 0].any()


def test_contact_sheet_shows_objects_in_their_colours(tmp_path):
    frame, mask = np.full((60, 80, 3), 200, dtype=np.uint8), square(10, 10, 30, (60, 80)).astype(np.uint8)
    save_contact_sheet(
        [(frame, mask, 2 * mask, "one"), (frame, None, mask, "two")], ("true", "found"), tmp_path / "a.png"
    )
    sheet = np.array(Pillow.open(tmp_path / "a.png"))
    for color in ([160, 90, 90], [90, 160, 90]):  # 0.45 of the frame and 0.55 of the object's colour
        assert (np.abs(sheet.astype(int) - color).max(axis=2) <= 1).sum() > 1000
