"""Opening the frozen teachers of a run."""

from __future__ import annotations

from ..objectives import FrozenTeacher, Teacher
from ..weights import open_weights


def open_teacher(key: str, teacher: Teacher) -> FrozenTeacher:
    """Opens the teacher that the key `key` names, in float32.

    Raises:
        FileNotFoundError: nothing at its path.
        ValueError: what is there cannot be a teacher, or is damaged.
    """
    return teacher.build(open_weights(teacher.path, key)).float()
