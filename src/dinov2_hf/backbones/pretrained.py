"""What the models of all families are to transformers: how they are loaded."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from .index import check_indices

if TYPE_CHECKING:
    from typing_extensions import Self


class SafePreTrainedModel(PreTrainedModel):
    """A model of transformers that is loaded from files that cannot run code."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple in the classes of transformers too
    supports_gradient_checkpointing = True

    if TYPE_CHECKING:  # without types in transformers

        def eval(self) -> Self: ...
        def post_init(self) -> None: ...

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Self:
        """As in transformers, but only from safetensors, and of a folder only from files in it."""
        check_indices(pretrained_model_name_or_path, kwargs.get("subfolder"))
        return super().from_pretrained(pretrained_model_name_or_path, *args, **{"use_safetensors": True, **kwargs})
