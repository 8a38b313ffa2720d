"""timm's vision transformer written out over a state dict, and timm itself where it is installed."""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path

import torch
from torch.nn import functional as F

_LISTED = json.loads((Path(__file__).parent / "data" / "timm_names.json").read_text())["models"]
"""Names and shapes of timm 1.0.31: requirements.txt has no timm, because torchvision would come with it."""
FROZEN = {name: model for name, model in _LISTED.items() if "dinov2" in name}
FROZEN_DINO = {name: model for name, model in _LISTED.items() if name.endswith(".dino")}


def frozen_shapes(name):
    """Names and shapes of the state dict of a timm model."""
    model = _LISTED[name]
    block = {f"blocks.{i}.{key}": shape for i in range(model["depth"]) for key, shape in model["block"].items()}
    return model["top"] | block


def timm_forward(state, pixels, num_heads, grid, swiglu=False, eps=1e-6):
    """`forward_features` of a model built with `dynamic_img_size=True`: tokens after the norm `[B, T, D]`."""
    patches = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch_of(state))
    batch, width, rows, columns = patches.shape
    tokens = patches.flatten(2).transpose(1, 2)
    positions, registers = state["pos_embed"], state.get("reg_token")
    first = 0 if registers is not None else 1
    of_cls, of_patches = positions[:, :first], positions[:, first:]
    if (rows, columns) != tuple(grid):
        image = of_patches.reshape(1, *grid, width).permute(0, 3, 1, 2)
        image = F.interpolate(image, size=(rows, columns), mode="bicubic", antialias=True)
        of_patches = image.permute(0, 2, 3, 1).flatten(1, 2)
    prefix = state["cls_token"] if registers is not None else state["cls_token"] + of_cls
    prefix = prefix if registers is None else torch.cat((prefix, registers), dim=1)
    tokens = torch.cat((prefix.expand(batch, -1, -1), tokens + of_patches), dim=1)
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for index in range(depth):
        block = {k.removeprefix(f"blocks.{index}."): v for k, v in state.items() if k.startswith(f"blocks.{index}.")}

        def linear(name, values, block=block):
            return F.linear(values, block[f"{name}.weight"], block.get(f"{name}.bias"))

        def norm(name, values, block=block):
            return F.layer_norm(values, (width,), block[f"{name}.weight"], block[f"{name}.bias"], eps=eps)

        qkv = linear("attn.qkv", norm("norm1", tokens)).reshape(batch, -1, 3, num_heads, width // num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) * (width // num_heads) ** -0.5).softmax(dim=-1)
        mixed = linear("attn.proj", (weights @ value).transpose(1, 2).flatten(2))
        tokens = tokens + block.get("ls1.gamma", 1) * mixed
        hidden = linear("mlp.fc1", norm("norm2", tokens))
        if swiglu:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden)
        tokens = tokens + block.get("ls2.gamma", 1) * linear("mlp.fc2", hidden)
    return F.layer_norm(tokens, (width,), state["norm.weight"], state["norm.bias"], eps=eps)


def patch_of(state):
    return tuple(state["patch_embed.proj.weight"].shape[2:])


def has_timm():
    return importlib.util.find_spec("timm") is not None


def import_timm():
    """timm; names out of torchvision that it imports for data are made up where that is not there."""
    if importlib.util.find_spec("torchvision") is None and not any(isinstance(f, _Torchvision) for f in sys.meta_path):
        sys.meta_path.append(_Torchvision())
    import timm

    return timm


class _Class(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Module(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Class(name, (), {})
        setattr(self, name, value)
        return value


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass
