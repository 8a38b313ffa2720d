"""Model cards say the facts, all that are known and none that are not, in words that the Hub's parser understands."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard

from dinov2_hf import Dinov2Config, Dinov2Model
from dinov2_hf.config import dotted_keys, load_config, value_at
from dinov2_hf.data import EvalTransform
from dinov2_hf.runs import RunFacts, RunFolder
from dinov2_hf.weights import model_card

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"
TRANSFORM = EvalTransform(256, 224, (0.5, 0.45, 0.4), (0.2, 0.25, 0.3))
KNN = EvalResult(
    task_type="image-classification",
    dataset_type="imagefolder",
    dataset_name="clothing",
    dataset_split="validation",
    metric_type="accuracy",
    metric_name="k-NN accuracy (%), k = 20",
    metric_value=32.04,
)


def backbone(preset="small", **options):
    with torch.device("meta"):
        return Dinov2Model(Dinov2Config.preset(preset, **options))


def render(config, facts, model=None, **options):
    """The card after a way through the Hub's parser: its metadata and its text."""
    card = ModelCard(str(model_card(model or backbone(num_register_tokens=4), TRANSFORM, config, facts, **options)))
    assert "None" not in card.content and "nan" not in card.text.split() and "{{" not in card.content
    assert "\n\n\n" not in card.content and "|  |" not in card.content and not re.search(r"\| *\n\n\|", card.content)
    for title in re.findall(r"^## (.+)", card.text, re.MULTILINE):
        assert card.text.split(f"## {title}\n")[1].split("\n## ")[0].strip(), title
    return card.data.to_dict(), card.text


def rows(text):
    return dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", text, re.MULTILINE))


@pytest.fixture
def config():
    return load_config(ROOT / "configs" / "pretrain" / "vits14_1gpu.yaml", ["data.train.path=/data/jane/satellite"])


