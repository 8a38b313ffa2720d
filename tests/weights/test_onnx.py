"""ONNX in onnxruntime gives our features at any batch and size; the file imports exactly; what is missing is named."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn.functional import interpolate

from dinov2_hf.weights import open_weights, write_onnx
from dinov2_hf.weights.positions import bicubic_matrix


def run(path, pixels):
    """`last_hidden_state` and `pooler_output` in onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_outputs()] == ["last_hidden_state", "pooler_output"]
    return [torch.from_numpy(array) for array in session.run(None, {"pixel_values": pixels.numpy()})]


def shaken(tiny, **settings):
    """Position embeddings large enough that a wrong rule shows."""
    model = tiny(**settings).eval()
    torch.nn.init.normal_(model.embeddings.position_embeddings, std=0.5)
    return model


MODELS = {
    "no registers": dict(num_register_tokens=0),
    "original rule": dict(num_register_tokens=0, interpolate_offset=0.1, use_swiglu_ffn=True),
    "registers": dict(num_register_tokens=4),
    "registers, not square": dict(num_register_tokens=4, image_size=[32, 40], patch_size=[8, 4], use_swiglu_ffn=True),
}


MODELS_OF_VIT = {
    "vit": dict(use_mask_token=True),
    "vit, rule of DINO": dict(interpolate_offset=0.1, layer_norm_eps=1e-12),
}
CASES = [("tiny", settings) for settings in MODELS.values()]
CASES += [("tiny_vit", settings) for settings in MODELS_OF_VIT.values()]


@pytest.mark.parametrize("family, settings", CASES, ids=[*MODELS, *MODELS_OF_VIT])
@torch.no_grad()
def test_onnxruntime_gives_our_features_at_every_size_and_batch(request, tmp_path, family, settings):
    model = shaken(request.getfixturevalue(family), **settings)
    write_onnx(tmp_path / "model.onnx", model)
    for batch in (1, 3):
        # the training size, two that are not square, one patch, larger, and in between
        for size in ((32, 32), (24, 56), (64, 16), (8, 8), (96, 96), (32, 40)):
            pixels = torch.randn(batch, 3, *size)
            expected = model(pixels)
            tokens, pooled = run(tmp_path / "model.onnx", pixels)
            torch.testing.assert_close(tokens, expected.last_hidden_state, atol=1e-4, rtol=0)
            torch.testing.assert_close(pooled, expected.pooler_output, atol=1e-4, rtol=0)


def test_graph_keeps_our_names_and_config_and_tells_nothing_of_this_machine(tiny, tmp_path):
    model = tiny(num_register_tokens=4)
    attention = model.config._attn_implementation
    write_onnx(tmp_path / "model.onnx", model.train(), {"image_mean": [0.5]})
    assert model.training and model.config._attn_implementation == attention
    proto = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(proto)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    state = model.state_dict()
    mask = state.pop("embeddings.mask_token")
    assert tensors.keys() >= state.keys()
    assert [name for name in state if not np.array_equal(tensors[name], state[name].numpy())] == []
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    config = json.loads(metadata["config.json"])
    assert (config["model_type"], config["num_attention_heads"]) == ("dinov2_with_registers", 4)
    assert json.loads(metadata["preprocessor_config.json"]) == {"image_mean": [0.5]}
    assert torch.equal(open_weights(str(tmp_path / "model.onnx")).backbone()["embeddings.mask_token"], mask)
    (opset,) = proto.opset_import
    assert opset.version == 20
    dynamic = [dimension.dim_param for dimension in proto.graph.input[0].type.tensor_type.shape.dim]
    assert [bool(name) for name in dynamic] == [True, False, True, True]
    content = (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in content and b".py" not in content


@torch.no_grad()
def test_weights_of_large_models_lie_in_a_second_file(tiny, tmp_path):
    model = tiny(num_hidden_layers=1).eval()
    write_onnx(tmp_path / "model.onnx", model, weights_beside=True)
    assert (tmp_path / "model.onnx.data").stat().st_size > (tmp_path / "model.onnx").stat().st_size / 2
    pixels = torch.randn(1, 3, 24, 40)
    expected = model(pixels).last_hidden_state
    torch.testing.assert_close(run(tmp_path / "model.onnx", pixels)[0], expected, atol=1e-4, rtol=0)
    found = open_weights(str(tmp_path / "model.onnx")).backbone()
    assert [name for name, value in model.state_dict().items() if not torch.equal(found[name], value)] == []
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(ValueError, match="model.onnx is damaged or not an ONNX file: .*; export it again"):
        open_weights(str(tmp_path / "model.onnx"))


def test_foreign_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not ONNX at all")
    with pytest.raises(ValueError, match="is damaged or not an ONNX file"):
        open_weights(str(path))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), path)
    with pytest.raises(ValueError, match="has no config.json in its metadata, so that dinov2-hf did not write it"):
        open_weights(str(path))


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_are_named_with_their_extra(tiny, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'ONNX needs the package {package}; pip install "dinov2_hf\[onnx\]"'):
        write_onnx(tmp_path / "model.onnx", tiny())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("antialias", "offset"), [(False, 0.0), (True, 0.0), (False, 0.1)])
def test_bicubic_matrices_resample_as_interpolate_does(antialias, offset):
    for old in ((4, 4), (5, 3), (16, 16), (37, 37)):
        image = torch.randn(1, 6, *old)
        for new in ((1, 1), (2, 2), (3, 7), (7, 3), (16, 16), (20, 31), (37, 37), (50, 11), (107, 64)):
            target = {"size": new}
            if offset:
                target = {"scale_factor": tuple((n + offset) / o for n, o in zip(new, old))}
            expected = interpolate(image, mode="bicubic", antialias=antialias, **target)
            rows, columns = (bicubic_matrix(n, o, torch.tensor(o / (n + offset)), antialias) for n, o in zip(new, old))
            found = torch.einsum("ir,bcrs,js->bcij", rows, image, columns)
            torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
