"""What a run computes with: said in one line at its start, refused where a package is missing."""

import logging
import warnings

import pytest
import torch

from dinov2_hf.objectives import DINOv2
from dinov2_hf.train import Trainer, build_accelerator


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "precision fp32, attention eager, TF32 off, compilation off"),
        (
            ["train.precision=bf16", "model.attn_implementation=sdpa", "model.compile=true"],
            "precision bf16, attention sdpa, TF32 off, compilation on",
        ),
    ],
)
def test_a_run_says_in_one_line_what_it_computes_with(tiny_config, overrides, said, caplog):
    config = tiny_config(*overrides)
    with caplog.at_level(logging.INFO, "dinov2_hf"):
        Trainer.from_config(config, build_accelerator(config.train))
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if "TF32" in message] == [f"device cpu, {said}"]


@pytest.fixture
def tf32():
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


def test_tf32_is_said_where_it_is_on(tiny_config, caplog, tf32):
    config = tiny_config()
    with caplog.at_level(logging.INFO, "dinov2_hf"):
        Trainer.from_config(config, build_accelerator(config.train))
    assert "TF32 on" in caplog.text


@pytest.mark.parametrize("name", ["flash_attention_2", "xformers"])
def test_attention_whose_package_is_missing_is_refused_in_one_line(tiny_config, name):
    config = tiny_config(f"model.attn_implementation={name}")
    with pytest.raises(ValueError) as refused:
        Trainer.from_config(config, build_accelerator(config.train))
    message = str(refused.value)
    assert message.startswith(f"model.attn_implementation={name} needs")
    assert "pip install" in message and "sdpa" in message and "\n" not in message


def test_checkpointing_of_layers_calls_nothing_that_transformers_will_remove(tiny_config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = DINOv2(tiny_config("model.gradient_checkpointing=true"))
    student, teacher = (
        [block.gradient_checkpointing for block in networks["backbone"].blocks.values()]
        for networks in model.networks[""]
    )
    assert student == [True, True] and teacher == [False, False]
