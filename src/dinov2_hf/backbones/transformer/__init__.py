"""What the families of vision transformers are made of."""
