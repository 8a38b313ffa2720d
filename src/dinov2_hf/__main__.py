"""`python -m dinov2_hf …` and `accelerate launch -m dinov2_hf …`: the command `dinov2-hf`."""

from .cli import main

main()
