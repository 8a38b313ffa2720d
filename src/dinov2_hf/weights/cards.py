"""Model cards: `model_cards/template.md`, filled in with the facts of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..backbones import Backbone, Description, PretrainedBackbone, describe_backbone, family_of, find_family
from ..config import (
    BackboneConfig,
    DINOv2RunConfig,
    PretrainingRunConfig,
    RunConfig,
    dotted_keys,
    hub_name,
    name_of_source,
    public_name,
    value_at,
)
from ..data import EvalTransform
from ..objectives import find_objective
from ..runs.facts import RunFacts

_HEADS = ["num_prototypes", "hidden_dim", "bottleneck_dim", "num_layers", "batch_norm", "norm_last_layer"]
_SHAPES = [f"{head}.{name}" for head in ("dino", "ibot") for name in _HEADS]
_SHAPES += ["ibot.separate_head", "ibot.separate_teacher_head"]
_SHAPES += ["crops.global_size", "crops.num_local", "crops.local_size"]
_SHAPES += ["colors.mean", "colors.std"]
"""Keys besides those of the model that whoever continues it has to set as they were; the crops fit its patches."""

_OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD", "lars": "LARS"}
_COPIES = {
    "previous_update": "none: the teacher is the student one update before",
    "previous_epoch": "none: the teacher is the student at the end of the epoch before",
}
"""What stands in the place of the momentum, by `teacher.update`, where the teacher is not a moving average."""

Rows = dict[str, str | None]


def model_card(
    backbone: PretrainedBackbone,
    transform: EvalTransform,
    config: RunConfig,
    facts: RunFacts,
    has_heads: bool = True,
    student: str = "",
) -> ModelCard:
    """The card of a backbone.

    Args:
        transform: of the preprocessor beside it.
        config: the run's.
        has_heads: whether the heads lie beside it.
        student: name of a further student of a distillation.
    """
    model, description = config.models[student], describe_backbone(backbone)
    sources = [config.data.train, *config.data.mix.values()]
    data_name = " and ".join(dict.fromkeys(map(name_of_source, sources)))
    title = f"{description.title} trained on {data_name}"
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=[model.family, "dinov2_hf"],
        datasets=[name for source in sources if (name := hub_name(source.path))] or None,
        base_model=facts.base_model,
        model_name=title if facts.results else None,
        eval_results=facts.results or None,
        **_license(facts.license),
    )
    tables: dict[str, Mapping[str, str | None]] = {
        "Architecture": _architecture(backbone, description, model.num_channels, transform),
        "Data": _data(config, facts),
        "Recipe": _recipe(config, model, facts),
        "Hardware": _hardware(facts),
        "Losses at the end": {name: f"{value:.4g}" for name, value in facts.losses.items()},
        "Evaluation": facts.results_table(),
    }
    tables = {name: {row: text for row, text in rows.items() if text} for name, rows in tables.items()}
    card: ModelCard = ModelCard.from_template(
        metadata,
        template_str=resources.files("dinov2_hf.model_cards").joinpath("template.md").read_text(),
        title=title,
        what=description.what,
        description=description,
        loading=find_family(model.family).loading,
        method=find_objective(config).describe(config),
        architecture=backbone.config,
        tables={name: rows for name, rows in tables.items() if rows},
        evaluated=bool(tables["Evaluation"]),
        data_name=data_name,
        shapes=" ".join(_shape_overrides(config, model)) if has_heads else "",
        license=facts.license,
        bits=config.data.bits if model.num_channels == 3 else None,
    )
    return card


def converted_card(
    backbone: PretrainedBackbone, preprocessor: Mapping[str, Any], has_heads: bool, origin: str, remarks: list[str]
) -> ModelCard:
    """The card of a model that is not out of a run.

    Args:
        preprocessor: configuration of the image processor beside it.
        has_heads: whether heads lie beside it.
        origin: where it comes from.
        remarks: what else a reader has to know.
    """
    family = family_of(backbone)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=[family.name if family else "dinov2", "dinov2_hf"],
    )
    card: ModelCard = ModelCard.from_template(
        data,
        template_str=resources.files("dinov2_hf.model_cards").joinpath("converted.md").read_text(),
        architecture=backbone.config,
        description=describe_backbone(backbone),
        loading=family.loading if family else "",
        num_parameters=f"{backbone.num_parameters() / 1e6:.1f} M",
        preprocessor=preprocessor,
        has_heads=has_heads,
        origin=origin,
        remarks=remarks,
    )
    return card


def _architecture(backbone: Backbone, description: Description, num_channels: int, transform: EvalTransform) -> Rows:
    return {
        "Parameters": f"{sum(parameter.numel() for parameter in backbone.parameters()) / 1e6:.1f} M",
        **description.card,
        "Channels": str(num_channels) if num_channels != 3 else None,
        "Input": f"short side to {transform.resize_size}, centre crop {transform.crop_size}; any multiple of the patch "
        "works",
        "Normalisation": f"mean {_numbers(transform.mean)}, standard deviation {_numbers(transform.std)}",
    }


def _data(config: RunConfig, facts: RunFacts) -> Rows:
    sources = [config.data.train, *config.data.mix.values()]
    total = sum(source.weight for source in sources)
    shares = [f" ({source.weight / total:.0%} of the samples)" if len(sources) > 1 else "" for source in sources]
    seen = facts.updates * facts.global_batch_size if facts.updates and facts.global_batch_size else None
    return {
        "Images of": "; ".join(f"{name_of_source(source)}{share}" for source, share in zip(sources, shares)),
        "Images read, with repetitions": f"{seen:,}" if seen else None,
    }


def _recipe(config: RunConfig, model: BackboneConfig, facts: RunFacts) -> Rows:
    """The values that a reader asks for; `config.yaml` of the run has all."""
    optim, crops, train = config.optim, config.crops, config.train
    total, done = train.num_steps, facts.updates
    batch = facts.global_batch_size
    base = None if optim.base_lr is None else f"base {optim.base_lr:g}"
    lr = f"{optim.peak_lr(batch):.3g}" if batch else None if optim.lr is None else f"{optim.lr:.3g}"
    momentum = find_objective(config).schedules_of(config).get("teacher_momentum")
    values = {name: value if isinstance(value, list) else [value] for name, value in optim.settings.items()}
    settings = "; ".join(f"{name} {_numbers(value)}" for name, value in values.items())
    average = f"{momentum.base:g} to {momentum.final:g}" if momentum else None
    clipping = f"{optim.clip_grad:g}, each {optim.clip_by} by itself" if optim.clip_grad else None
    return {
        "Started from": public_name(config.init.path) if config.init.path else None,
        "Updates": f"{done:,} of {total:,}" if done is not None and done < total else f"{total:,}",
        "Images per update": f"{batch:,}" if batch else None,
        "Crops": f"2 of {crops.global_size} pixels"
        + (f" and {crops.num_local} of {crops.local_size} pixels" if crops.num_local else ""),
        **find_objective(config).recipe(config),
        "Teacher momentum": _COPIES.get(config.average_update, average),
        "Optimiser": f"{_OPTIMIZERS[optim.optimizer]} ({settings})",
        "Peak learning rate": f"{lr} ({base})" if lr and base else lr or base,
        "Warm-up": f"{round(optim.warmup_epochs * train.epoch_length):,} updates",
        "Weight decay": f"{optim.weight_decay:g} to {optim.weight_decay_end:g}",
        "Gradient clipping": clipping,
        "Layer-wise decay": f"{optim.layerwise_decay:g}",
        "Stochastic depth": f"{model.drop_path_rate:g}",
        "Precision": train.precision,
        "Seed": str(train.seed),
    }


def _hardware(facts: RunFacts) -> Rows:
    return {
        "Device": facts.hardware,
        "Processes": str(facts.num_processes) if facts.num_processes else None,
        "Training time, without evaluation": _duration(facts.hours) if facts.hours else None,
    }


def _license(name: str | None) -> dict[str, Any]:
    """The metadata of a licence: the Hub's word for it, or `other` with its name."""
    if not name:
        return {}
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        return {"license": name}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")}


def _shape_overrides(config: RunConfig, model: BackboneConfig) -> list[str]:
    """Overrides with which a pretraining run has the architecture and heads of this one."""
    continues = isinstance(config, PretrainingRunConfig)
    default, keys = type(config)() if continues else DINOv2RunConfig(), set(dotted_keys(config))
    values: list[tuple[str, Any, Any]] = [("objective", default.objective, DINOv2RunConfig.objective)]
    values += [
        (f"model.{name}", getattr(model, name), getattr(default.model, name, None))
        for name in (*model.shape_keys(), "interpolate_offset")
        if hasattr(model, name)
    ]
    values += [(key, value_at(config, key), value_at(default, key)) for key in _SHAPES if key in keys]
    overrides = []
    for key, value, published in values:
        if value is not None and value != published:
            text = str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
            overrides.append(f"{key}={text}")
    return overrides


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(hours * 60, 0.1):.1f} minutes"
