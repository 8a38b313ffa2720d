import logging
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from dinov2_hf.config import (
    DINOv2RunConfig,
    FeatureDistillationConfig,
    OptimConfig,
    PrototypeDistillationConfig,
    RunConfig,
    dotted_keys,
    load_config,
    load_saved_config,
    register_run_config,
    save_config,
    value_at,
)
from dinov2_hf.config.explain import explain
from dinov2_hf.config.loading import load_with_origins
from dinov2_hf.config.shorthand import describe_long_lengths

PATH, OUTPUT = "data.train.path=/images", "train.output_dir=/out"


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def refusal(*overrides, path=None):
    """The message with which a configuration is refused."""
    with pytest.raises(ValueError) as caught:
        load_config(path, [PATH, *overrides])
    return str(caught.value)


def test_defaults_hold_where_nothing_is_said():
    config = load_config(None, [PATH])
    expected = DINOv2RunConfig()
    expected.data.train.path, expected.train.output_dir = "/images", "runs/dinov2"
    expected.optim.betas = [0.9, 0.999]  # of the optimiser
    assert config == expected


def test_file_overrides_defaults_and_command_line_overrides_file(tmp_path):
    path = write(
        tmp_path,
        "optim: {base_lr: 0.001, min_lr: 0.0001}\ncrops:\n  local_scale: [0.1, 0.2]\ndata:\n  train: {path: /images}\n",
    )
    config = load_config(path, ["optim.base_lr=0.5"])
    assert config.optim.base_lr == 0.5  # command line
    assert config.optim.min_lr == 0.0001  # file
    assert config.optim.weight_decay == DINOv2RunConfig().optim.weight_decay  # default
    assert config.crops.local_scale == [0.1, 0.2]  # lists are replaced, not joined
    assert config.data.train.path == "/images"
    assert config.data.train.split == "train"  # a section given in part keeps its other defaults


def test_last_of_two_equal_overrides_wins():
    assert load_config(None, [PATH, "train.seed=1", "train.seed=2"]).train.seed == 2


def test_empty_file_is_the_defaults(tmp_path):
    config = load_config(write(tmp_path, ""), [PATH])
    assert config.train.output_dir == "runs/run"
    config.train.output_dir = "runs/dinov2"
    assert config == load_config(None, [PATH])


def test_configs_do_not_share_their_lists():
    first, second = load_config(None, [PATH]), load_config(None, [PATH])
    first.crops.global_scale[0] = 0.9
    assert second.crops.global_scale[0] == DINOv2RunConfig().crops.global_scale[0] == 0.32


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "0.0001", "1.0e-4"])
def test_scientific_notation_is_a_float(number, tmp_path):
    assert load_config(None, [PATH, f"optim.base_lr={number}"]).optim.base_lr == 1e-4
    path = write(tmp_path, f"optim:\n  base_lr: {number}\n")
    value = load_config(path, [PATH]).optim.base_lr
    assert isinstance(value, float) and value == 1e-4


def test_whole_numbers_are_accepted_as_floats():
    value = load_config(None, [PATH, "train.epochs=3"]).train.epochs
    assert isinstance(value, float) and value == 3


def test_optional_values_can_be_set_and_unset(tmp_path):
    path = write(tmp_path, "model: {hidden_size: 64}\n")
    assert load_config(path, [PATH]).model.hidden_size == 64
    assert load_config(path, [PATH, "model.hidden_size=null"]).model.hidden_size is None


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("optim.base_lrr", "optim.base_lr"),
        ("base_lr", "optim.base_lr"),
        ("optimm.base_lr", "optim"),
        ("data.train.pth", "data.train.path"),
        ("data.mix.web.pth", "data.mix.web.path"),
        ("data.mixture.web.path", "data.mix"),
        ("train.batchsize", "train.batch_size"),
        ("seed", "train.seed"),
    ],
)
def test_unknown_key_is_refused_naming_the_nearest(key, nearest, tmp_path):
    message = refusal(f"{key}=1")
    assert key.split("=")[0].startswith(message.split(" in the command line")[0])
    assert message.endswith(f"is not a config key; did you mean {nearest}?")

    *sections, name = key.split(".")
    text = "".join(f"{'  ' * depth}{section}:\n" for depth, section in enumerate(sections))
    path = write(tmp_path, f"{text}{'  ' * len(sections)}{name}: 1\n")
    message = refusal(path=path)
    assert str(path) in message
    assert message.endswith(f"is not a config key; did you mean {nearest}?")


def test_unknown_key_that_is_near_to_nothing_is_refused_with_the_sections():
    message = refusal("zzzz=1")
    assert message.startswith("zzzz in the command line is not a config key; known sections: ")
    for item in fields(DINOv2RunConfig):
        assert f" {item.name}" in message or item.name == "objective"


