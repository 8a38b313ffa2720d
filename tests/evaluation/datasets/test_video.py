import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, Video
from PIL import Image as Pillow

from dinov2_hf.config import SourceConfig
from dinov2_hf.evaluation.datasets import FolderFrames, LabeledClips, MaskedVideos, SampledFrames

LENGTHS = [3, 12, 5, 1]
KINDS = [0, 1, 0, 1]


def frame(clip, number):
    """A frame that says which it is by its colour."""
    return np.full((6, 8, 3), (40 * clip, 10 * number, 0), dtype=np.uint8)


@pytest.fixture(scope="module")
def clips(encode):
    """The frames of four clips."""
    return [[encode(frame(clip, number)) for number in range(length)] for clip, length in enumerate(LENGTHS)]


def source(path, **options):
    return SourceConfig(path=str(path), **options)


def in_folders(root, clips):
    for clip, (frames, kind) in enumerate(zip(clips, KINDS)):
        folder = root / ("run", "walk")[kind] / f"clip {clip}"
        folder.mkdir(parents=True)
        for number, data in enumerate(frames):
            (folder / f"frame_{number}.png").write_bytes(data)  # by name 10 comes before 2
        (folder / "notes.txt").write_text("no frame")
    return root


@pytest.fixture(scope="module")
def sources(tmp_path_factory, clips, encode):
    """The clips as every kind of source: name to configuration."""
    root = tmp_path_factory.mktemp("clips")
    in_folders(root / "folder", clips)
    in_folders(root / "splits" / "train", clips)
    label = ClassLabel(names=["run", "walk"])
    listed = [[{"bytes": data, "path": None} for data in frames] for frames in clips]
    columns = {"images": listed, "label": KINDS}
    dataset = Dataset.from_dict(columns, features=Features(images=List(Image()), label=label))
    dataset.to_parquet(root / "images.parquet")
    DatasetDict(train=dataset).save_to_disk(root / "saved")
    Dataset.from_dict(
        {"frames": clips, "label": KINDS}, features=Features(frames=List(Value("binary")), label=label)
    ).to_parquet(root / "bytes.parquet")
    Dataset.from_dict(
        {"frames": listed, "label": KINDS},
        features=Features(frames=List({"bytes": Value("binary"), "path": Value("string")}), label=label),
    ).to_parquet(root / "structs.parquet")
    files = [
        [f"folder/{('run', 'walk')[kind]}/clip {clip}/frame_{number}.png" for number in range(LENGTHS[clip])]
        for clip, kind in enumerate(KINDS)
    ]
    Dataset.from_dict(
        {"files": files, "label": KINDS}, features=Features(files=List(Value("string")), label=label)
    ).to_parquet(root / "paths.parquet")
    animations = []
    for frames in range(len(clips)):
        first, *others = [Pillow.fromarray(frame(frames, number)) for number in range(LENGTHS[frames])]
        animations.append(
            {"bytes": encode(first, "WEBP", save_all=True, append_images=others, lossless=True), "path": None}
        )
    Dataset.from_dict(
        {"animation": animations, "label": KINDS}, features=Features(animation=Image(), label=label)
    ).to_parquet(root / "animations.parquet")
    names = ("folder", "splits", "saved", *(f"{kind}.parquet" for kind in ("images", "bytes", "structs", "animations")))
    return {name: source(root / name) for name in names} | {
        "paths": source(root / "paths.parquet", image_column="files"),
    }


KINDS_OF_SOURCES = [
    "folder", "splits", "saved", "images.parquet", "bytes.parquet", "structs.parquet", "animations.parquet", "paths",
]  # fmt: skip


