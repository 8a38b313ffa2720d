import io
import logging

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List
from PIL import Image as Pillow

from dinov2_hf.backbones import Dinov2Config, Dinov2Model
from dinov2_hf.config import SourceConfig, load_config
from dinov2_hf.config.evaluations import VideoEvaluation
from dinov2_hf.data import EvalTransform
from dinov2_hf.evaluation.base import Evaluation
from dinov2_hf.evaluation.video import _features, _open, evaluate_video, pool_frames
from dinov2_hf.features import FeatureExtractor

# --- frames to clips -------------------------------------------------------------------------------------------------


def test_frames_that_cannot_be_read_are_replaced_by_the_nearest_of_their_clip():
    readable = [[0, 1, 2, 3], [1], [0, 3], [], [1, 2]]
    index = torch.tensor([4 * clip + frame for clip, frames in enumerate(readable) for frame in frames])
    clips, frames = pool_frames(index[:, None].float(), index, 5, 4, "concat")
    assert clips.tolist() == [0, 1, 2, 4]
    # between two as near the earlier one is taken
    expected = [[0, 1, 2, 3], [5, 5, 5, 5], [8, 8, 11, 11], [17, 17, 18, 18]]
    assert frames.tolist() == expected
    _, means = pool_frames(index[:, None].float(), index, 5, 4, "mean")
    assert means.squeeze(1).tolist() == [np.mean(frames) for frames in expected]


def test_concatenation_keeps_the_order_of_frames_and_the_mean_does_not():
    features = torch.randn(2 * 3, 5, generator=torch.Generator().manual_seed(0))
    index = torch.arange(6)
    _, joined = pool_frames(features, index, 2, 3, "concat")
    torch.testing.assert_close(joined, features.view(2, 15))
    backwards = features.view(2, 3, 5).flip(1).flatten(0, 1)
    torch.testing.assert_close(
        pool_frames(features, index, 2, 3, "mean")[1], pool_frames(backwards, index, 2, 3, "mean")[1]
    )


def test_nothing_readable_leaves_no_clip():
    clips, frames = pool_frames(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 2, 3, "concat")
    assert clips.shape == (0,) and frames.shape == (0, 15)


# --- clips -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(pytestconfig):
    table = parquet.read_table(pytestconfig.rootpath / "examples/data/clothing/test.parquet", columns=["image"])
    rows = table.slice(0, 40)["image"].to_pylist()
    return [np.array(Pillow.open(io.BytesIO(row["bytes"])).convert("RGB").resize((40, 40))) for row in rows]


def moving(photograph, direction, stripes=False, length=8):
    """A bright square, or one of stripes, that moves over a photograph."""
    frames = []
    for time in range(length):
        frame = photograph.copy()
        x = 30 * time // (length - 1)
        patch = np.full((24, 10, 3), 255, dtype=np.uint8)
        if stripes:
            patch[::4] = patch[1::4] = 0
        frame[8:32, x : x + 10] = patch
        frames.append(frame)
    return frames[::direction]


def encoded(pixels):
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def as_dataset(clips, names):
    columns = {
        "frames": [[None if frame is None else encoded(frame) for frame in frames] for frames, _ in clips],
        "label": [label for _, label in clips],
    }
    return Dataset.from_dict(columns, features=Features(frames=List(Image()), label=ClassLabel(names=names)))


def saved(path, train, test, names):
    DatasetDict(train=as_dataset(train, names), validation=as_dataset(test, names)).save_to_disk(path)
    return path


@pytest.fixture(scope="module")
def directions(photographs, tmp_path_factory):
    """Clips and the same clips backwards: each photograph, so each set of frames, is in both classes."""
    clips = [(moving(photograph, sign), sign > 0) for photograph in photographs for sign in (1, -1)]
    return saved(tmp_path_factory.mktemp("clips") / "directions", clips[:56], clips[56:], ["left", "right"])


@pytest.fixture(scope="module")
def textures(photographs, tmp_path_factory):
    clips = [
        (moving(photograph, sign, stripes), stripes)
        for photograph, sign in zip(photographs, (1, -1) * 20)
        for stripes in (False, True)
    ]
    return saved(tmp_path_factory.mktemp("clips") / "textures", clips[:56], clips[56:], ["plain", "stripes"])


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=40)
    )
    return FeatureExtractor.of(model, EvalTransform(40, 40, [0.5] * 3, [0.25] * 3))


def run(backbone, path, **options):
    config = VideoEvaluation(
        train=SourceConfig(path=str(path)),
        test=SourceConfig(path=str(path), split="validation"),
        num_workers=0,
        **{"iterations": 300, "global_batch": 64} | options,
    ).check()
    return {result.metric: result for result in evaluate_video(Evaluation(backbone, config, Accelerator(cpu=True)))}


def test_order_of_frames_is_seen_by_concatenation_alone(backbone, directions):
    # the mean of a clip and of its reverse is the same up to rounding: whatever is said of both is right for one
    assert run(backbone, directions, pooling="mean")["accuracy"].value == pytest.approx(50, abs=5)
    assert run(backbone, directions, pooling="concat")["accuracy"].value > 90


