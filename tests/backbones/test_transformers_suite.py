"""Transformers' own tests of models and backbones: on our classes every outcome is that of the stock classes.

Differences are listed with their reason below and in docs/fidelity.md. One that vanishes fails here until it is taken
off both lists.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest
import transformers

from dinov2_hf import backbones

from ..docs.pages import DOCS
from . import transformers_suite
from .transformers_suite import build_cases, load_suite, run


class Difference(NamedTuple):
    """The outcomes of a test on the stock classes and on ours, and why they differ."""

    stock: str
    ours: str
    reason: str


_NAMES = "parameters have the names of the published files, so that no names are converted when they are loaded"
DIFFERENCES = {
    "test_can_load_from_already_mapped_keys": Difference("passed", "skipped", _NAMES),
    "test_reverse_loading_mapping": Difference("passed", "skipped", _NAMES),
    "test_capture_outputs_decorator": Difference(
        "passed", "skipped", "the forward collects hidden states and attentions itself, not by `capture_outputs`"
    ),
    "test_can_capture_specific_layers_hidden_states": Difference(
        "passed", "skipped", "`output_hidden_states=[0, 2]` returns the hidden states of all layers"
    ),
}
VARIANTS = {
    "plain": ("Dinov2", {}),
    "registers": ("Dinov2WithRegisters", {"num_register_tokens": 2, "use_swiglu_ffn": True}),
}
"""The prefix of the stock classes, and what the configuration has beside the tester's values."""


@cache
def cases(variant):
    """The test cases of the stock classes and of ours, each by the name of the test."""
    prefix, overrides = VARIANTS[variant]
    return build_cases(prefix, transformers, **overrides), build_cases("Dinov2", backbones, **overrides)


def is_slow(variant, name):
    """Whether `make test` leaves it out: registers, and what takes seconds or repeats a test in half precision."""
    return variant != "plain" or name == "test_bc_torch_dtype" or re.search("inference_.*(fp16|bf16)", name)


def variants_and_names() -> Iterator:
    try:
        names = list(cases("plain")[0])
    except (FileNotFoundError, ModuleNotFoundError):  # collect the others; this one fails and says what is missing
        names = ["tests_of_transformers"]
    for variant, name in itertools.product(VARIANTS, names):
        marks = [pytest.mark.slow] if is_slow(variant, name) else []
        yield pytest.param(variant, name, id=f"{variant}-{name}", marks=marks)


@pytest.mark.parametrize("variant, name", variants_and_names())
def test_outcome_is_that_of_the_stock_class(variant, name):
    stock, ours = (run(found[name], name) for found in cases(variant))
    difference = DIFFERENCES.get(name)
    expected = difference[:2] if difference else (stock.kind, stock.kind)
    assert (stock.kind, ours.kind) == expected, f"{stock.reason}\n{ours.reason}"
    assert stock.kind != "failed", stock.reason


def test_most_tests_are_for_these_classes_and_none_is_left_out():
    """So that a new version, or a wrong tester, does not turn tests into skips unseen."""
    modeling, backbone = load_suite()
    mixins = (modeling.ModelTesterMixin, ""), (backbone.BackboneTesterMixin, "backbone.")
    names = {
        f"{prefix}{name}"
        for mixin, prefix in mixins
        for name in dir(mixin)
        if name.startswith("test_") and callable(getattr(mixin, name))
    }
    assert names == set(cases("plain")[0]) == set(cases("plain")[1]) and len(names) > 150


def test_page_lists_the_differences():
    rows = re.findall(
        r"^\| `(test_\w+)` \| (\w+) \| (\w+) \| (.+) \|$", (DOCS / "fidelity.md").read_text(), re.MULTILINE
    )
    assert {name: Difference(*row) for name, *row in rows} == DIFFERENCES


def test_files_that_are_not_fetched_are_named_with_the_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.setattr(transformers_suite, "suite_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="test_modeling_common.py.*make test.*fetch_suite.py"):
        load_suite.__wrapped__()