@pytest.mark.parametrize("name", KINDS_OF_SOURCES)
def test_every_kind_of_source_gives_the_frames_in_order_with_their_labels(name, sources):
    clips = LabeledClips(sources[name])
    assert clips.names == ["run", "walk"] and len(clips) == 4
    found = {}
    for index in range(len(clips)):
        pixels = []
        for number in range(clips.frames.count(index)):
            data, _ = clips.frames.read(index, number)
            pixels.append(np.array(Pillow.open(io.BytesIO(data)).convert("RGB"))[0, 0].tolist())
        found[pixels[0][0] // 40] = (clips.labels[index], pixels)
    for clip, (length, kind) in enumerate(zip(LENGTHS, KINDS)):
        assert found[clip] == (kind, [frame(clip, number)[0, 0].tolist() for number in range(length)])


@pytest.mark.parametrize("name", KINDS_OF_SOURCES)
def test_fingerprint_is_the_same_again_and_tells_sets_apart(name, sources):
    fingerprint = LabeledClips(sources[name]).fingerprint
    assert fingerprint == LabeledClips(sources[name]).fingerprint
    others = {LabeledClips(sources[other]).fingerprint for other in KINDS_OF_SOURCES if other != name}
    assert fingerprint not in others


def test_fingerprint_of_a_folder_changes_with_its_files(tmp_path, clips):
    in_folders(tmp_path, clips)
    before = LabeledClips(source(tmp_path)).fingerprint
    (tmp_path / "run" / "clip 0" / "frame_1.png").write_bytes(b"something else")
    after = LabeledClips(source(tmp_path)).fingerprint
    (tmp_path / "run" / "clip 0" / "frame_1.png").unlink()
    assert len({before, after, LabeledClips(source(tmp_path)).fingerprint}) == 3


class Counted:
    """Clips of the given lengths, whose frames are their numbers."""

    fingerprint = "x"

    def __init__(self, *lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def count(self, video):
        return self.lengths[video]

    def read(self, video, number):
        assert 0 <= number < self.lengths[video]
        return bytes([video, number]), ""


@pytest.mark.parametrize(
    "length, expected",
    [
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (16, [1, 3, 5, 7, 9, 11, 13, 15]),
        (80, [5, 15, 25, 35, 45, 55, 65, 75]),  # the middles of segments of ten
        (4, [0, 0, 1, 1, 2, 2, 3, 3]),
        (1, [0] * 8),
    ],
)
def test_frames_are_the_middles_of_equal_segments(length, expected):
    frames = SampledFrames(Counted(3, length), 8)
    assert len(frames) == 16
    assert [tuple(frames.read(8 + place)[0]) for place in range(8)] == [(1, number) for number in expected]


def test_clip_without_frames_reads_as_broken_ones():
    data, name = SampledFrames(Counted(0), 8).read(3)
    assert data == b"" and "clip 0" in name


def test_samples_of_other_numbers_have_other_fingerprints():
    assert SampledFrames(Counted(1), 8).fingerprint != SampledFrames(Counted(1), 4).fingerprint


def test_missing_lists_frames_and_files_read_as_broken(tmp_path, clips):
    rows = [[{"bytes": clips[0][0], "path": None}, None, {"bytes": b"text", "path": None}], None, []]
    features = Features(frames=List(Image()), label=Value("int64"))
    Dataset.from_dict({"frames": rows, "label": [1, 2, 2]}, features=features).to_parquet(tmp_path / "a.parquet")
    frames = LabeledClips(source(tmp_path / "a.parquet", label_column="label")).frames
    assert [frames.count(row) for row in range(3)] == [3, 0, 0]
    assert [frames.read(0, number)[0] for number in range(3)] == [clips[0][0], b"", b"text"]
    frames = FolderFrames([[None, tmp_path / "a.parquet"]])
    (tmp_path / "a.parquet").unlink()
    assert frames.count(0) == 2 and frames.read(0, 0)[0] == frames.read(0, 1)[0] == b""


def test_broken_animation_has_no_frames(tmp_path, encode):
    animation = encode(Pillow.new("L", (8, 8)), "GIF", save_all=True, append_images=[Pillow.new("L", (8, 8), 9)])
    rows = [{"bytes": data, "path": None} for data in (animation, b"text", animation[:40])]
    features = Features(a=Image(), label=Value("int64"))
    Dataset.from_dict({"a": rows, "label": [1, 2, 2]}, features=features).to_parquet(tmp_path / "a.parquet")
    frames = LabeledClips(source(tmp_path / "a.parquet", label_column="label")).frames
    assert frames.count(0) == 2 and frames.read(0, 1)[0].startswith(b"\x89PNG")
    assert frames.count(1) == 0
    for number in range(frames.count(2)):
        frames.read(2, number)  # does not raise
    assert frames.read(0, 7)[0] == b""


# --- refused ---------------------------------------------------------------------------------------------------------


def test_encoded_videos_are_refused_naming_the_remedy(tmp_path):
    rows = {"video": [{"bytes": b"mp4", "path": None}], "label": [0]}
    Dataset.from_dict(rows, features=Features(video=Video(), label=ClassLabel(names=["a"]))).save_to_disk(tmp_path)
    for options in ({}, {"image_column": "video"}):
        with pytest.raises(ValueError, match="encoded videos.*extract the frames.*ffmpeg"):
            LabeledClips(source(tmp_path, **options))


def test_single_images_are_refused_naming_what_is_wanted(paths):
    with pytest.raises(ValueError, match="single images, not clips: give a folder CLASS/CLIP/FRAME"):
        LabeledClips(source(paths["table.parquet"]))


def test_missing_split_is_refused_naming_those_there_are(sources):
    with pytest.raises(ValueError, match="split='validation'.*it has train"):
        LabeledClips(source(sources["splits"].path, split="validation"))
    with pytest.raises(ValueError, match="split='test'.*all `train`"):
        LabeledClips(source(sources["folder"].path, split="test"))


def test_validation_may_be_called_val(tmp_path, clips):
    in_folders(tmp_path / "val", clips)
    assert len(LabeledClips(source(tmp_path, split="validation"))) == 4


def test_several_labels_are_refused(tmp_path, clips):
    features = Features(frames=List(Value("binary")), label=List(Value("int64")))
    Dataset.from_dict({"frames": clips, "label": [[1], [2], [1], [2]]}, features=features).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="lists of labels"):
        LabeledClips(source(tmp_path, label_column="label"))


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def davis(tmp_path, encode):
    """Two videos as DAVIS lays them out, and a third one of another split; a frame has no mask."""
    for name, length in (("a", 3), ("b", 2), ("c", 2)):
        for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
            folder = tmp_path / kind / "480p" / name
            folder.mkdir(parents=True)
            for number in range(length):
                pixels = np.full((4, 6), number, dtype=np.uint8)
                (folder / f"{number:05}.{ending}").write_bytes(encode(pixels, "JPEG" if ending == "jpg" else "PNG"))
    (tmp_path / "Annotations/480p/a/00001.png").unlink()
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("a\nb\n")
    (tmp_path / "ImageSets/2017/train.txt").write_text("c\n")
    return tmp_path


def test_videos_of_davis_are_those_of_the_split_with_masks_by_name(davis):
    videos = MaskedVideos(source(davis, split="validation"))
    assert videos.names == ["a", "b"] and len(videos) == 2
    assert [videos.frames.count(video) for video in range(2)] == [3, 2]
    assert videos.mask(0, 1) is None
    np.testing.assert_array_equal(videos.mask(0, 2), np.full((4, 6), 2))
    assert MaskedVideos(source(davis, split="train")).names == ["c"]
    with pytest.raises(ValueError, match="split='test'.*it has train, val"):
        MaskedVideos(source(davis, split="test"))


def test_without_lists_all_videos_count_and_the_resolution_may_be_left_out(davis):
    (davis / "ImageSets").rename(davis / "other")
    assert MaskedVideos(source(davis)).names == ["a", "b", "c"]
    for kind in ("JPEGImages", "Annotations"):
        (davis / kind / "480p").rename(davis / "moved")
        (davis / kind).rmdir()
        (davis / "moved").rename(davis / kind)
    assert MaskedVideos(source(davis)).names == ["a", "b", "c"]


def test_listed_video_that_is_not_there_is_named(davis):
    (davis / "ImageSets/2017/val.txt").write_text("a\nz\n")
    with pytest.raises(ValueError, match="lists the video z"):
        MaskedVideos(source(davis, split="validation"))


def test_palette_of_a_mask_is_not_looked_at(davis, encode):
    indices = np.arange(24, dtype=np.uint8).reshape(4, 6)
    picture = Pillow.fromarray(indices)
    picture.putpalette(list(range(255, -1, -1)) * 3)
    (davis / "Annotations/480p/a/00000.png").write_bytes(encode(picture))
    np.testing.assert_array_equal(MaskedVideos(source(davis, split="validation")).mask(0, 0), indices)


def test_masks_of_too_many_objects_or_of_colours_are_refused_and_broken_ones_are_none(davis, encode, caplog):
    videos = MaskedVideos(source(davis, split="validation"))
    file = davis / "Annotations/480p/a/00000.png"
    file.write_bytes(encode(np.full((4, 6), 300, dtype=np.uint16)))
    with pytest.raises(ValueError, match="index 300; number the objects from 1 to 254"):
        videos.mask(0, 0)
    file.write_bytes(encode(np.zeros((4, 6, 3), dtype=np.uint8)))
    with pytest.raises(ValueError, match="has colours"):
        videos.mask(0, 0)
    file.write_bytes(b"text")
    assert videos.mask(0, 0) is None and "mask that cannot be decoded" in caplog.text


def table_of(tmp_path, clips, masks, name="masks"):
    features = Features({"frames": List(Value("binary")), name: List(Value("binary"))})
    path = tmp_path / f"{name}.parquet"
    Dataset.from_dict({"frames": clips, name: masks}, features=features).to_parquet(path)
    return path


def test_columns_of_a_table_are_found_or_named(tmp_path, clips, encode):
    masks = [[encode(np.full((6, 8), clip, dtype=np.uint8)) for _ in frames] for clip, frames in enumerate(clips)]
    for name in ("masks", "annotations"):
        assert MaskedVideos(source(table_of(tmp_path, clips, masks, name))).mask(2, 1)[0, 0] == 2
    path = table_of(tmp_path, clips, masks, "objects")
    assert MaskedVideos(source(path, label_column="objects")).mask(3, 0)[0, 0] == 3
    with pytest.raises(ValueError, match="called masks or annotations; its columns are frames, objects"):
        MaskedVideos(source(path))


def test_other_numbers_of_masks_than_frames_are_refused(tmp_path, clips):
    masks = [frames[1:] for frames in clips]
    with pytest.raises(ValueError, match="row 0 .* has 3 frames and 2 masks"):
        MaskedVideos(source(table_of(tmp_path, clips, masks)))