def test_textures_are_told_apart_by_the_mean(backbone, textures):
    results = run(backbone, textures, pooling="mean")
    assert results["accuracy"].value > 90
    low, high = results["accuracy"].interval
    assert low < results["accuracy"].value <= high
    assert list(results) == ["accuracy"]  # the first five of two classes say nothing
    assert "mean of 8 frames, best of 13 heads on the test set" in results["accuracy"].title
    assert results["accuracy"].note.startswith("learning rate ")


def test_best_head_is_chosen_on_validation_clips_where_they_are_given(backbone, directions, textures):
    where = {"validation": SourceConfig(path=str(textures), split="validation")}
    result = run(backbone, textures, **where)["accuracy"]
    assert "best of 13 heads on the validation set" in result.title
    assert result.value == run(backbone, textures)["accuracy"].value  # they are the test set here
    with pytest.raises(ValueError, match="classes of .*differ"):
        run(backbone, directions, **where)


def test_top_five_is_the_share_whose_class_is_among_the_first_five(photographs, tmp_path):
    """Seven classes, of which a backbone that sees nothing knows no more than how frequent they are."""
    blind = FeatureExtractor(
        lambda images, count: [(torch.zeros(len(images), 4), torch.zeros(len(images), 4, 5, 5))] * count,
        EvalTransform(40, 40, [0.5] * 3, [0.25] * 3),
        4,
        8,
        1,
        torch.device("cpu"),
    )
    names = list("abcdefg")
    train = [([photographs[0]], label) for label in range(7) for _ in range(10 - label)]
    test = [([photographs[0]], label) for label in [0, 1, 2, 3, 4, 5, 6, 6]]
    path = saved(tmp_path / "clips", train, test, names)
    results = run(blind, path, learning_rates=[0.1], global_batch=len(train))
    assert results["accuracy"].value == pytest.approx(100 / 8)
    assert results["accuracy_top5"].value == pytest.approx(500 / 8)
    assert results["accuracy_top5"].interval[0] < 62.5 < results["accuracy_top5"].interval[1]


def test_clips_without_a_readable_frame_do_not_count_and_others_do(backbone, photographs, tmp_path, caplog):
    train = [(moving(photograph, 1, stripes), stripes) for photograph in photographs[:20] for stripes in (False, True)]
    broken = [None] * 8
    partly = moving(photographs[30], 1, True)
    partly[2:6] = [None] * 4
    test = [(moving(photographs[31], 1, False), 0), (partly, 1), (broken, 0), ([], 0)]
    path = saved(tmp_path / "clips", train, test, ["plain", "stripes"])
    with caplog.at_level(logging.WARNING):
        results = run(backbone, path)
    assert results["accuracy"].value == 100
    assert "row 2, frame 0" in caplog.text and "clip 3: the clip has no frames" in caplog.text
    path = saved(tmp_path / "none", train, [(broken, 0)], ["plain", "stripes"])
    with pytest.raises(ValueError, match="no clip of .* can be decoded"):
        run(backbone, path)


def test_frames_of_a_clip_are_those_that_the_mean_is_of(backbone, photographs, tmp_path):
    """The features equal those computed one frame after the other."""
    clips = [(moving(photograph, 1, length=5 + index), 0) for index, photograph in enumerate(photographs[:3])]
    path = saved(tmp_path / "clips", clips, clips, ["a"])
    config = VideoEvaluation(train=SourceConfig(path=str(path)), num_frames=4, num_workers=0)
    inputs, _ = _features(Evaluation(backbone, config, Accelerator(cpu=True)), _open(config.train, "train"), "")
    for (frames, _), found in zip(clips, inputs):
        chosen = [frames[int((place + 0.5) * len(frames) / 4)] for place in range(4)]
        pixels = np.stack([backbone.transform.pixels(encoded(frame)["bytes"]) for frame in chosen])
        (cls, _), *_ = backbone.features(backbone.transform.normalize(torch.from_numpy(pixels)), 1)
        torch.testing.assert_close(found, cls.mean(dim=0))


def test_features_are_kept_for_the_other_pooling(backbone, directions, tmp_path):
    first = run(backbone, directions, pooling="mean", cache_dir=str(tmp_path))
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2  # train and test
    changed = [file.stat().st_mtime_ns for file in files]
    run(backbone, directions, pooling="concat", cache_dir=str(tmp_path))
    assert sorted(tmp_path.rglob("*.safetensors")) == files
    assert [file.stat().st_mtime_ns for file in files] == changed
    assert run(backbone, directions, pooling="mean", cache_dir=str(tmp_path)) == first


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pooling": "max"}, "pooling='max' is not one of mean, concat"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"learning_rates": []}, "leaves no head"),
        ({"learning_rates": [0.1, -1.0]}, "learning_rates=-1"),
        ({"iterations": 0}, "iterations=0"),
        ({"global_batch": 0}, "global_batch=0"),
    ],
)
def test_impossible_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VideoEvaluation(**options).check()


def test_missing_path_is_refused(backbone):
    with pytest.raises(ValueError, match="train.path is not set; give the clips"):
        run(backbone, "")


@pytest.mark.parametrize("name, pooling", [("video_ucf101", "mean"), ("video_ssv2", "concat")])
def test_shipped_configs_hold_the_published_values(name, pooling, pytestconfig):
    path = pytestconfig.rootpath / f"configs/evaluate/{name}.yaml"
    config = load_config(path, ["train.path=/clips", "test.path=/clips"], VideoEvaluation)
    assert (config.num_frames, config.pooling, config.crop_size) == (8, pooling, 224)
