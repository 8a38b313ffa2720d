"""The parts of docs/extend are trained, killed, resumed, evaluated, exported and inspected like our own."""

import importlib
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModel

from dinov2_hf.api.process import unchanged_process
from dinov2_hf.config import load_config
from dinov2_hf.features import open_backbone
from dinov2_hf.objectives import find_objective
from dinov2_hf.runs import RunFolder
from dinov2_hf.train.initialize import initialize
from dinov2_hf.weights import export_source, inspect_path, open_weights

from ..distributed.conftest import FSDP2, launch  # noqa: F401 - a fixture
from ..docs.pages import write_parts
from ..registries import importing_from
from .run import train as run_in_this_process

HERE = Path(__file__).parent
COMMON = """data.train.path=generator:circles data.num_workers=0
crops.global_size=32 crops.local_size=16 crops.num_local=1
optim.warmup_epochs=1 optim.base_lr=0.02 train.batch_size=4 train.epochs=3 train.epoch_length=2 train.log_every=1
train.precision=fp32 train.keep_checkpoints=3 evaluations.rank.protocol=rank evaluations.rank.epochs=1""".split()
VIT = """model.preset=tiny model.hidden_size=32 model.num_hidden_layers=2 model.num_attention_heads=2 model.patch_size=8
model.drop_path_rate=0.3""".split()
KINDS = {
    "conv": """model.family=small_conv model.width=12 ibot.loss_weight=0 terms.gram.weight=0.5 dino.num_prototypes=24
        dino.hidden_dim=16 dino.bottleneck_dim=8 teacher.warmup_temp_epochs=1""".split(),
    "masked": ["objective=masked_regression", "regression.hidden_dim=8", *VIT],
}
PROCESSES = [
    pytest.param(1, {}, id="one process"),
    pytest.param(2, FSDP2, id="two with FSDP2", marks=pytest.mark.slow),
]
TIMES = ("images_per_second",)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The folder of the parts."""
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def registered(parts):
    """The parts by the name of their file, registered for the tests of this file only."""
    with importing_from(parts):
        yield {path.stem: importlib.import_module(path.stem) for path in parts.glob("*.py")}


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def trained(launch, image_folder, parts, tmp_path_factory):  # noqa: F811
    """Folders of a run that was never stopped and of one that was killed after three updates, by kind and processes."""
    found = {}

    def train(kind, processes, environment):
        if (kind, processes) not in found:
            root = tmp_path_factory.mktemp(kind)
            (root / "rank.yaml").write_text(
                f"test: {{path: {image_folder}, split: train}}\ncrop_size: 32\nshare: true\n"
            )
            common = [*COMMON, *KINDS[kind], f"evaluations.rank.config={root / 'rank.yaml'}"]
            folders = root / "whole", root / "killed"
            for folder, until in zip((folders[0], folders[1], folders[1]), (-1, 3, -1)):
                overrides = [*common, f"train.output_dir={folder}"]
                if processes == 1:
                    with nullcontext() if until < 0 else pytest.raises(Killed), unchanged_process():
                        run_in_this_process(until, overrides, die)
                else:
                    with nullcontext() if until < 0 else pytest.raises(AssertionError):
                        launch(processes, HERE / "run.py", parts, until, *overrides, environment=environment)
            found[kind, processes] = tuple(map(RunFolder, folders))
        return found[kind, processes]

    return train


class Killed(BaseException):
    """Ends a run like a kill: nothing of ours catches it."""


def die():
    raise Killed


def weights_of(checkpoint):
    return json.loads((checkpoint / "provenance.json").read_text())["weights"]


@pytest.mark.parametrize(("processes", "environment"), PROCESSES)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_run_ends_as_the_one_that_was_not_stopped(trained, kind, processes, environment):
    whole, killed = trained(kind, processes, environment)
    first, second = whole.find_checkpoints(), killed.find_checkpoints()
    assert [path.name for path in first] == [f"step-{step:08d}" for step in (2, 4, 6)]
    assert list(map(weights_of, first)) == list(map(weights_of, second))
    lines = [
        [{name: value for name, value in line.items() if name not in TIMES} for line in run.read_metrics()]
        for run in (whole, killed)
    ]
    assert lines[0] == lines[1]
    terms = {"conv": {"loss/dino_global", "loss/dino_local", "loss/gram", "loss/koleo"}, "masked": {"loss/regression"}}
    assert {name for line in lines[0] for name in line if name.startswith("loss/")} == terms[kind]
    assert sum("rank.rank" in line for line in lines[0]) == 4  # at the start and after each epoch
    assert 0 < lines[0][0]["rank.rank"] <= 1


@pytest.mark.parametrize(("processes", "environment"), PROCESSES)
@pytest.mark.parametrize("kind", KINDS)
def test_export_gives_the_features_of_the_run_and_is_described(trained, tmp_path, kind, processes, environment):
    run, _ = trained(kind, processes, environment)
    pixels = torch.rand(2, 3, 32, 32)
    archive = export_source(str(run.path), tmp_path / "run.npz", "npz").output
    ours, *others = (open_backbone(str(path)).features(pixels, 1)[-1] for path in (run.path, run.export(), archive))
    for other in others:
        torch.testing.assert_close(ours.cls, other.cls)
        torch.testing.assert_close(ours.patches, other.patches)
    model = AutoModel.from_pretrained(run.export())
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    for path in (run.path, run.export(), archive):
        text = inspect_path(str(path))
        assert "parameters" in text and str(ours.cls.shape[1]) in text
    assert (run.export() / "README.md").read_text().startswith("---")


@pytest.mark.parametrize("format", ["hf", "npz"])
def test_export_of_a_family_from_outside_starts_a_run(trained, tmp_path, format):
    run, _ = trained("conv", 1, {})
    path = export_source(str(run.path), tmp_path / "run.npz", format).output if format == "npz" else run.export()
    config = load_config(None, [*COMMON[:-2], *KINDS["conv"], f"init.path={path}"])
    objective = find_objective(config)(config)
    initialize(objective, config.init)
    expected = open_weights(str(path)).backbone()
    for networks in objective.networks[""]:
        for name, tensor in networks["backbone"].state_dict().items():
            assert torch.equal(tensor, expected[name]), name
    wider = load_config(None, [*COMMON[:-2], *KINDS["conv"], f"init.path={path}", "model.width=8"])
    with pytest.raises(ValueError, match="the backbone at init.path=.* does not fit: .*set .*model.width"):
        initialize(find_objective(wider)(wider), wider.init)


def test_config_of_parts_from_outside_is_checked_like_our_own(registered):
    start = ["data.train.path=generator:circles"]
    with pytest.raises(ValueError, match="model.preset .* model.family=small_conv|model.preset"):
        load_config(None, [*start, "model.family=small_conv", "model.preset=tiny"])
    with pytest.raises(ValueError, match="terms.gram.normalise"):
        load_config(None, [*start, "terms.gram.normalise=false"])
    with pytest.raises(ValueError, match="dino .* is not read by objective=masked_regression"):
        load_config(None, [*start, "objective=masked_regression", "dino.loss_weight=1"])
    config = load_config(None, [*start, "terms.gram.weight=2", "terms.gram.normalize=false"])
    assert config.terms["gram"] == registered["gram"].GramConfig(weight=2, normalize=False)


def test_each_part_fits_on_a_page(parts, registered):
    assert registered.keys() == {"circles", "gram", "masked_regression", "npz", "rank", "small_conv"}
    for path in parts.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name


def test_masks_for_a_backbone_that_takes_none_are_refused():
    config = load_config(
        None, ["data.train.path=generator:circles", *COMMON[2:-2], *KINDS["conv"], "ibot.loss_weight=1"]
    )
    with pytest.raises(ValueError, match="model.family=small_conv takes no masks.*ibot.loss_weight=0"):
        find_objective(config)(config)
