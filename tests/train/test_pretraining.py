"""Runs with the objectives of DINO, iBOT and SimDINO: verified, exported, described, continued, distilled."""

import logging
import re

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from dinov2_hf.objectives import find_objective
from dinov2_hf.train import verify
from dinov2_hf.train.build import build_objective
from dinov2_hf.train.initialize import initialize
from dinov2_hf.weights import export_source, inspect_path

from ..parity.published import Recording
from .running import train

RUNS = {
    "dino": ["objective=dino", "dino.batch_norm=true"],
    "ibot": ["objective=ibot", "ibot.mask_shape=random"],
    "simdino": ["objective=simdino", "ibot.loss_weight=1", "ibot.mask_shape=random"],
}
PUBLISHED = """model.hidden_size=48 model.num_hidden_layers=3 model.num_attention_heads=3 model.interpolate_offset=0.1
dino.num_prototypes=112 dino.hidden_dim=64 dino.bottleneck_dim=24""".split()


@pytest.fixture(scope="module", params=RUNS)
def run(request, tiny_config_in, tmp_path_factory):
    """Name and folder of a run of six updates."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    train(tiny_config_in(folder, *RUNS[request.param]))
    return request.param, folder


def started(config):
    """The objective of a run that starts from `init.path`."""
    objective = build_objective(config)
    initialize(objective, config.init)
    return objective


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def different(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


def test_stretch_of_a_run_is_verified(run):
    assert verify.verify_run(run[1]).equal


def test_export_has_the_features_of_the_teacher_in_the_stock_class_and_its_head(run, tiny_config_in, tmp_path):
    name, folder = run
    export = export_source(str(folder), tmp_path / "export").output
    teacher = started(tiny_config_in(tmp_path / "next", *RUNS[name], f"init.path={folder}")).teacher.eval()
    pixels = torch.randn(2, 3, 32, 48)
    stock = hf.ViTModel.from_pretrained(export, add_pooling_layer=False).eval()
    with torch.no_grad():
        found = stock(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(found, teacher["backbone"](pixels).last_hidden_state, atol=1e-5, rtol=1e-5)
    heads = {f"dino_head.{key}": value for key, value in teacher["dino_head"].state_dict().items()}
    assert different(load_file(export / "heads.safetensors"), heads) == []
    card = (export / "README.md").read_text()
    what = {"dino": "(DINO)", "ibot": "(iBOT)", "simdino": "(SimDINO with masked patches)"}[name]
    assert what in card and f"objective={name}" in card
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", card, re.MULTILINE))
    if name == "simdino":
        assert rows["Width of the projections"] == "8, without prototypes" and not {"Centering", "Prototypes"} & set(
            rows
        )
        assert rows["Loss weights (dino_global, dino_local, ibot, coding_rate)"] == "1, 1, 1, 1"
    else:
        assert rows["Centering"] == "softmax" and rows["Teacher temperature"] == "0.04 to 0.07"
    if name == "ibot":
        assert rows["Prototypes"] == "24 (CLS), 20 (patches)" and rows["Teacher temperature of patches"]
    if name != "dino":
        assert rows["Masked patches"] == "10% to 50% in 50% of the global crops, at random"
    for path in (folder, export):
        text = inspect_path(str(path))
        assert f"{'no' if name == 'simdino' else 'K = 24'} prototypes, widths 32 -> 16 -> 16 -> 8" in text
        assert ("batch norm" in text) == (name == "dino") and ("20 prototypes of patches" in text) == (name == "ibot")


def test_run_continues_from_student_teacher_heads_and_centre_of_another(run, tiny_config_in, tmp_path):
    name, folder = run
    objective = started(tiny_config_in(tmp_path, *RUNS[name], f"init.path={folder}"))
    again = train(tiny_config_in(folder, *RUNS[name]), until=6).objective
    assert different(state(objective), state(again)) == []


def test_weights_of_one_objective_start_runs_with_the_others(run, tiny_config_in, tmp_path, caplog):
    """A mask token starts as in a run from scratch; a head whose tensors do not fit is refused naming the keys."""
    name, folder = run
    if name == "simdino":
        with pytest.raises(
            ValueError, match="last_layer.weight_g is absent there.*dino.num_prototypes.*init.heads=false"
        ):
            started(tiny_config_in(tmp_path, "objective=dino", f"init.path={folder}"))
        started(tiny_config_in(tmp_path, "objective=dino", f"init.path={folder}", "init.heads=false"))
        return
    if name == "ibot":
        with pytest.raises(
            ValueError, match="last_layer.weight_g is .* there and absent here.*init.heads=false"
        ) as refused:
            started(tiny_config_in(tmp_path, "objective=simdino", f"init.path={folder}"))
        assert "dino.hidden_dim" in str(refused.value) and "num_prototypes" not in str(refused.value)
        with pytest.raises(ValueError, match="last_layer2.*is .* there and absent here.*dino.batch_norm"):
            started(tiny_config_in(tmp_path, "objective=dino", f"init.path={folder}"))
        objective = started(tiny_config_in(tmp_path, "objective=dino", f"init.path={folder}", "init.heads=false"))
        assert "embeddings.mask_token" not in state(objective.student["backbone"])
        return
    caplog.set_level(logging.INFO, "dinov2_hf")
    shared = ["ibot.separate_head=false", "ibot.separate_teacher_head=false", "dino.batch_norm=true"]
    objective = started(tiny_config_in(tmp_path, "objective=ibot", *shared, f"init.path={folder}"))
    assert "the token for masked patches is new" in caplog.text and "new" not in caplog.text.split("token")[0]
    teacher = started(tiny_config_in(tmp_path, *RUNS["dino"], f"init.path={folder}")).teacher
    assert different(state(objective.teacher["dino_head"]), state(teacher["dino_head"])) == []


def test_prototypes_of_a_run_are_distilled_unless_patches_have_their_own(run, tiny_config_in, tmp_path):
    name, folder = run
    keys = ["objective=distill_prototypes", f"distill.teacher={folder}", "ibot.loss_weight=0"]
    config = tiny_config_in(tmp_path, *keys, "ibot.separate_head=false", "model.drop_path_rate=0")
    if name == "ibot":
        with pytest.raises(ValueError, match="dino_head of .* has prototypes of its own for patches.*distill_features"):
            build_objective(config)
    elif name == "simdino":
        with pytest.raises(ValueError, match="prototypes.*distill_features"):
            build_objective(config)
    else:
        assert train(config, until=1).step == 1


@pytest.mark.parametrize("name", ["dino_bn_steps", "ibot_steps"])
def test_full_checkpoint_of_the_published_code_gives_backbone_and_head_of_its_teacher(name, tiny_config_in, tmp_path):
    """As torch saves it: of data parallelism, with the prototypes of patches a second time where they are shared."""
    recording, kind = Recording(name), name.split("_")[0]
    networks = {role: recording.under(f"final.{role}.") for role in ("student", "teacher")}
    saved = {role: {f"module.{key}": value for key, value in state.items()} for role, state in networks.items()}
    torch.save(saved | {"epoch": 3}, tmp_path / "checkpoint.pth")
    keys = [f"objective={kind}", *PUBLISHED, f"init.path={tmp_path / 'checkpoint.pth'}"]
    keys += ["dino.batch_norm=true", "dino.norm_last_layer=false"] if kind == "dino" else ["ibot.separate_head=false"]
    keys += [] if kind == "dino" else ["ibot.separate_teacher_head=false"]
    config = tiny_config_in(tmp_path / "run", *keys)
    objective = started(config)
    expected = find_objective(config)(config).teacher
    recording.load(expected, "final.teacher")
    for networks in (objective.student, objective.teacher):
        assert different(state(networks), state(expected)) == []


def test_fixed_prototypes_of_other_lengths_are_refused(tiny_config_in, tmp_path):
    recording = Recording("dino_bn_steps")
    torch.save({"teacher": recording.under("final.teacher.")}, tmp_path / "checkpoint.pth")
    keys = ["objective=dino", *PUBLISHED, "dino.batch_norm=true", f"init.path={tmp_path / 'checkpoint.pth'}"]
    with pytest.raises(ValueError, match="other lengths than 1, which dino.norm_last_layer=true would keep; set it to"):
        started(tiny_config_in(tmp_path / "run", *keys))