@pytest.mark.parametrize(
    "override, words",
    [
        ("optim.base_lr=fast", ["optim.base_lr", "'fast'", "Float"]),
        ("optim.min_lr=null", ["optim.min_lr", "float"]),
        ("train.batch_size=1.5", ["train.batch_size", "1.5", "Integer"]),
        ("train.batch_size=many", ["train.batch_size", "'many'", "Integer"]),
        ("crops.global_scale=[a,b]", ["crops.global_scale", "'a'", "Float"]),
        ("data.train.streaming=perhaps", ["data.train.streaming", "'perhaps'"]),
        ("data.train.path=[a]", ["data.train.path", "string"]),
        ("optim.base_lr.start=1", ["optim.base_lr", "start"]),
    ],
)
def test_wrong_type_is_refused_naming_key_and_value(override, words, tmp_path):
    message = refusal(override)
    assert "the command line" in message
    for word in words:
        assert word in message


def test_wrong_type_in_a_file_is_refused_naming_the_file(tmp_path):
    path = write(tmp_path, "optim:\n  base_lr: fast\n")
    message = refusal(path=path)
    assert message.startswith(f"optim.base_lr in {path}: ")
    assert "fast" in message


@pytest.mark.parametrize("value", ["0.5", "text"])
def test_scalar_in_place_of_a_list_is_refused_naming_key_and_value(value):
    message = refusal(f"crops.global_scale={value}")
    assert "crops.global_scale" in message
    assert value in message


@pytest.mark.parametrize("value", ["3", "null", "[1, 2]", "fast"])
def test_section_that_is_given_a_value_is_refused_naming_its_keys(value, tmp_path):
    for message in (refusal(f"optim={value}"), refusal(path=write(tmp_path, f"optim: {value}\n"))):
        assert message.startswith("optim=")
        assert "optim is a section" in message
        assert "optim.base_lr" in message and "optim.clip_grad" in message


def test_nested_section_that_is_given_a_value_is_refused_naming_its_keys():
    message = refusal("data.train=/images")
    assert "data.train is a section" in message and "data.train.path" in message


@pytest.mark.parametrize("override", ["optim.base_lr", "--optim.base_lr=1", "=1", "optim base_lr=1", ""])
def test_malformed_override_is_refused_with_an_example(override):
    message = refusal(override)
    assert repr(override) in message and "optim.base_lr=1e-3" in message


@pytest.mark.parametrize("value", ["[1] photos", "{a", "a: b: c", "${oc.env", "*x", "'x"])
def test_override_that_is_not_yaml_is_refused_in_one_line_and_can_be_quoted(value):
    message = refusal(f"init.path={value}")
    assert "\n" not in message and repr(f"init.path={value}") in message and "; quote the text: init.path=" in message
    if "$" not in value:
        assert load_config(None, [PATH, f'init.path="{value}"']).init.path == value