def test_facts_of_a_run_are_told(config):
    facts = RunFacts(
        updates=1000,
        global_batch_size=256,
        num_processes=4,
        hardware="NVIDIA H100",
        hours=2.5,
        losses={"loss": 8.76543},
        results=[KNN],
        license="cc-by-4.0",
        base_model="facebook/dinov2-small",
    )
    data, text = render(config, facts)
    expected = {
        "Images of": "satellite",
        "Images read, with repetitions": "256,000",
        "Updates": "1,000 of 125,000",
        "Images per update": "256",
        "Peak learning rate": "0.001 (base 0.002)",
        "Warm-up": "12,500 updates",
        "Crops": "2 of 224 pixels and 8 of 98 pixels",
        "Masked patches": "10% to 50% in 50% of the global crops",
        "Prototypes": "16,384 (DINO)",
        "Device": "NVIDIA H100",
        "Processes": "4",
        "Training time, without evaluation": "2.5 hours",
        "loss": "8.765",
        "k-NN accuracy, k = 20, clothing, validation": "32.0 %",
        "Parameters": "21.6 M",
        "Normalisation": "mean 0.5, 0.45, 0.4, standard deviation 0.2, 0.25, 0.3",
    }
    assert expected.items() <= rows(text).items()
    assert "# DINOv2 ViT-S/14 with 4 registers trained on satellite" in text and "jane" not in text
    assert data["license"] == "cc-by-4.0" and data["base_model"] == "facebook/dinov2-small"
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "image-feature-extraction"
    (entry,) = data["model-index"]
    assert entry["name"] == "DINOv2 ViT-S/14 with 4 registers trained on satellite"
    (result,) = entry["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"name": "clothing", "type": "imagefolder", "split": "validation"}
    assert result["metrics"] == [{"type": "accuracy", "value": 32.04, "name": "k-NN accuracy (%), k = 20"}]


def test_facts_that_are_not_known_leave_no_trace(config):
    data, text = render(config, RunFacts())
    assert set(data) == {"library_name", "pipeline_tag", "tags"}
    for absent in ("Hardware", "Losses", "Evaluation", "Licence", "Started from", "Processes"):
        assert absent not in text
    assert rows(text)["Updates"] == "125,000" and rows(text)["Peak learning rate"] == "base 0.002"
    assert "They have not been evaluated." in text


@pytest.mark.parametrize("preset", ["small", "base", "large", "giant"])
@pytest.mark.parametrize("registers", [0, 4])
def test_every_size_has_its_name_and_registers(config, preset, registers):
    model = backbone(preset, num_register_tokens=registers)
    _, text = render(config, RunFacts(), model)
    letter = {"small": "S", "base": "B", "large": "L", "giant": "g"}[preset]
    assert f"# DINOv2 ViT-{letter}/14{' with 4 registers' if registers else ''} trained on" in text
    assert ("register tokens, then" in text) == bool(registers)
    assert rows(text)["Feed-forward"] == ("SwiGLU" if preset == "giant" else "MLP")


def test_unusual_architecture_is_described(config):
    model = backbone(
        "tiny", hidden_size=96, num_register_tokens=0, patch_size=(16, 8), image_size=(64, 64), num_channels=5
    )
    config.model.num_channels = 5
    _, text = render(config, RunFacts(), model)
    assert "# DINOv2 ViT of width 96 and 6 layers, patch 16x8 trained on" in text
    assert rows(text)["Channels"] == "5" and rows(text)["Patch"] == "16 x 8 pixels"


def test_overrides_for_continuing_give_the_same_architecture_and_heads():
    for path in sorted((ROOT / "configs" / "pretrain").glob("*.yaml")):
        config = load_config(path, ["data.train.path=/x", "init.path=/y"])
        _, text = render(config, RunFacts())
        command = re.search(r"^accelerate launch examples/pretrain.py (.+)$", text, re.MULTILINE)[1]
        again = load_config(None, command.split())
        assert again.init.path == "PATH_OR_REPO"
        assert again.objective == config.objective
        heads = ("num_prototypes", "hidden_dim", "bottleneck_dim", "num_layers", "batch_norm", "norm_last_layer")
        heads += ("separate_head", "separate_teacher_head")
        for key in dotted_keys(config):
            section, _, name = key.rpartition(".")
            if (section == "model" and name in config.model.architecture()) or name in heads:
                if name not in ("attn_implementation", "drop_path_rate", "layerscale_value"):
                    assert value_at(again, key) == value_at(config, key), f"{path.name}: {key}"


def test_further_student_of_a_distillation_has_its_own_shape():
    students = ["students.other.preset=base", "students.other.num_register_tokens=0"]
    given = ["objective=distill_prototypes", "data.train.path=/x", "distill.teacher=lab/vitg14"]
    config = load_config(None, [*given, *students])
    _, text = render(config, RunFacts(), backbone("base", num_register_tokens=0), student="other")
    assert "ViT-B/14 trained on" in text and "model.preset=base model.num_register_tokens=0" in text
    _, text = render(config, RunFacts())
    assert "model.preset=small" in text


def test_without_heads_there_is_no_word_of_them(config):
    _, text = render(config, RunFacts(), has_heads=False)
    assert "heads.safetensors" not in text and "init.path" not in text


def test_sets_and_models_on_the_hub_are_linked_and_folders_are_named(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    overrides = [
        "data.train.path=lab/photos",
        "data.mix.a.path=data/mine",
        "data.mix.b.path=/x/private/shards/*.parquet",
    ]
    overrides += ["data.mix.a.weight=2", "data.mix.b.weight=5", "data.train.name=small", "init.path=lab/dinov2-base"]
    config = load_config(ROOT / "configs" / "pretrain" / "vits14_1gpu.yaml", overrides)
    data, text = render(config, RunFacts.of_run(RunFolder(tmp_path), config))
    assert data["datasets"] == ["lab/photos"] and data["base_model"] == "lab/dinov2-base"
    shares = "lab/photos (small) (12% of the samples); mine (25% of the samples); shards (62% of the samples)"
    assert rows(text)["Images of"] == shares
    assert rows(text)["Started from"] == "lab/dinov2-base" and "private" not in text
    local = load_config(None, ["data.train.path=x", "init.path=data/mine"])
    data, text = render(local, RunFacts.of_run(RunFolder(tmp_path), local))
    assert "base_model" not in data and rows(text)["Started from"] == "mine"


@pytest.mark.parametrize("objective", ["prototypes", "features"])
def test_distilled_model_names_its_teacher(objective):
    given = ["data.train.path=/x/images", "distill.teacher=lab/vitg14", f"objective=distill_{objective}"]
    config = load_config(None, [*given, "crops.num_local=0"])
    data, text = render(config, RunFacts(), has_heads=False)
    assert rows(text)["Teacher"] == "lab/vitg14" and "distilled without labels from" in text
    assert ("Prototypes" in rows(text)) == (objective == "prototypes")
    assert "base_model" not in data


def test_licence_with_a_name_of_its_own_is_other(config):
    data, text = render(config, RunFacts(license="Clinic Licence 1.0"))
    assert (data["license"], data["license_name"]) == ("other", "clinic-licence-1.0")
    assert text.rstrip().endswith("## Licence\n\nClinic Licence 1.0")


def test_facts_are_read_from_what_a_run_writes(config, tmp_path):
    """300 updates of 512 images: 100 at 1000 images a second, 200 at 500, with an evaluation that takes none."""
    config.knn.reference.path, config.knn.query.path = "/x/train", "/x/clothing"
    lines = [
        {"step": 0, "knn_accuracy": 10.0},
        {"step": 100, "loss": 9.0, "images_per_second": 1000.0},
        {"step": 200, "loss": 8.0, "images_per_second": 500.0},
        {"step": 250, "knn_accuracy": 30.123},
        {"step": 300, "loss": 7.0, "loss/dino_global": 3.0, "loss/ibot": None, "lr": 0.1, "images_per_second": 500.0},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 400, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    for step in (100, 300):
        checkpoint = tmp_path / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "run.json").write_text(json.dumps({"step": step, "global_batch_size": 512}))
    facts = RunFacts.of_run(RunFolder(tmp_path), config, hardware="a GPU")
    assert (facts.updates, facts.global_batch_size, facts.num_processes) == (300, 512, 2)
    assert facts.hours == pytest.approx((100 * 512 / 1000 + 200 * 512 / 500) / 3600)
    assert facts.losses == {"loss": 7.0, "dino_global": 3.0}
    (result,) = facts.results
    assert (result.metric_value, result.dataset_name, result.dataset_split) == (30.12, "clothing", "validation")
    assert facts.hardware == "a GPU" and facts.license is None
    _, text = render(config, facts)
    assert rows(text)["Training time, without evaluation"] == "4.3 minutes"


def test_folder_in_which_nothing_was_written_gives_no_facts(config, tmp_path):
    assert RunFacts.of_run(RunFolder(tmp_path / "nowhere"), config) == RunFacts()


def test_facts_are_those_of_the_student_and_of_the_update_that_the_card_is_for(config, tmp_path):
    config.knn.reference.path, config.knn.query.path = "/x/train", "/x/clothing"
    lines = [
        {"step": 10, "loss": 9.0, "loss/cls_cosine": 0.9, "loss/small.cls_cosine": 0.8},
        {"step": 10, "knn_accuracy": 30.0, "small.knn_accuracy": 20.0},
        {"step": 20, "loss": 8.0, "loss/cls_cosine": 0.5, "loss/small.cls_cosine": 0.6},
        {"step": 20, "knn_accuracy": 50.0, "small.knn_accuracy": 40.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def told(**which):
        facts = RunFacts.of_run(RunFolder(tmp_path), config, **which)
        return facts.updates, facts.losses, [result.metric_value for result in facts.results]

    assert told() == (20, {"loss": 8.0, "cls_cosine": 0.5}, [50.0])
    assert told(student="small") == (20, {"cls_cosine": 0.6}, [40.0])
    assert told(student="small", until=15) == (10, {"cls_cosine": 0.8}, [20.0])
    assert told(until=5) == (None, {}, [])


@pytest.mark.parametrize("name", ["vits14", "vitb14", "vitl14", "vitg14"])
def test_cards_of_the_sizes_agree_with_the_recipes_they_name(name):
    card = ModelCard.load(CARDS / f"{name}.md")
    assert card.data.pipeline_tag == "image-feature-extraction" and "model-index" not in card.data.to_dict()
    found = rows(card.text)
    for path in re.findall(r"`(configs/[\w/]+\.yaml)`", card.text):
        assert (ROOT / path).is_file(), path
    config = load_config(ROOT / re.search(r"`(.+?)`", found["Config"])[1], ["data.train.path=/x"])
    options = {key: value for key, value in config.model.architecture().items() if key != "attn_implementation"}
    model = backbone(config.model.preset, image_size=config.crops.global_size, **options)
    batch = int(found["Images per update"].replace(",", ""))
    _, text = render(config, RunFacts(global_batch_size=batch), model)
    told = rows(text)
    assert found["Preset"] == f"`model.preset={config.model.preset}`"
    assert found["Parameters"].startswith(f"{told['Parameters']} at 224 pixels")
    for row in ("Width, layers, heads", "Patch", "Feed-forward", "Updates", "Images per update"):
        assert found[row] == told[row], row
    assert told["Register tokens"] in found["Register tokens"]
    assert float(found["Peak learning rate"]) == pytest.approx(float(told["Peak learning rate"].split()[0]), rel=0.01)
    assert f"{config.dino.num_prototypes:,}" in found["Prototypes"]
    assert "measured" in card.text and "weights of ours" in card.text


@pytest.mark.parametrize("bits", [12, 16])
def test_card_says_how_pictures_of_sixteen_bits_are_opened(bits, config):
    config.data.bits = bits
    _, text = render(config, RunFacts())
    given = ", bits=12" if bits == 12 else ""
    assert f'`dinov2_hf.data.load_image("image.png"{given})` opens them as training did' in " ".join(text.split())
    config.model.num_channels = 1
    _, text = render(config, RunFacts(), backbone(num_register_tokens=4, num_channels=1))
    assert "load_image" not in text
