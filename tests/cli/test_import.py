"""`--import`: files and modules with parts of one's own, before a command reads its keys."""

import sys

import pytest

from dinov2_hf.cli import main
from dinov2_hf.cli.arguments import import_parts

from ..registries import importing_from

TERM = """
from dinov2_hf.objectives import FurtherTerm, register_term


@register_term("{name}")
class Own(FurtherTerm):
    title = "nothing"

    def forward(self, seen):
        return 0 * seen.student.cls.sum()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path):
    """A folder whose modules are forgotten after the test."""
    path = list(sys.path)
    with importing_from(tmp_path):
        sys.path.remove(str(tmp_path))
        yield tmp_path
        sys.path.insert(0, str(tmp_path))
    sys.path[:] = path


def test_parts_of_a_file_and_of_a_module_are_there_before_the_keys_are_read(folder, monkeypatch, capsys):
    (folder / "own_first.py").write_text(TERM.format(name="first"))
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "own_second.py").write_text(TERM.format(name="second"))
    monkeypatch.syspath_prepend(folder / "elsewhere")
    keys = ["terms.first.weight=1", "terms.second.weight=2"]
    with pytest.raises(SystemExit):
        main(["pretrain", "/my/images", "--import", str(folder / "own_first.py"), *keys])
    assert "terms.second: no term of that name is registered (there is first); " in capsys.readouterr().err
    parts = ["--import", str(folder / "own_first.py"), "--import", "own_second"]
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(folder / "nothing"), *parts, *keys, f"train.output_dir={folder / 'run'}"])
    assert ended.value.code == 2 and "nothing" in capsys.readouterr().err  # the keys are good, the images are missing


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere.py", FileNotFoundError, "--import nowhere.py does not exist; give a .py file or the name of a mod"),
        ("no_such_package.parts", ValueError, "there is no module no_such_package; install it, or give the path of"),
        ("json.parts", ValueError, "there is no module json.parts"),
    ],
)
def test_what_cannot_be_imported_is_named(name, error, message):
    with pytest.raises(error, match=message):
        import_parts([name])


def test_file_with_the_name_of_another_module_is_refused(folder):
    (folder / "json.py").write_text("")
    with pytest.raises(ValueError, match="another module is called json .*; rename the file"):
        import_parts([str(folder / "json.py")])


def test_error_inside_an_imported_file_is_its_own(folder):
    (folder / "own_broken.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        import_parts([str(folder / "own_broken.py")])
