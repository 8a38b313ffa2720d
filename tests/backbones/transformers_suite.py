"""Transformers' own tests of models and backbones, on the classes of a module, and their outcomes.

The tests come from the source distribution (`fetch_suite.py`). It lacks the folder of the model testers and two modules
that the tests import: the tester is ours, and the tests of exporters and of text generation are left out.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
import unittest
import warnings
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from torch import nn

from .fetch_suite import FILES, suite_folder

PACKAGE = "transformers_tests"
"""The name under which the fetched files are imported."""
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
"""Modules that the source distribution lacks, and the class that is imported from each."""


class Outcome(NamedTuple):
    """What became of a test: `passed`, `skipped` or `failed`, and why."""

    kind: str
    reason: str = ""


class Tester:
    """What the tests ask for a configuration and inputs: crops of 30 pixels, patches of 2, two layers of width 32.

    Args:
        config_class: of the models.
        overrides: of its arguments.
    """

    batch_size, image_size, patch_size, num_channels = 3, 30, 2, 3
    hidden_size, num_hidden_layers, num_attention_heads, num_labels = 32, 2, 4, 10
    is_training = True
    mask_length, num_masks = 225, 112

    def __init__(self, config_class: type, **overrides: Any) -> None:
        self.config_class, self.overrides = config_class, overrides
        self.seq_length = self.mask_length + 1 + overrides.get("num_register_tokens", 0)

    def get_config(self) -> Any:
        names = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads")
        shape = {name: getattr(self, name) for name in names}
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        return self.config_class(**shape, **dropout, mlp_ratio=2, **self.overrides)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        sides = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": load_suite()[0].floats_tensor(list(sides))}


@cache
def load_suite() -> tuple[types.ModuleType, types.ModuleType]:
    """Imports the tests of models and of backbones.

    Raises:
        FileNotFoundError: they are not fetched.
    """
    folder = suite_folder()
    for name in FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name} of transformers' tests; fetch them: make test, or "
                "python tests/backbones/fetch_suite.py, which needs a package index with source distributions"
            )
    if PACKAGE not in sys.modules:
        _add_module(PACKAGE, __path__=[str(folder)])
        for name, mixin in LEFT_OUT.items():
            _add_module(f"{PACKAGE}.{name.split('.')[0]}", __path__=[])
            _add_module(f"{PACKAGE}.{name}", **{mixin: type(mixin, (), {})})
    with patch.dict("os.environ", TRANSFORMERS_TEST_DEVICE="cpu"), warnings.catch_warnings():  # read at the import
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        modeling, backbone = (importlib.import_module(f"{PACKAGE}.{name.removesuffix('.py')}") for name in FILES)
    return modeling, backbone


def _add_module(name: str, **content: Any) -> None:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)


def build_cases(prefix: str, classes: Any, **overrides: Any) -> dict[str, type[unittest.TestCase]]:
    """Returns the test case of each test, by its name; those of backbones begin with `backbone.`.

    Args:
        prefix: of the names of the classes, such as `Dinov2`.
        classes: the module that has the configuration, the model, the backbone and the classifier.
        overrides: of the configuration.
    """
    modeling, backbone = load_suite()
    config, model, maps, classifier = (
        getattr(classes, f"{prefix}{name}") for name in ("Config", "Model", "Backbone", "ForImageClassification")
    )

    class Models(modeling.ModelTesterMixin, unittest.TestCase):
        all_model_classes = (model, maps, classifier)
        test_resize_embeddings = False  # there is no vocabulary
        test_all_params_have_gradient = False  # a classifier takes no masks: the mask token has none
        test_can_init_all_missing_weights_before_2023 = True  # whatever year the head of the file names

        def setUp(self) -> None:
            self.model_tester = Tester(config, **overrides)

        def test_model_get_set_embeddings(self) -> None:
            """The mixin's asks for an `nn.Embedding`; the input embedding of these is a convolution."""
            for kind in self.all_model_classes:
                network = kind(self.model_tester.get_config())
                self.assertIsInstance(network.get_input_embeddings(), nn.Module)
                self.assertNotIsInstance(network.get_input_embeddings(), nn.Identity)
                network.set_input_embeddings(replacement := nn.Identity())
                self.assertIs(network.get_input_embeddings(), replacement)
                self.assertIsNone(network.get_output_embeddings())

        def test_reverse_loading_mapping(self) -> None:
            """Asks that every conversion of names is needed, and one is for SwiGLU only."""
            self.model_tester = Tester(config, **overrides | {"use_swiglu_ffn": True})
            super().test_reverse_loading_mapping()

    class Backbones(backbone.BackboneTesterMixin, unittest.TestCase):
        all_model_classes = (maps,)
        config_class = config

        def setUp(self) -> None:
            self.model_tester = Tester(config, **overrides)

    names = unittest.TestLoader().getTestCaseNames
    return {name: Models for name in names(Models)} | {f"backbone.{name}": Backbones for name in names(Backbones)}


def run(case: type[unittest.TestCase], name: str) -> Outcome:
    """Runs one test of a case; what it prints is dropped."""
    result = unittest.TestResult()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        case(name.removeprefix("backbone.")).run(result)
    if problems := [*result.errors, *result.failures]:
        return Outcome("failed", problems[0][1])
    if result.skipped:
        return Outcome("skipped", result.skipped[0][1])
    return Outcome("passed")
