"""`accelerate launch -m dinov2_hf.cli …`, the name of 0.5 for `accelerate launch -m dinov2_hf …`."""

from . import main

main()
