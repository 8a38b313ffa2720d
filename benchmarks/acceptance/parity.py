"""The recorded updates of the published code, by device and precision: the largest deviations from them."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file
from torch import nn

from dinov2_hf.config import CropsConfig, DinoConfig, DINOv2RunConfig, IbotConfig, ModelConfig, OptimConfig
from dinov2_hf.data import SSLBatch
from dinov2_hf.objectives import DINOv2
from dinov2_hf.train.param_groups import apply_schedule, build_param_groups
from dinov2_hf.train.schedules import StepValues
from dinov2_hf.weights import from_original

from .context import ROOT, Context, rounded
from .machine import device, on_cuda

_RECORD = ROOT / "tests" / "parity" / "data" / "pretrain_separate_heads_sinkhorn"
_LIMITS = {"loss": 1e-4, "gradient_norm": 1e-4, "student": 2e-5, "teacher": 2e-5}
"""What float32 has to keep: relative for losses and norms, absolute for parameters."""
_TERMS = {"dino_global": "dino_global_crops_loss", "dino_local": "dino_local_crops_loss", "ibot": "ibot_loss"}
_TERMS["koleo"] = "koleo_loss"
_WEIGHTS = {"koleo": 20.0, "ibot": 2.0}
"""What the published code has divided its terms by."""


def parity(context: Context) -> None:
    cases = [("cpu", "fp32", None), (device().type, "fp32", None), (device().type, "bf16", torch.bfloat16)]
    if on_cuda():
        cases += [("cuda", "tf32", None), ("cuda", "fp16", torch.float16)]
    for where, precision, autocast in dict.fromkeys(cases):
        with context.case("six updates", device=where, precision=precision) as row:
            tf32 = precision == "tf32"
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            worst = deviations(torch.device(where), autocast)
            row |= {name: rounded(value) for name, value in worst.items()}
            if precision == "fp32":
                row["passed"] = all(worst[name] <= limit for name, limit in _LIMITS.items())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def deviations(where: torch.device, autocast: torch.dtype | None) -> dict[str, float]:
    """Of losses and gradient norms over all updates, relative, and of the parameters after them, absolute."""
    tensors, record = load_file(f"{_RECORD}.safetensors"), json.loads(_RECORD.with_suffix(".json").read_text())
    model = DINOv2(_config()).train()
    _load(model.student, tensors, "init")
    model.teacher.load_state_dict(model.student.state_dict())
    model.to(where)
    groups = build_param_groups(model.student, OptimConfig(layerwise_decay=0.9, patch_embed_lr_mult=0.2))
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)
    worst = dict.fromkeys(_LIMITS, 0.0)
    for index, step in enumerate(record["steps"]):
        crops = [tensors[f"step{index}.{name}"] for name in ("global_crops", "local_crops", "masks")]
        batch = SSLBatch(*crops, *SSLBatch.flatten_masks(crops[-1])).to(where)
        names = ("lr", "last_layer_lr", "weight_decay", "teacher_momentum", "teacher_temp")
        values = StepValues(backbone_lr_scale=1.0, **{name: step[name] for name in names})
        apply_schedule(optimizer.param_groups, values)
        with torch.autocast(where.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            output = model(batch, values)
        output.loss.backward()
        for term, published in _TERMS.items():
            wanted = step["losses"][published] * _WEIGHTS.get(term, 1.0)
            worst["loss"] = max(worst["loss"], abs(output.terms[term].item() - wanted) / max(abs(wanted), 1e-3))
        for name, network in model.student.items():
            norm = nn.utils.clip_grad_norm_(network.parameters(), record["clip_grad"]).item()
            wanted = step["grad_norms"][name]
            worst["gradient_norm"] = max(worst["gradient_norm"], abs(norm - wanted) / wanted)
        optimizer.step()
        optimizer.zero_grad()
        model.update_averages(values)
    for role, networks in (("student", model.student), ("teacher", model.teacher)):
        ours = {name: parameter.detach().clone() for name, parameter in networks.named_parameters()}
        _load(networks, tensors, f"final.{role}")
        for name, parameter in networks.named_parameters():
            if not name.endswith("key.bias"):  # their gradient is zero but for rounding
                worst[role] = max(worst[role], (parameter - ours[name]).abs().max().item())
    return worst


def _config() -> DINOv2RunConfig:
    backbone = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 4}
    return DINOv2RunConfig(
        model=ModelConfig(preset="tiny", use_swiglu_ffn=True, drop_path_rate=0.0, **backbone),
        crops=CropsConfig(global_size=32, local_size=16, num_local=3),
        dino=DinoConfig(num_prototypes=128, hidden_dim=48, bottleneck_dim=16),
        ibot=IbotConfig(num_prototypes=112, hidden_dim=48, bottleneck_dim=16, separate_head=True),
    )


def _load(networks: nn.ModuleDict, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    for name, network in networks.items():
        start = f"{prefix}.{name}."
        state = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        network.load_state_dict(from_original(state) if name == "backbone" else state)
