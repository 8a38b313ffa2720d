"""Files of every type that is read, in folders and in tars, mapped and streamed."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from dinov2_hf.config import DINOv2RunConfig, load_config
from dinov2_hf.data import TrainingBatches, open_training_source

VALUES = np.random.default_rng(0).integers(0, 1000, (5, 30, 40)).astype(np.int16)


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def tiff(values):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in values:
            writer.write(page, photometric="minisblack", contiguous=False)
    return buffer.getvalue()


FIVE = {
    "npy": npy(VALUES),
    "tif": tiff(VALUES),
    "NPY": npy(VALUES.astype(">i2")),
    "tiff": tiff(VALUES.astype(np.uint16)),
}


def encoded(encode, kinds):
    image = Image.fromarray((VALUES[:3] // 4).astype(np.uint8).transpose(1, 2, 0))
    return {suffix: encode(image, kind) for suffix, kind in kinds.items()}


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize("where", ["folder", "tar"])
@pytest.mark.parametrize("num_channels", [3, 5])
def test_every_type_is_read_in_folders_and_tars(num_channels, where, streaming, tmp_path, encode, write_tar):
    kinds = {
        "jpg": "JPEG",
        "JPE": "JPEG",
        "jfif": "JPEG",
        "avif": "AVIF",
        "Png": "PNG",
        "webp": "WEBP",
        "jp2": "JPEG2000",
    }
    parts = FIVE if num_channels == 5 else encoded(encode, kinds) | {"tif": tiff(VALUES[:3]), "npy": npy(VALUES[:3])}
    path = tmp_path / "images"
    path.mkdir()
    if where == "tar":
        path = path / "shard.tar"
        write_tar(path, {f"{suffix}-{number}": {suffix: parts[suffix]} for number, suffix in enumerate(parts)})
    else:
        for number, (suffix, data) in enumerate(parts.items()):
            (path / f"{number}.{suffix}").write_bytes(data)
    overrides = [f"colors.mean={[0.5] * num_channels}", f"colors.std={[0.5] * num_channels}"]
    overrides += [f"data.train.path={path}", f"data.train.streaming={streaming}", f"model.num_channels={num_channels}"]
    overrides += ["crops.global_size=28", "crops.num_local=0", f"train.batch_size={len(parts)}"]
    config = load_config(None, overrides, DINOv2RunConfig)
    source = open_training_source(config.data, 0)
    assert {source.read(number).data for number in range(len(parts))} == set(parts.values())
    batch = TrainingBatches(source, config, 0, 1).batch(0)
    assert not batch.broken and batch.global_crops.shape[:2] == (2 * len(parts), num_channels)
