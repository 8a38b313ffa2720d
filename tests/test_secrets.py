"""An access token in the place of another value: refused and masked before anything is written; foreign configs."""

import sys

import pytest

from dinov2_hf.cli import main
from dinov2_hf.cli.train import train
from dinov2_hf.config import (
    DINOv2RunConfig,
    PrototypeDistillationConfig,
    find_tokens,
    load_config,
    load_saved_config,
    masked,
    save_config,
)
from dinov2_hf.config.curation import CurationConfig
from dinov2_hf.config.evaluations import FineGrainedEvaluation, KnnEvaluation

TOKEN = "hf_" + "aB3d" * 8 + "xy"
PATH = "data.train.path=/images"
CURATION = ["output_dir=out", "pool.web.path=/web", "embed.model=m", "select=all"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


def refusal(*overrides, path=None, kind=DINOv2RunConfig):
    with pytest.raises(ValueError) as caught:
        load_config(path, list(overrides), kind)
    said = str(caught.value)
    assert TOKEN not in said and "\n" not in said
    return said


@pytest.mark.parametrize(
    "text, shown",
    [
        (TOKEN, "hf_***"),
        (f"me/{TOKEN}", "me/hf_***"),
        (f"https://user:{TOKEN}@hub.example.org/x and {TOKEN}.", "https://user:hf_***@hub.example.org/x and hf_***."),
        ("hf_oauth_eyJhbGciOi.JFZERTQS-abc_def.ghi", "hf_***"),
        ("api_org_" + "Q" * 34, "hf_***"),
        ("hf_hub, hf_home, runs/hf_vits14", "hf_hub, hf_home, runs/hf_vits14"),
    ],
)
def test_tokens_are_masked_and_other_words_stay(text, shown):
    assert masked(text) == shown and bool(find_tokens(text)) == (text != shown)


def test_the_value_of_hf_token_is_a_token_whatever_its_form(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "an own hub's secret")
    assert masked("x/an own hub's secret") == "x/hf_***"
    assert "an own" not in refusal(PATH, "hub.repo_id=an own hub's secret")
    monkeypatch.setenv("HF_TOKEN", "short")
    assert masked("short words") == "short words"


@pytest.mark.parametrize(
    "kind, given, override",
    [
        (DINOv2RunConfig, [PATH], f"hub.repo_id=me/{TOKEN}"),
        (DINOv2RunConfig, [PATH], f"init.path=https://user:{TOKEN}@hub/me/model"),
        (DINOv2RunConfig, [], f"data.train.path={TOKEN}"),
        (DINOv2RunConfig, [PATH], f"data.mix.web.path={TOKEN}"),
        (DINOv2RunConfig, [PATH], f"data.mix.{TOKEN}.path=/web"),
        (DINOv2RunConfig, [PATH], f"train.output_dir=runs/{TOKEN}"),
        (DINOv2RunConfig, [PATH], f"evaluations.a.config={TOKEN}.yaml"),
        (DINOv2RunConfig, [PATH], f"optim.base_lr={TOKEN}"),  # of the wrong type
        (DINOv2RunConfig, [PATH], f"optim={TOKEN}"),  # a section
        (DINOv2RunConfig, [PATH], f"crops.global_scale=[{TOKEN}]"),
        (DINOv2RunConfig, [PATH], f"optim.token={TOKEN}"),  # an unknown key
        (DINOv2RunConfig, [PATH], f"{TOKEN}=1"),
        (DINOv2RunConfig, [PATH], TOKEN),  # not an override
        (PrototypeDistillationConfig, [PATH], f"distill.teacher={TOKEN}"),
        (CurationConfig, CURATION, f"embed.model=me/{TOKEN}"),
        (CurationConfig, CURATION, f"filter.hooks=[{TOKEN}:f]"),
        (CurationConfig, CURATION, f"executor.sbatch_args.comment={TOKEN}"),
        (KnnEvaluation, [], f"train.path={TOKEN}"),
        (FineGrainedEvaluation, [], f"sets.a.train.path={TOKEN}"),
    ],
)
def test_a_token_is_refused_in_every_value_and_key_from_file_and_command_line(kind, given, override, folder):
    assert "hf_***" in refusal(*given, override, kind=kind)
    key, _, value = override.partition("=")
    for name in reversed(key.split(".")):
        value = f"{{{name}: {value}}}"
    (folder / "own.yaml").write_text(value)
    assert "hf_***" in refusal(*given, path=folder / "own.yaml", kind=kind)


def test_a_token_from_the_environment_is_refused_where_it_is_resolved(monkeypatch, folder):
    monkeypatch.setenv("MINE", TOKEN)
    assert "init.path=me/hf_*** in the configuration holds an access token" in refusal(
        PATH, "init.path=me/${oc.env:MINE}"
    )
    assert "hf_***" in refusal(PATH, "optim.base_lr=${oc.env:MINE}")
    assert "hf_***" in refusal(PATH, f"init.path=[{TOKEN}")  # not YAML
    (folder / "own.yaml").write_text("init: {path: '${oc.env:MINE}'}\n")
    assert "hf_***" in refusal(PATH, path=folder / "own.yaml")


def test_a_config_made_in_python_is_not_saved_with_a_token(folder):
    config = load_config(None, [PATH])
    config.hub.repo_id = f"me/{TOKEN}"
    with pytest.raises(ValueError, match=r"hub.repo_id=me/hf_\*\*\*"):
        save_config(config, folder / "config.yaml")
    assert not list(folder.iterdir())


COMMANDS = [
    ["push", "export", f"me/{TOKEN}"],
    ["push", "export", "me/model", "--tag", TOKEN],
    ["push", "export", "me/model", "--token", TOKEN],
    ["push", "export", "me/model", f"--message=with {TOKEN}", "--dry-run"],
    ["inspect", TOKEN],
    ["export", f"me/{TOKEN}", "out"],
    ["export", "model", f"out/{TOKEN}"],
    ["evaluate", "knn", "--model", TOKEN, "--data", "x"],
    ["evaluate", TOKEN],
    ["evaluate", "knn", "--model", "m", "--data", "x", f"test.path={TOKEN}", "--output", "out"],
    ["visualize", "pca", "--model", f"https://me:{TOKEN}@hub/x", "--images", "x"],
    ["visualize", "pca", "--model", "m", "--images", "x", "--output", f"{TOKEN}.png"],
    ["visualize", "page", "--model", "m", "--host", TOKEN],
    ["curate", *CURATION, f"seeds.a.path={TOKEN}"],
    ["data", "stats", f"data.train.path={TOKEN}"],
    ["data", "show", f"--config={TOKEN}"],
    [TOKEN],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: "-".join(arguments[:2]).replace(TOKEN, "TOKEN"))
def test_no_command_repeats_or_keeps_a_token(arguments, folder, capfd, caplog, monkeypatch):
    def attempt(run):
        with pytest.raises(SystemExit) as ended:
            run()
        said = capfd.readouterr()
        assert ended.value.code == 2 and "hf_***" in said.err and "HF_TOKEN or with `hf auth login`" in said.err
        assert TOKEN not in said.out + said.err + caplog.text and not list(folder.rglob("*"))

    attempt(lambda: main(arguments))
    monkeypatch.setattr(sys, "argv", ["pretrain.py", PATH, *arguments[1:]] if arguments[1:] else ["pretrain.py", TOKEN])
    attempt(lambda: train("Trains.", "dinov2"))


# --- configurations of others ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, place",
    [
        ("x/${oc.env:PRIVATE,none}/y", "config.yaml"),
        ("${oc.decode:${oc.env:PRIVATE}}", "metrics.jsonl"),
        ("${oc.create:${oc.env:PRIVATE}}", "run.json"),
        ("${train.output_dir}", "config.json"),
        ("${nothing:1}", "curation.yaml"),
        ("${oc.env:PRIVATE}", "checkpoints/step-00000001"),
    ],
)
def test_an_interpolation_in_the_folder_of_a_run_or_an_export_is_not_resolved(value, place, folder, monkeypatch):
    monkeypatch.setenv("PRIVATE", "what nobody may see")
    config = folder / (place if place.endswith(".yaml") else "own.yaml")
    save_config(load_config(None, [PATH]), config)
    config.write_text(config.read_text().replace("path: /images", f"path: {value}"))
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).touch()
    with pytest.raises(ValueError) as caught:
        load_config(config)
    assert f"data.train.path in {config} is an interpolation" in str(caught.value)
    with pytest.raises(ValueError) as caught:
        load_saved_config(config)
    assert "is not resolved in the folder of a run" in str(caught.value) and "nobody" not in str(caught.value)


