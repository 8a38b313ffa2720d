"""Formats from outside the package are registered by name, and refused where a function does not fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dinov2_hf.weights import FORMATS, Format, Weights, export_source, open_weights, register_format


@pytest.fixture(autouse=True)
def formats():
    """What a test registers is forgotten after it."""
    before = dict(FORMATS)
    yield
    FORMATS.clear()
    FORMATS.update(before)


def holds(place):
    return place.path.endswith(".card")


def read(place):
    notes = json.loads(Path(place.path).read_text())
    inside = open_weights(notes["model"], place.key)
    return Weights(place.where, "card", inside.config, lambda _: inside.network(), preprocessor=notes["preprocessor"])


def write(path, backbone, preprocessor):
    backbone.save_pretrained(path.parent.parent / "beside")
    content = {"model": str(path.parent.parent / "beside"), "preprocessor": preprocessor}
    path.write_text(json.dumps(content))


def usage(path, config):
    return f"open({path!r})"


CARD = Format(holds, read, write, ".card", usage)


def test_registered_format_is_written_and_read_wherever_weights_are(tiny, tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="--format card is not one of .*original"):
        export_source(str(tmp_path / "model"), tmp_path / "model.card", "card")
    register_format("card", CARD)
    done = export_source(str(tmp_path / "model"), tmp_path / "model.card", "card")
    assert done.usage == f"open({str(tmp_path / 'model.card')!r})"
    weights = open_weights(str(tmp_path / "model.card"))
    assert weights.kind == "card" and weights.config.hidden_size == tiny().config.hidden_size
    assert weights.build().width == tiny().width
    with pytest.raises(FileNotFoundError, match="missing.card does not exist"):
        open_weights(str(tmp_path / "missing.card"))


def test_registered_format_is_asked_first_and_replaced_by_its_own_module():
    before = list(FORMATS)
    register_format("card", CARD)
    again = replace(CARD, suffix=".other")
    assert register_format("card", again) is again
    assert list(FORMATS) == ["card", *before] and FORMATS["card"] is again


@pytest.mark.parametrize(
    ("name", "format", "error", "message"),
    [
        ("Card", CARD, ValueError, "the format 'Card' has a name of other characters than a to z, digits and _"),
        ("card", replace(CARD, suffix="card"), ValueError, "suffix='card'; give a dot and letters, or '' for a folder"),
        ("card", replace(CARD, usage=None), TypeError, r"has write and no usage; give a function of \(path, config\)"),
        ("card", replace(CARD, holds=None), TypeError, r"holds must be a function of \(place\), not None"),
        ("card", replace(CARD, read=usage), TypeError, r"read must be a function of \(place\), not <function usage"),
        ("card", replace(CARD, write=read), TypeError, r"write must be a function of \(path, backbone, preprocessor\)"),
        ("card", replace(CARD, limits=usage), TypeError, r"limits must be a function of \(config\)"),
        ("timm", CARD, ValueError, "the format 'timm' is already registered by .*read_timm; use another name"),
    ],
)
def test_format_that_cannot_work_is_refused_with_what_is_wrong(name, format, error, message):
    before = dict(FORMATS)
    with pytest.raises(error, match=message):
        register_format(name, format)
    assert before == FORMATS
