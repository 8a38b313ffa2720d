"""How long tests wait for what must come."""

HANGS = 900
"""Seconds after which something counts as hung. Machines that are shared stand still for minutes."""
