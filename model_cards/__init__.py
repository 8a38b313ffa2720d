"""Templates of model cards; setup.py installs this folder as `dinov2_hf.model_cards`."""
