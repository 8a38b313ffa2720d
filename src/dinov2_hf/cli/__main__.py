"""`accelerate launch -m dinov2_hf.cli …`, for commands that several processes share."""

from . import main

main()
