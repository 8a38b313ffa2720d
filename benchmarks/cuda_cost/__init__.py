"""The parts of `benchmarks/cuda_model.py`: an update on fake CUDA tensors, and what it would cost on a card."""
