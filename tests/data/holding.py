"""Run by `runpy` in a process of its own: holds `pixels` until it gets a message. Imports no torch, to be quick."""

import importlib.util
import tempfile

tempfile.tempdir = folder  # noqa: F821

spec = importlib.util.spec_from_file_location("pixel_budget", path)  # noqa: F821
pixel_budget = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pixel_budget)

with pixel_budget.reserve(pixels, budget):  # noqa: F821
    connection.send("holds")  # noqa: F821
    connection.recv()  # noqa: F821
connection.send("gone")  # noqa: F821