@pytest.mark.parametrize("text", ["- a\n- b\n", "3\n", "optim: {base_lr: 1\n"])
def test_file_without_sections_is_refused_naming_the_file(text, tmp_path):
    path = write(tmp_path, text)
    assert str(path) in refusal(path=path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml.* does not exist"):
        load_config(tmp_path / "nowhere.yaml", [PATH])


@pytest.mark.parametrize(
    "overrides, message",
    [
        ("model.preset=huge", "model.preset='huge' is not one of tiny, small, base, large, giant"),
        ("model.patch_size=0", "model.patch_size=0 is not positive; use a value above 0"),
        ("model.num_register_tokens=-1", "model.num_register_tokens=-1 is below 0; use 0 or more"),
        ("model.drop_path_rate=1", "model.drop_path_rate=1.0 is not in [0, 1); it is a share"),
        (
            "model.num_channels=1",
            "colors.mean=[0.485, 0.456, 0.406] has not 1 values, one for each of "
            "model.num_channels; `dinov2-hf data stats` measures them",
        ),
        ("model.interpolate_offset=1", "model.interpolate_offset=1.0 is not in [0, 1); it is a share"),
        ("init.path=/x init.channels=first", "init.channels='first' is not one of mean, repeat, random"),
        ("init.channels=mean", "init.channels=mean has no effect without init.path; leave it out"),
        ("dino.num_prototypes=0", "dino.num_prototypes=0 is not positive; use a value above 0"),
        ("ibot.bottleneck_dim=-4", "ibot.bottleneck_dim=-4 is not positive; use a value above 0"),
        ("dino.loss_weight=-1", "dino.loss_weight=-1.0 is below 0; use 0 or more"),
        ("koleo.loss_weight=nan", "koleo.loss_weight=nan is below 0; use 0 or more"),
        (
            "dino.loss_weight=0 ibot.loss_weight=0",
            "dino.loss_weight=0 and ibot.loss_weight=0 leave nothing to learn from the teacher; switch one on",
        ),
        ("ibot.mask_probability=1.5", "ibot.mask_probability=1.5 is not in [0, 1]; it is a share"),
        ("ibot.mask_ratio=[0.5,0.1]", "ibot.mask_ratio=[0.5, 0.1] is not [smallest, largest] within [0, 1]"),
        ("ibot.mask_ratio=[0.5]", "ibot.mask_ratio=[0.5] is not [smallest, largest] within [0, 1]"),
        ("teacher.centering=mean", "teacher.centering='mean' is not one of sinkhorn_knopp, softmax, none"),
        ("teacher.temp=0", "teacher.temp=0.0 is not positive; use a value above 0"),
        ("teacher.student_temp=nan", "teacher.student_temp=nan is not positive; use a value above 0"),
        ("teacher.warmup_temp_epochs=-1", "teacher.warmup_temp_epochs=-1.0 is below 0; use 0 or more"),
        ("teacher.momentum=1.1", "teacher.momentum=1.1 is not in [0, 1]; it is a share"),
        ("crops.num_local=-1", "crops.num_local=-1 is below 0; use 0 or more"),
        ("crops.flip_probability=2", "crops.flip_probability=2.0 is not in [0, 1]; it is a share"),
        ("crops.global_scale=[0.3,1.2]", "crops.global_scale=[0.3, 1.2] is not [smallest, largest] within [0, 1]"),
        ("crops.local_scale=[0,0]", "crops.local_scale=[0.0, 0.0] is not [smallest, largest] within [0, 1]"),
        ("crops.global_size=225", "crops.global_size=225 is not a multiple of model.patch_size=14; use 224 or 238"),
        ("crops.local_size=10", "crops.local_size=10 is not a multiple of model.patch_size=14; use 14"),
        (
            "model.family=resnet",
            "crops.local_size=98 is not a multiple of 32, the stride of model.family=resnet; use 96 or 128",
        ),
        ("crops.local_size=-14", "crops.local_size=-14 is not positive; use a value above 0"),
        ("colors.jitter_probability=-0.1", "colors.jitter_probability=-0.1 is not in [0, 1]; it is a share"),
        ("colors.brightness=1.5", "colors.brightness=1.5 is not in [0, 1]; it is a share"),
        ("colors.hue=0.6", "colors.hue=0.6 is not in [0, 0.5]; the colour circle is 1 around, published: 0.1"),
        (
            "colors.blur_probability=[0.5]",
            "colors.blur_probability=[0.5] has not 3 values; "
            "give those of global view 1, global view 2 and the local views",
        ),
        ("colors.blur_probability=[0,2,0]", "colors.blur_probability=2.0 is not in [0, 1]; it is a share"),
        ("colors.blur_sigma=[2,1]", "colors.blur_sigma=[2.0, 1.0] is not [smallest, largest] within [0, inf]"),
        (
            "colors.mean=[0.5,0.5]",
            "colors.mean=[0.5, 0.5] has not 3 values, one for each of "
            "model.num_channels; `dinov2-hf data stats` measures them",
        ),
        ("colors.std=[1,0,1]", "colors.std=[1.0, 0.0, 1.0] has a value that is not positive; use that of your images"),
        ("data.train.path=null", "data.train.path is not set; give a folder of images: data.train.path=/my/images"),
        ("data.num_workers=-1", "data.num_workers=-1 is below 0; use 0 or more"),
        ("data.shuffle_buffer=0", "data.shuffle_buffer=0 is not positive; use a value above 0"),
        ("data.lanes=-1", "data.lanes=-1 is below 0; use 0 or more"),
        ("data.train.weight=0", "data.train.weight=0.0 is not positive; use a value above 0"),
        (
            "data.mix.web.path=/web data.mix.web.weight=-1",
            "data.mix.web.weight=-1.0 is not positive; use a value above 0",
        ),
        (
            "data.mix.web.weight=2",
            "data.mix.web.path is not set; give a folder of images: data.mix.web.path=/more",
        ),
        ("data.max_broken_share=1.01", "data.max_broken_share=1.01 is not in [0, 1]; it is a share"),
        ("data.max_broken_shards=3", "data.max_broken_shards=3.0 is not in [0, 1]; it is a share"),
        ("optim.base_lr=0", "optim.base_lr=0.0 is not positive; use a value above 0"),
        ("optim.clip_grad=-1", "optim.clip_grad=-1.0 is below 0; use 0 or more"),
        ("optim.betas=[0.9]", "optim.betas=[0.9] has not 2 values; published: [0.9, 0.999]"),
        ("optim.betas=[0.9,1]", "optim.betas=1.0 is not in [0, 1); it is a share"),
        ("optim.optimizer=adam", "optim.optimizer='adam' is not one of adamw, sgd, lars"),
        ("optim.lr_rule=cubic", "optim.lr_rule='cubic' is not one of sqrt, linear"),
        ("optim.clip_by=layer", "optim.clip_by='layer' is not one of network, parameter"),
        (
            "optim.freeze_last_layer_by=zero",
            "optim.freeze_last_layer_by='zero' is not one of learning_rate, gradients",
        ),
        ("optim.optimizer=sgd optim.momentum=1", "optim.momentum=1.0 is not in [0, 1); it is a share"),
        (
            "optim.momentum=0.9",
            "optim.momentum=0.9 is not read by optim.optimizer=adamw; leave it out, or set optim.optimizer=sgd or lars",
        ),
        (
            "optim.optimizer=sgd optim.betas=[0.9,0.999]",
            "optim.betas=[0.9, 0.999] is not read by optim.optimizer=sgd; leave it out, or set optim.optimizer=adamw",
        ),
        (
            "optim.optimizer=lars optim.betas=[0.8,0.9]",
            "optim.betas=[0.8, 0.9] is not read by optim.optimizer=lars; leave it out, or set optim.optimizer=adamw",
        ),
        (
            "teacher.update=ema",
            "teacher.update='ema' is not one of momentum, previous_update, previous_epoch",
        ),
        ("model.drop_path_schedule=cosine", "model.drop_path_schedule='cosine' is not one of uniform, linear"),
        (
            "model.family=vit ibot.loss_weight=0 model.drop_path_schedule=cosine",
            "model.drop_path_schedule='cosine' is not one of uniform, linear",
        ),
        (
            "teacher.centering=softmax teacher.sinkhorn_queue=64",
            "teacher.sinkhorn_queue=64 is not read with teacher.centering=softmax; leave it out, or set "
            "teacher.centering=sinkhorn_knopp",
        ),
        (
            "teacher.target_entropy=1",
            "teacher.target_entropy=1.0 is not in (0, 1); it is a share of the maximum, such as 0.8",
        ),
        ("train.precision=fp8", "train.precision='fp8' is not one of auto, fp32, bf16, fp16"),
        ("train.batch_size=0", "train.batch_size=0 is not positive; use a value above 0"),
        ("train.epochs=1e-9", "train.epochs=1e-09 of 1250 updates is no update at all; use more"),
        (
            "train.batch_size=1",
            "train.batch_size=1 leaves KoLeo without neighbours; use 2 or more, or koleo.loss_weight=0",
        ),
        ("knn.reference.path=/images", "knn.reference.path is set but knn.query.path is not; give both, or neither"),
        ("knn.reference.path=/a knn.query.path=/b knn.k=0", "knn.k=0 is not positive; use a value above 0"),
        (
            "knn.reference.path=/a knn.query.path=/b knn.crop_size=100",
            "knn.crop_size=100 is not a multiple of model.patch_size=14; use 98 or 112",
        ),
        (
            "knn.reference.path=/a knn.query.path=/b knn.crop_size=10",
            "knn.crop_size=10 is not a multiple of model.patch_size=14; use 14",
        ),
    ],
)
def test_impossible_value_is_refused_with_rule_and_remedy(overrides, message):
    assert refusal(*overrides.split()) == message


@pytest.mark.parametrize(
    "override",
    ["train.epochs=inf", "train.seed=-1", "colors.mean=[nan,0,0]", "colors.std=[nan,1,1]", "model.hidden_size=0"],
)
def test_value_that_no_run_can_use_is_refused_naming_its_key(override):
    assert override.partition("=")[0] in refusal(override)


@pytest.mark.parametrize(
    "override",
    [
        "crops.num_local=0",
        "optim.clip_grad=0",
        "koleo.loss_weight=0",
        "ibot.loss_weight=0",
        "dino.loss_weight=0",
        "teacher.momentum=1",
        "crops.global_scale=[1,1]",
        "colors.hue=0.5",
        "model.num_register_tokens=0",
        "data.num_workers=0",
        "data.max_broken_share=0",
        "data.max_broken_shards=0",
    ],
)
def test_values_at_the_border_are_allowed(override):
    load_config(None, [PATH, override])


@pytest.mark.parametrize(
    ("optimizer", "betas", "momentum"), [("adamw", [0.9, 0.999], None), ("sgd", None, 0.9), ("lars", None, 0.9)]
)
def test_an_optimiser_has_the_settings_it_reads_and_no_others(tmp_path, optimizer, betas, momentum):
    config = load_config(None, [PATH, f"optim.optimizer={optimizer}"])
    assert (config.optim.betas, config.optim.momentum) == (betas, momentum)
    save_config(config, tmp_path / "config.yaml")
    assert load_saved_config(tmp_path / "config.yaml").optim == config.optim


def test_key_of_stochastic_depth_of_0_5_is_read_and_said_in_one_line(tmp_path, caplog):
    path = write(tmp_path, "model: {drop_path_uniform: false}\ndata: {train: {path: /images}}\n")
    config, (line,) = said_of(path, caplog, load_config)
    assert config.model.drop_path_schedule == "linear"
    assert line == (f"drop_path_uniform in {path} is a key of dinov2_hf 0.5; read as model.drop_path_schedule=linear")
    assert load_config(path, ["model.drop_path_schedule=uniform"]).model.drop_path_schedule == "uniform"
    assert load_config(path, ["model.drop_path_uniform=true"]).model.drop_path_schedule == "uniform"
    students = load_config(
        None,
        [
            "objective=distill_features",
            "distill.teacher=t",
            PATH,
            "students.b.drop_path_uniform=false",
            "crops.num_local=0",
        ],
    ).students
    assert students["b"].drop_path_schedule == "linear"
    assert "model.drop_path_uniform" in refusal("model.drop_path_uniform=maybe")


def test_batch_of_one_is_allowed_without_koleo():
    assert load_config(None, [PATH, "train.batch_size=1", "koleo.loss_weight=0"]).train.batch_size == 1


def test_sizes_follow_the_patch_size():
    config = load_config(None, [PATH, "model.patch_size=16", "crops.local_size=96", "crops.global_size=224"])
    assert config.crops.local_size == 96
    assert "use 96 or 112" in refusal("model.patch_size=16", "crops.local_size=98")


def test_knn_is_not_checked_where_it_is_off():
    config = load_config(None, [PATH, "knn.crop_size=100", "knn.query.path=/b"])
    assert not config.knn.enabled


def test_number_of_steps_is_epochs_times_length():
    config = load_config(None, [PATH, "train.epochs=2.5", "train.epoch_length=10"])
    assert config.train.num_steps == 25


def test_saved_config_loads_as_the_same_config(tmp_path):
    config = load_config(
        None,
        [
            PATH,
            "optim.base_lr=1e-4",
            "train.epochs=0.1",
            "model.hidden_size=64",
            "model.use_swiglu_ffn=true",
            "colors.blur_sigma=[0.25,0.75]",
            "data.train.streaming=true",
            "knn.reference.path=/a b/ü",
            "knn.query.path=/c",
            "data.train.split='train[:10%]'",
            OUTPUT,
        ],
    )
    save_config(config, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert again.optim.base_lr == 1e-4 and again.data.train.split == "train[:10%]"
    save_config(again, tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize("text", ["123", "1e-4", "null", "true", "/a: b", "/a #b", "[a]"])
def test_text_that_looks_like_another_type_survives_saving(text, tmp_path):
    config = load_config(None, [PATH])
    config.data.train.split = text
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").data.train.split == text


def test_sources_of_a_mixture_come_from_file_and_command_line(tmp_path):
    path = write(tmp_path, "data: {mix: {web: {path: /web, weight: 2}, own: {path: /own}}}\n")
    config = load_config(
        path,
        [PATH, OUTPUT, "data.mix.web.weight=3", "data.mix.more.path=/more", "data.mix.own.streaming=true"],
    )
    assert {name: (source.path, source.weight, source.streaming) for name, source in config.data.mix.items()} == {
        "web": ("/web", 3.0, False),
        "own": ("/own", 1.0, True),
        "more": ("/more", 1.0, False),
    }
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(None, [PATH]).data.mix == {}


@pytest.mark.parametrize("value", ["/web", "3", "[1]"])
def test_source_of_a_mixture_that_is_given_a_value_is_refused_naming_its_keys(value):
    message = refusal(f"data.mix.web={value}")
    assert "data.mix.web is a section" in message and "data.mix.web.path" in message
    message = refusal(f"data.mix={value}")
    assert "data.mix is a section" in message and "data.mix.NAME.path" in message


def test_source_of_a_mixture_with_an_odd_name_is_refused(tmp_path):
    path = write(tmp_path, "data: {mix: {a.b: {path: /web}}}\n")
    assert "'a.b'" in refusal(path=path)


def test_dotted_keys_of_a_mixture_are_those_of_its_sources():
    config = load_config(None, [PATH, "data.mix.web.path=/web"])
    keys = [key for key in dotted_keys(config) if key.startswith("data.mix")]
    assert "data.mix.web.path" in keys and "data.mix.web.weight" in keys and "data.mix" not in keys
    assert value_at(config, "data.mix.web.path") == "/web"
    assert value_at(config, "data.mix.other.path") is None
    assert [key for key in dotted_keys(load_config(None, [PATH])) if key.startswith("data.mix")] == ["data.mix"]


def test_dotted_keys_name_every_value_once():
    def count(config):
        values = (getattr(config, item.name) for item in fields(config))
        return sum(count(value) if is_dataclass(value) else 1 for value in values)

    config = DINOv2RunConfig()
    keys = list(dotted_keys(config))
    assert len(keys) == len(set(keys)) == count(config)
    assert value_at(config, "optim.base_lr") == config.optim.base_lr
    assert value_at(config, "knn.query.split") == "validation"


def test_every_value_can_be_set_by_its_dotted_key():
    config = load_config(None, [PATH])
    values = {key: value_at(config, key) for key in dotted_keys(config)}
    given = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
    assert load_config(None, given) == config


def test_architecture_leaves_out_what_is_not_set():
    architecture = load_config(None, [PATH, "model.hidden_size=64"]).model.architecture()
    assert architecture["hidden_size"] == 64 and architecture["patch_size"] == 14
    for name in ("preset", "gradient_checkpointing", "num_hidden_layers", "use_swiglu_ffn"):
        assert name not in architecture


def test_config_is_read_and_checked_without_torch_or_accelerate():
    script = """
import sys
from dinov2_hf.config import load_config
assert load_config(None, ["data.train.path=/images", "optim.base_lr=1e-4"]).optim.base_lr == 1e-4
print(sorted({"torch", "accelerate", "transformers", "datasets", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- objectives ------------------------------------------------------------------------------------------------------

PROTOTYPES = ["objective=distill_prototypes", "distill.teacher=/teacher"]
FEATURES = ["objective=distill_features", "distill.teacher=/teacher", "crops.num_local=0"]


def test_objective_chooses_the_configuration_wherever_it_is_given(tmp_path):
    path = write(tmp_path, "objective: distill_features\ndistill: {teacher: /t}\ncrops: {num_local: 0}\n")
    assert type(load_config(path, [PATH])) is FeatureDistillationConfig
    assert type(load_config(path, [PATH, "objective=distill_prototypes"])) is PrototypeDistillationConfig
    assert type(load_config(None, [PATH])) is DINOv2RunConfig
    for kind, given in ((PrototypeDistillationConfig, PROTOTYPES), (FeatureDistillationConfig, FEATURES)):
        assert load_config(None, [PATH, *given[1:]], kind) == load_config(None, [PATH, *given])
    assert refusal("objective=dinov1") == (
        "objective='dinov1' is not one of dino, dinov2, distill_features, distill_prototypes, ibot, simdino; a part of "
        "your own is there once its file is imported (--import FILE)"
    )


@pytest.mark.parametrize(
    "given, key, readers",
    [
        ([], "students.a.preset=tiny", "distill_features or distill_prototypes"),
        (PROTOTYPES, "ibot.mask_ratio=[0.1,0.5]", "dinov2 or ibot or simdino"),
        (PROTOTYPES, "distill.cls_weight=1", "distill_features"),
        (FEATURES, "teacher.temp=0.07", "dino or dinov2 or distill_prototypes or ibot"),
        (FEATURES, "dino.num_prototypes=1024", "dino or dinov2 or distill_prototypes or ibot or simdino"),
        (FEATURES, "koleo.loss_weight=0", "dinov2 or distill_prototypes"),
        (["objective=simdino"], "dino.num_prototypes=1024", "dino or dinov2 or distill_prototypes or ibot"),
        (["objective=simdino"], "teacher.temp=0.07", "dino or dinov2 or distill_prototypes or ibot"),
        (["objective=simdino"], "teacher.centering=none", "dino or dinov2 or distill_prototypes or ibot"),
        (["objective=simdino"], "ibot.separate_head=true", "dinov2 or distill_prototypes or ibot"),
        (["objective=simdino"], "koleo.loss_weight=0", "dinov2 or distill_prototypes"),
        (["objective=dino"], "coding_rate.eps=0.1", "simdino"),
    ],
)
def test_key_that_the_objective_does_not_read_is_refused_naming_those_that_do(given, key, readers):
    name, objective = key.partition("=")[0], (given or ["objective=dinov2"])[0]
    message = refusal(*given, key)
    said, _, rule = message.partition(" in the command line ")
    assert name == said or name.startswith(f"{said}.")
    assert rule == f"is not read by {objective}; remove it, or set objective={readers}"


@pytest.mark.parametrize("given", [PROTOTYPES, FEATURES])
def test_saved_config_of_a_distillation_loads_as_the_same_config_without_a_word(given, tmp_path, caplog):
    config = load_config(None, [PATH, OUTPUT, *given, "students.wide.preset=base"])
    save_config(config, tmp_path / "config.yaml")
    with caplog.at_level(logging.INFO, logger="dinov2_hf"):
        assert load_saved_config(tmp_path / "config.yaml") == config
    assert not caplog.records


OLD_PROTOTYPES = """
data: {train: {path: /images}}
distill: {teacher: /teacher}
dino: {num_prototypes: 512}
ibot: {mask_probability: 0.0, separate_head: true}
teacher: {temp: 0.05}
"""
OLD_FEATURES = """
data: {train: {path: /images}}
crops: {num_local: 0}
distill: {teacher: /teacher, objective: features, cosine_weight: 0.5}
dino: {loss_weight: 0.0}
ibot: {loss_weight: 0.0, mask_probability: 0.0}
koleo: {loss_weight: 0.0}
teacher: {momentum: 0.99, temp: 0.05}
"""


def said_of(path, caplog, read):
    with caplog.at_level(logging.INFO, logger="dinov2_hf"):
        config = read(path)
    return config, [record.getMessage() for record in caplog.records]


def test_config_of_0_5_that_distils_prototypes_is_translated_and_said_in_one_line(tmp_path, caplog):
    path = write(tmp_path, OLD_PROTOTYPES)
    config, (line,) = said_of(path, caplog, load_config)
    assert type(config) is PrototypeDistillationConfig and config.objective == "distill_prototypes"
    assert config.distill.teacher == "/teacher" and config.dino.num_prototypes == 512
    assert config.ibot.separate_head and config.teacher.temp == 0.05
    assert line.startswith(f"{path} is a configuration of dinov2_hf 0.5; read with objective=distill_prototypes; ")
    assert line.endswith(": ibot.mask_probability")


def test_config_of_0_5_that_distils_features_is_translated_naming_what_had_no_effect(tmp_path, caplog):
    path = write(tmp_path, OLD_FEATURES)
    config, (line,) = said_of(path, caplog, load_config)
    assert type(config) is FeatureDistillationConfig and config.objective == "distill_features"
    assert (config.distill.cosine_weight, config.teacher.momentum) == (0.5, 0.99)
    assert line.startswith(f"{path} is a configuration of dinov2_hf 0.5; read with objective=distill_features; ")
    assert line.endswith(": dino, ibot, koleo, teacher.temp")


def test_objective_of_0_5_on_the_command_line_overrides_the_one_of_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("objective: distill_prototypes\ndistill: {teacher: t}\ndata: {train: {path: /x}}\n")
    config = load_config(path, ["distill.objective=features", "crops.num_local=0"])
    assert type(config) is FeatureDistillationConfig


def test_masks_in_a_config_of_0_5_that_distils_prototypes_are_refused(tmp_path):
    path = write(tmp_path, OLD_PROTOTYPES.replace("mask_probability: 0.0", "mask_probability: 0.5"))
    assert "ibot.mask_probability" in refusal(path=path)


@pytest.mark.parametrize("name", ["pretrain", "distill_prototypes", "distill_features"])
def test_config_that_a_run_of_0_5_saved_is_read(name, caplog):
    """Files as 0.5 wrote them, every key in them; the values are not the defaults."""
    path = Path(__file__).parent / "configs_0_5" / f"{name}.yaml"
    config, (renamed, *lines) = said_of(path, caplog, load_saved_config)
    assert renamed.startswith(f"drop_path_uniform in {path} is a key of dinov2_hf 0.5; read as ")
    assert config.objective == {"pretrain": "dinov2"}.get(name, name)
    assert (config.optim.base_lr, config.train.seed, config.teacher.momentum) == (0.003, 7, 0.99)
    assert config.data.mix["web"].weight == 2.0
    if name == "pretrain":
        assert config.ibot.mask_ratio == [0.2, 0.4] and lines == []
        return
    assert config.students["wide"].preset == "base" and config.distill.teacher == "/teacher"
    (line,) = lines
    assert f"read with objective={name}" in line
    if name == "distill_prototypes":
        assert config.dino.num_prototypes == 512 and config.teacher.temp == 0.05
        assert "distill.cls_weight, distill.patch_weight" in line and "ibot.mask_ratio, ibot.mask_probability" in line
    else:
        assert config.distill.cosine_weight == 0.5
        assert "dino, ibot, koleo, teacher.centering, teacher.temp" in line


class Own(RunConfig):
    pass


def test_configuration_of_an_own_objective_is_registered_and_checked(monkeypatch):
    monkeypatch.setattr("dinov2_hf.config.run.RUNS", {})
    with pytest.raises(TypeError, match="objective 'own' must derive from RunConfig, not <class 'dict'>"):
        register_run_config("own")(dict)
    assert register_run_config("own")(Own) is Own


def test_mapping_is_read_as_a_file_is(tmp_path):
    values = {"data": {"train": {"path": "/images"}}, "optim": {"betas": [0.8, 0.9]}, "train": {"output_dir": tmp_path}}
    config = load_config(values, ["optim.base_lr=1e-3"])
    assert config.optim.betas == [0.8, 0.9] and config.optim.base_lr == 1e-3
    assert config.train.output_dir == str(tmp_path)
    with pytest.raises(ValueError, match="optim.base_lrr in the mapping is not a config key; did you mean"):
        load_config({"optim": {"base_lrr": 1}}, [PATH])
    with pytest.raises(ValueError, match="the mapping does not hold sections and keys: .*object"):
        load_config({"optim": {"base_lr": object()}}, [PATH])


# shares of the run, and the learning rate itself


@pytest.mark.parametrize("share", ["10%", "12.5%", "0%", "100 %"])
def test_length_that_is_a_share_of_the_run_is_kept_in_epochs(share, tmp_path):
    path = write(tmp_path, f"optim: {{warmup_epochs: {share}}}\ntrain: {{epochs: 3}}")
    keys = [f"teacher.warmup_temp_epochs={share}", f"init.head_warmup_epochs={share}", f"ibot.mask_start_epoch={share}"]
    config = load_config(path, [PATH, OUTPUT, "train.epochs=40", f"optim.freeze_last_layer_epochs={share}", *keys])
    expected = 40 * float(share.rstrip(" %")) / 100
    assert config.optim.warmup_epochs == config.optim.freeze_last_layer_epochs == pytest.approx(expected)
    assert config.teacher.warmup_temp_epochs == config.init.head_warmup_epochs == pytest.approx(expected)
    assert config.ibot.mask_start_epoch == pytest.approx(expected)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_later_layer_wins_whether_it_gives_epochs_or_a_share(tmp_path):
    path = write(tmp_path, "optim: {warmup_epochs: 10%, freeze_last_layer_epochs: 2}\ntrain: {epochs: 50}")
    config = load_config(path, [PATH, "optim.warmup_epochs=3", "optim.freeze_last_layer_epochs=4%"])
    assert (config.optim.warmup_epochs, config.optim.freeze_last_layer_epochs) == (3, 2)


def test_share_is_of_the_length_that_an_interpolation_gives_and_can_be_referred_to(tmp_path, monkeypatch):
    monkeypatch.setenv("EPOCHS", "20")
    text = "optim: {warmup_epochs: 10%, freeze_last_layer_epochs: '${optim.warmup_epochs}'}"
    path = write(tmp_path, f"{text}\ntrain: {{epochs: '${{oc.env:EPOCHS}}'}}")
    optim = load_config(path, [PATH]).optim
    assert (optim.warmup_epochs, optim.freeze_last_layer_epochs) == (2, 2)


def test_share_is_explained_with_where_it_comes_from(tmp_path):
    path = write(tmp_path, "optim: {warmup_epochs: 10%}")
    lines = explain(load_with_origins(path, [PATH, "teacher.warmup_temp_epochs=30%"], DINOv2RunConfig)).splitlines()
    assert f"  warmup_epochs: 10.0  # {path}, 10% of the run" in lines
    assert "  warmup_temp_epochs: 30.0  # the command line, 30% of the run" in lines


def test_share_above_the_run_and_of_what_is_no_length_are_refused():
    message = "optim.warmup_epochs=150% in the command line is longer than the run; use 100% or less"
    assert refusal("optim.warmup_epochs=150%") == message
    assert "optim.min_lr" in refusal("optim.min_lr=10%") and "'10%'" in refusal("optim.min_lr=10%")
    assert "'ten%'" in refusal("optim.warmup_epochs=ten%")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("train.epochs=0.16", "warmup_epochs=10 freeze_last_layer_epochs=1 warmup_temp_epochs=30"),
        ("train.epochs=30", "warmup_temp_epochs=30"),
        ("train.epochs=31", ""),
        ("train.epochs=30 teacher.temp=0.04", ""),
        ("train.epochs=5 optim.warmup_epochs=10% teacher.warmup_temp_epochs=30%", ""),
        ("train.epochs=20 init.path=/a init.head_warmup_epochs=20", "head_warmup_epochs=20 warmup_temp_epochs=30"),
        ("objective=simdino train.epochs=1 optim.warmup_epochs=0", ""),
    ],
)
def test_lengths_that_fill_the_run_are_named_with_the_remedy(keys, named):
    line = describe_long_lengths(load_config(None, [PATH, *keys.split()])) or ""
    assert [part.partition(".")[2] for part in re.findall(r"[a-z]+\.\w+=[\d.]+(?=[,;])", line)] == named.split()
    assert ("give shares of the run: " in line) == bool(named) and "\n" not in line
    assert "optim.warmup_epochs=10%" in line or "warmup_epochs=10 " not in f"{named} "


def test_learning_rate_itself_holds_whatever_the_batch(tmp_path):
    config = load_config(None, [PATH, OUTPUT, "optim.lr=1e-3"])
    assert config.optim.base_lr is None and config.optim.lr_key == "optim.lr"
    assert config.optim.peak_lr(16) == config.optim.peak_lr(4096) == 1e-3
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    again = load_config(tmp_path / "saved.yaml", ["optim.base_lr=2e-3"])
    assert (again.optim.lr, again.optim.base_lr, again.optim.peak_lr(256)) == (None, 2e-3, 1e-3)


def test_learning_rate_of_the_later_layer_wins(tmp_path):
    for text, keys, expected in (
        ("lr: 1e-3", "base_lr=2e-3", (None, 2e-3)),
        ("base_lr: 2e-3", "lr=1e-3", (1e-3, None)),
    ):
        optim = load_config(write(tmp_path, f"optim: {{{text}}}"), [PATH, f"optim.{keys}"]).optim
        assert (optim.lr, optim.base_lr) == expected


def test_two_learning_rates_in_one_place_none_and_an_impossible_one_are_refused():
    message = refusal("optim.lr=1e-3", "optim.base_lr=2e-3")
    assert message.startswith("optim.lr=0.001 and optim.base_lr=0.002 in the command line: ")
    assert message.endswith("; leave one out")
    assert refusal("optim.base_lr=null") == "optim.base_lr and optim.lr are not set; give one of them"
    assert refusal("optim.lr=0") == "optim.lr=0.0 is not positive; use a value above 0"
    with pytest.raises(ValueError, match="optim.lr=0.1 and optim.base_lr=0.004 are both set; set one of them to None"):
        OptimConfig(lr=0.1).check()