def test_a_saved_config_may_have_no_interpolation_wherever_it_lies(folder, monkeypatch):
    monkeypatch.setenv("PRIVATE", "what nobody may see")
    for number, text in enumerate(["hub: {repo_id: '${oc.env:PRIVATE}'}", "data: {mix: {a: {path: '${x}'}}}"]):
        (folder / f"{number}.yaml").write_text(text)
        with pytest.raises(ValueError, match="is an interpolation, which could read the environment"):
            load_saved_config(folder / f"{number}.yaml")


def test_a_file_of_the_users_own_may_read_the_environment_and_the_value_is_saved(folder, monkeypatch):
    monkeypatch.setenv("IMAGES", "/mnt/images")
    (folder / "own.yaml").write_text(
        "data: {train: {path: '${oc.env:IMAGES}/train'}}\ntrain: {seed: '${.batch_size}'}\n"
    )
    config = load_config(folder / "own.yaml", ["train.output_dir=${oc.env:IMAGES}/run"])
    assert config.data.train.path == "/mnt/images/train" and config.train.seed == 64
    save_config(config, folder / "config.yaml")
    monkeypatch.delenv("IMAGES")
    assert load_saved_config(folder / "config.yaml") == config
    assert """'IMAGES' not found"; set it""" in refusal(path=folder / "own.yaml")


def test_a_value_that_would_be_read_back_as_an_interpolation_is_refused(folder):
    assert "has '${' in it" in refusal(r"data.train.path=\${oc.env:HOME}")
    config = load_config(None, [PATH])
    config.train.output_dir = "runs/${oc.env:HOME}"
    with pytest.raises(ValueError, match="train.output_dir="):
        save_config(config, folder / "config.yaml")
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "data: !!python/object/apply:os.mkdir [made]",
        "data: !!python/object/new:os.system ['mkdir made']",
        "data: !!python/name:os.system",
        "!!python/module:os",
        "&a [*a, *a]",
        "data: {train: [*nothing]}",
        "\x00\x01",
        "- a",
        "",
    ],
)
def test_a_saved_config_makes_plain_values_or_one_line(text, folder):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:
        load_saved_config(folder / "config.yaml")
    assert "\n" not in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
