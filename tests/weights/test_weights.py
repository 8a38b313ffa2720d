"""What a file is, is told by what is in it; what cannot be read is named and never runs."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from transformers import Dinov2Config as StockConfig
from transformers import Dinov2ForImageClassification as StockForImageClassification

from dinov2_hf import Dinov2Model
from dinov2_hf.objectives import DINOHead
from dinov2_hf.weights import FORMATS, open_weights, to_original, to_timm, write_original
from dinov2_hf.weights.tensors import TensorFile
from dinov2_hf.weights.wrappings import are_heads


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def different(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


def heads_of(width=48):
    torch.manual_seed(1)
    heads = {"dino_head": DINOHead(width, 24, 16, 8), "ibot_head": DINOHead(width, 20, 16, 8, num_layers=2)}
    return {f"{name}.{key}": value for name, head in heads.items() for key, value in head.state_dict().items()}


def flat(heads):
    return {f"{name}.{key}": value for name, state in heads.items() for key, value in state.items()}


def refusal(path, kind=ValueError, **options):
    with pytest.raises(kind) as caught:
        open_weights(str(path), **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"SOURCE={path}")
    return message


def test_names_tell_whose_they_are(tiny):
    def knowing(*names):
        file = TensorFile.of(dict.fromkeys(names, torch.zeros(1)))
        place = SimpleNamespace(path="x.pth", is_file=True, file=file)
        return [name for name in ("hf", "timm") if FORMATS[name].holds(place)]

    state = state_of(tiny())
    original = to_original(state)
    assert knowing(*state) == knowing(*(f"dinov2.{name}" for name in state)) == ["hf"]
    assert knowing(*original) == knowing(*(f"module.backbone.{name}" for name in original)) == []
    for registers in (0, 2):
        assert knowing(*to_timm(state_of(tiny(num_register_tokens=registers)))[0]) == ["timm"]
        assert knowing(*to_original(state_of(tiny(num_register_tokens=registers)))) == []
    assert are_heads(heads_of()) and not are_heads(state) and not are_heads([])
    assert knowing(*heads_of()) == knowing("conv1.weight", "fc.bias") == knowing() == []


@pytest.mark.parametrize("wrapped", ["plain", "teacher", "model", "prefixed"])
def test_original_files_are_read_in_all_their_wrappings(tiny, tmp_path, wrapped):
    state, heads = state_of(tiny()), heads_of()
    original = {f"backbone.{name}": value for name, value in to_original(state).items()} | heads
    content = {
        "plain": to_original(state),
        "teacher": {"teacher": original},
        "model": {"model": original, "iteration": 3},
        "prefixed": {"model": {f"teacher.{name}": value for name, value in original.items()}},
    }[wrapped]
    torch.save(content, tmp_path / "model.pth")
    weights = open_weights(str(tmp_path / "model.pth"), num_attention_heads=4)
    assert different(weights.backbone(), state) == []
    assert different(flat(weights.heads()), {} if wrapped == "plain" else heads) == []
    assert weights.kind == "file under the original names" + ("" if wrapped == "plain" else ", with heads")
    assert weights.config.num_attention_heads == 4


@pytest.mark.parametrize("nested", [False, True])
def test_training_state_gives_the_network_asked_for(tiny, tmp_path, nested):
    teacher = {f"backbone.{name}": value for name, value in to_original(state_of(tiny())).items()} | heads_of()
    student = {name: value + 1 for name, value in teacher.items()}
    content = {"student": student, "teacher": teacher}
    if not nested:
        content = {f"{role}.{name}": value for role, state in content.items() for name, value in state.items()}
        content = {"model": content, "optimizer": {"state": {}}, "iteration": 5}
    torch.save(content, tmp_path / "state.pth")
    for network, added in (("teacher", 0), ("student", 1)):
        weights = open_weights(str(tmp_path / "state.pth"), network=network, num_attention_heads=4)
        assert weights.kind == "training state of the original code"
        expected = {name: value + added for name, value in state_of(tiny()).items()}
        assert different(weights.backbone(), expected) == []
        assert different(flat(weights.heads()), {name: value + added for name, value in heads_of().items()}) == []


def test_student_is_refused_where_there_is_one_network(tiny, tmp_path):
    model = tiny()
    write_original(tmp_path / "model.pth", model)
    model.save_pretrained(tmp_path / "folder")
    torch.save({"teacher": to_original(state_of(model))}, tmp_path / "teacher.pth")
    for name in ("model.pth", "folder"):
        message = refusal(tmp_path / name, network="student")
        assert "holds one network, not a student beside its teacher; leave --network out" in message
    assert "holds a teacher only" in refusal(tmp_path / "teacher.pth", network="student")


def test_attention_heads_are_guessed_only_where_nothing_tells(tiny, tmp_path):
    model = tiny(hidden_size=128, num_attention_heads=4)
    torch.save(to_original(state_of(model)), tmp_path / "plain.pth")
    write_original(tmp_path / "ours.pth", model)
    for name, option, heads, known in (
        ("plain.pth", None, 2, False),
        ("plain.pth", 4, 4, True),
        ("ours.pth", None, 4, True),
    ):
        weights = open_weights(str(tmp_path / name), num_attention_heads=option)
        assert (weights.config.num_attention_heads, weights.knows_num_attention_heads) == (heads, known)


def test_weights_file_of_a_folder_is_read_with_and_without_its_config(tiny, tmp_path):
    model = tiny(num_register_tokens=0, interpolate_antialias=True)
    model.save_pretrained(tmp_path)
    weights = open_weights(str(tmp_path / "model.safetensors"))
    assert weights.kind == "folder that transformers loads" and weights.config.num_attention_heads == 4
    assert weights.config.interpolate_antialias
    (tmp_path / "config.json").unlink()
    weights = open_weights(str(tmp_path / "model.safetensors"), num_attention_heads=4)
    assert weights.kind.endswith("without its config.json")
    assert different(weights.backbone(), state_of(model)) == []
    # the rule of the stock class, which wrote such names
    assert (weights.config.interpolate_antialias, weights.config.interpolate_offset) == (False, 0.0)


def test_classifier_is_left_out_and_named(tmp_path):
    config = StockConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, image_size=56, num_labels=3)
    StockForImageClassification(config).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    weights = open_weights(str(tmp_path))
    assert weights.remarks == ["classifier.bias (and 1 tensors more) is left out: no part of the backbone"]
    expected = {name.removeprefix("dinov2."): value for name, value in saved.items() if name.startswith("dinov2.")}
    assert different(weights.backbone(), expected) == []


def test_heads_and_preprocessor_beside_a_model_are_taken(tiny, tmp_path):
    tiny().save_pretrained(tmp_path)
    save_file(heads_of(), tmp_path / "heads.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1]}))
    weights = open_weights(str(tmp_path))
    assert different(flat(weights.heads()), heads_of()) == [] and weights.preprocessor == {"image_mean": [0.1]}
    assert "holds projection heads only; give the folder" in refusal(tmp_path / "heads.safetensors")


def test_model_that_is_not_whole_is_refused_when_it_is_built(tiny, tmp_path):
    write_original(tmp_path / "model.pth", tiny())
    whole = torch.load(tmp_path / "model.pth", weights_only=True)
    for change, named in (
        ({"norm.bias": None}, "layernorm.bias is missing"),
        ({"norm.bias": torch.ones(3)}, "layernorm.bias is [3] and not [48]"),
        ({"pos_embed": torch.ones(1, 13, 48)}, "embeddings.position_embeddings is [1, 13, 48] and not [1, 17, 48]"),
        ({"blocks.3.ls1.gamma": torch.ones(48)}, "encoder.layer.3.layer_scale1.lambda1 has no place"),
    ):
        state = whole.copy()
        state.update(change)
        state = type(whole)((name, value) for name, value in state.items() if value is not None)
        state.dinov2_hf = whole.dinov2_hf
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(ValueError) as caught:
            open_weights(str(tmp_path / "other.pth")).build()
        assert f"other.pth is not a whole backbone: {named}" in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors", ".onnx"])
def test_what_is_not_there_is_named(tmp_path, suffix):
    assert "does not exist" in refusal(tmp_path / f"nothing{suffix}", FileNotFoundError)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_pickles_that_could_run_code_are_refused_and_do_not(tmp_path, suffix):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    path = tmp_path / f"trap{suffix}"
    torch.save({"teacher": {"cls_token": Trap()}}, path)
    assert "is damaged or holds other objects than tensors" in refusal(path)
    assert not (tmp_path / "sprung").exists()


def test_damaged_and_foreign_files_are_refused(tiny, tmp_path):
    write_original(tmp_path / "model.pth", tiny())
    tiny().save_pretrained(tmp_path / "folder")
    for source, name in (
        (tmp_path / "model.pth", "a.pth"),
        (tmp_path / "folder" / "model.safetensors", "a.safetensors"),
    ):
        path, content = tmp_path / name, source.read_bytes()
        for damaged in (content[: len(content) // 2], b"", b"text"):
            path.write_bytes(damaged)
            message = refusal(path)
            assert "is damaged" in message or "cannot be read" in message
    save_file({"conv1.weight": torch.ones(2)}, path)
    assert "'conv1.weight' does not belong to a DINOv2 backbone" in refusal(path)
    save_file({name: value for name, value in to_timm(state_of(tiny()))[0].items() if name != "pos_embed"}, path)
    assert "lacks 'pos_embed' and is not a whole DINOv2 backbone" in refusal(path)
    for content in ([torch.ones(1)], torch.ones(1), {}, {"teacher": None}, {"teacher": {"x": 1}}):
        torch.save(content, tmp_path / "a.pth")
        assert "is not a whole DINOv2 backbone" in refusal(tmp_path / "a.pth")


def test_backbone_is_built_in_the_type_of_its_file(tiny, tmp_path):
    tiny().to(torch.float16).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["layernorm.weight"].dtype == torch.float16
    backbone = open_weights(str(tmp_path)).build()
    assert {value.dtype for value in backbone.state_dict().values()} == {torch.float16}
    assert not backbone.training and not any(value.requires_grad for value in backbone.parameters())


def test_folder_is_built_with_the_class_of_transformers_where_that_is_wanted(tiny, tmp_path):
    """A frozen teacher keeps the bits that it had in 0.5."""
    tiny().save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path)(pixels).last_hidden_state[:, 0]
        found = open_weights(str(tmp_path)).build(stock=True).eval().features(pixels)[0].cls
    assert torch.equal(found, expected)
    assert isinstance(open_weights(str(tmp_path)).build(), Dinov2Model)
    write_original(tmp_path / "model.pth", tiny())
    assert isinstance(open_weights(str(tmp_path / "model.pth")).build(stock=True), Dinov2Model)
