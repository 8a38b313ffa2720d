"""Sections of `cuda_acceptance.py`: one file a group of them. Each takes a `Context` and reports lines of numbers."""
