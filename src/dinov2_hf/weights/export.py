"""From any source to any format, and from a run to what it leaves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard
from torch import Tensor, nn

from ..backbones import PretrainedBackbone, family_of
from ..config import RunConfig
from ..config.checks import IMPORT_FIRST
from ..data import EvalTransform, preprocessor_config
from ..files import Output, beside, check_outputs, give_usual_mode, made_nothing, writing
from ..runs.facts import RunFacts
from .base import Weights
from .cards import converted_card, model_card
from .folder import write_folder, write_heads
from .formats import FORMATS, open_weights
from .original import require_num_attention_heads
from .positions import resize_position_embeddings


@dataclass
class Exported:
    """What was written, and what to know of it."""

    output: Path
    kind: str
    """What the source was."""
    usage: str
    """Python that loads it."""
    remarks: list[str] = field(default_factory=list)
    """What was left out or assumed."""


def export_source(
    path: str,
    output: Path,
    format: str = "hf",
    network: str = "teacher",
    student: str = "",
    num_attention_heads: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Exported:
    """Writes the model at `path` to `output`, in another format or the same, whole or not at all.

    Args:
        path: see `open_weights`.
        output: a folder for `hf`, else a file; nothing may be there.
        format: a key of `FORMATS` that can be written.
        network: see `open_weights`.
        student: see `open_weights`.
        num_attention_heads: see `open_weights`.
        image_size: resample the position embeddings to this height and width first, by the rule of the source: at this
            size whatever reads the export gives the features of the source.

    Raises:
        FileNotFoundError, ValueError, ImportError: what a user can fix; nothing is written then.
    """
    written = {name: known for name, known in FORMATS.items() if known.write}
    if format not in written:
        raise ValueError(f"--format {format} is not one of {', '.join(written)}; {IMPORT_FIRST}")
    target = written[format]
    assert target.write is not None and target.usage is not None
    if not target.suffix and output.suffix in {known.suffix for known in written.values()} - {""}:
        raise ValueError(
            f"OUTPUT={output} looks like a file, and the format {format} is a folder; leave {output.suffix} out"
        )
    if target.suffix and output.suffix != target.suffix:
        raise ValueError(f"OUTPUT={output} does not end in {target.suffix}, as files of the format {format} do; add it")
    check_outputs([Output("OUTPUT", place, made_nothing) for place in (output, Path(f"{output}.data"))])
    weights = open_weights(path, "SOURCE", network, student, num_attention_heads)
    heads = weights.heads()
    require_num_attention_heads(weights)
    if image_size is not None:
        weights = _resized(weights, image_size)
    backbone, remarks = cast(PretrainedBackbone, weights.build()), list(weights.remarks)
    family = family_of(backbone)
    if target.families and (family is None or family.name not in target.families):
        name = family.name if family else type(backbone).__name__
        held = ", ".join(target.families)
        *others, last = sorted(other for other, known in written.items() if name in (known.families or (name,)))
        named = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"--format {format} holds {held} only, not {name}; use --format {named}")
    preprocessor = weights.preprocessor
    if preprocessor is None:
        preprocessor = preprocessor_config(weights.default_transform)
        colors = "normalised as ImageNet's" if weights.num_channels == 3 else "not normalised"
        remarks.append(f"the source does not tell how images are prepared: {colors}; see preprocessor_config.json")
    remarks += target.limits(weights.config) if target.limits else []
    if target.suffix and heads:
        remarks.append(f"the heads are left out: {format} has no place for them, --format hf has")
    with beside(output) as temporary:
        target.write(temporary, backbone, dict(preprocessor))
        if not target.suffix:
            write_heads(temporary, heads)
            _card(weights, backbone, preprocessor, path, remarks).save(temporary / "README.md")
    return Exported(output, weights.kind, target.usage(str(output), weights.config), remarks)


def export_folder(
    folder: Path,
    backbone: PretrainedBackbone,
    heads: Mapping[str, nn.Module],
    transform: EvalTransform,
    config: RunConfig,
    facts: RunFacts,
    student: str = "",
) -> Path:
    """Writes a model of a run in the interchange format, into a folder that may be there.

    Args:
        folder: made if it does not exist.
        backbone: to `model.safetensors` and `config.json`, which `AutoModel.from_pretrained` reads.
        heads: `dino_head` and `ibot_head`, to `heads.safetensors`, from which training can continue.
        transform: resize, crop and normalisation, to `preprocessor_config.json`.
        config: the run, for the model card `README.md`.
        facts: for the card; `RunFacts.of_run` finds them in the run's output folder.
        student: name of a further student of a distillation.

    Raises:
        OSError: the disk refuses.
    """
    with writing(folder):
        write_folder(folder, backbone, preprocessor_config(transform))
        write_heads(folder, {name: head.state_dict() for name, head in heads.items()})
        model_card(backbone, transform, config, facts, bool(heads), student).save(folder / "README.md")
        give_usual_mode(folder)
    return folder


def _card(
    weights: Weights, backbone: PretrainedBackbone, preprocessor: Mapping[str, Any], path: str, remarks: list[str]
) -> ModelCard:
    """The model card: with the facts of the run where there is one."""
    heads = weights.heads()
    if weights.run is None or weights.run_config is None:
        name = path if weights.kind.startswith("model on the Hub") else Path(path).name  # no paths of this machine
        return converted_card(backbone, preprocessor, bool(heads), f"`{name}` ({weights.kind})", remarks)
    known: dict[str, Any] = {} if weights.asked == "teacher" else {"results": []}  # only averages are evaluated
    facts = RunFacts.of_run(weights.run, weights.run_config, weights.student, until=weights.step, **known)
    return model_card(backbone, weights.transform, weights.run_config, facts, bool(heads), weights.student)


def _resized(weights: Weights, image_size: tuple[int, int]) -> Weights:
    config = copy.deepcopy(weights.config)
    if not hasattr(config, "grid_of"):
        raise ValueError(f"{weights.where} has no position embeddings to resample; leave --image-size out")
    height, width = image_size
    config.grid_of(height, width)
    config.image_size = height if height == width else [height, width]
    tensors: dict[str, Tensor] = resize_position_embeddings(weights.backbone(), config, weights.config)
    return weights.resized(config, tensors)
