"""Unpacks transformers' tests of models beside the installed packages, from the source distribution of that version.

python tests/backbones/fetch_suite.py     # `make test` does it
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

FILES = ("test_modeling_common.py", "test_backbone_common.py")


def suite_folder() -> Path:
    """Returns where the tests of the installed version lie, once they are fetched."""
    return Path(sys.prefix) / "transformers-tests" / version("transformers")


def fetch() -> None:
    """Downloads the source distribution as pip is configured, and unpacks the files.

    Raises:
        SystemExit: pip cannot get it, or it lacks a file.
    """
    number, folder = version("transformers"), suite_folder()
    with tempfile.TemporaryDirectory() as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        if subprocess.run([*pip, f"transformers=={number}", "--dest", temporary]).returncode:
            raise SystemExit(f"pip cannot get the source distribution of transformers {number}: see its message above")
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as members:
            for name in FILES:
                try:
                    file = members.extractfile(f"transformers-{number}/tests/{name}")
                except KeyError:
                    raise SystemExit(f"{archive.name} has no tests/{name}; look where this version keeps it") from None
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(file.read())


if __name__ == "__main__":
    fetch()
