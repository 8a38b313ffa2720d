"""Starting the command: what is imported before anything is done, what `--help`, `--keys` and `--version` show."""

import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import shtab

from dinov2_hf import __version__
from dinov2_hf.cli import GROUPS, build_program, main
from dinov2_hf.cli.running import parse
from dinov2_hf.config import DINOv2RunConfig, FeatureDistillationConfig, describe_keys, dotted_keys
from dinov2_hf.config.curation import CurationConfig
from dinov2_hf.config.evaluations import evaluation_config
from dinov2_hf.evaluation import evaluators

HEAVY = {"torch", "transformers", "accelerate", "datasets", "numpy", "shtab"}


def parsers(parser):
    """Every parser below one, by the words that lead to it."""
    yield parser
    for commands in parser.subcommands:
        for each in commands.choices.values():
            yield from parsers(each)


PROGRAM = build_program()
COMMANDS = [each.prog.split()[1:] for each in parsers(PROGRAM)]
WITH_KEYS = [["pretrain"], ["distill"], ["curate"], ["data", "stats"], ["data", "show"], ["evaluate", "knn"]]

RUN = """
import contextlib, io, json, sys
from dinov2_hf.cli import main
shown = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        main(words)
    heavy = set(json.loads(sys.argv[2])) & {name.partition(".")[0] for name in sys.modules}
    shown.append((output.getvalue(), sorted(heavy)))
print(json.dumps(shown))
"""


@pytest.fixture(scope="module")
def shown():
    """What a fresh process prints for every help and list of keys, and which heavy packages it had imported then."""
    asked = [[*words, "--help"] for words in COMMANDS]
    asked += [[*words, "--keys"] for words in WITH_KEYS] + [["evaluate", name, "--keys"] for name in evaluators()]
    asked += [["--version"], ["distill", "--keys", "objective=distill_features"]]
    words = [json.dumps(asked), json.dumps(sorted(HEAVY))]
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {" ".join(words): answer for words, answer in zip(asked, json.loads(done.stdout))}


def test_help_keys_and_version_are_shown_without_torch_and_transformers(shown):
    assert len(shown) > 35
    for words, (text, heavy) in shown.items():
        assert text and heavy == [], words


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_says_what_a_command_does_in_sentences_with_an_example_that_is_understood(words, shown):
    text, _ = shown[" ".join([*words, "--help"])]
    assert text.startswith(f"usage: {' '.join(['dinov2-hf', *words])}")
    if not words:
        return
    about = " ".join(text.split("\n\n")[1].split())
    assert re.match(r"[A-Z].*[.…]$", about), about
    for line in re.sub(r" *\\\n *", " ", text.split("example:\n")[1]).splitlines():
        command = line.strip().partition(" > ")[0].split()
        args = parse(PROGRAM, command[1:])
        assert command[0] == "dinov2-hf" and args.parser.prog.startswith(" ".join(["dinov2-hf", *words]))


def test_program_lists_every_command_once_in_groups(shown):
    text, _ = shown["--help"]
    (commands,) = PROGRAM.subcommands
    for name, parser in commands.choices.items():
        assert len(re.findall(rf"^  {name} +\w", text, re.MULTILINE)) == 1 and parser.prog == f"dinov2-hf {name}"
    assert re.findall(r"^(\w+):$", text, re.MULTILINE) == [*GROUPS, "Options"]
    assert all(len(line) <= 100 for line in text.splitlines())


def test_version_names_the_packages_that_compute(shown):
    text, _ = shown["--version"]
    assert text.startswith(f"dinov2_hf {__version__} (Python 3.")
    assert f"torch {version('torch')}" in text and f"transformers {version('transformers')}" in text


@pytest.mark.parametrize(
    "words, kind",
    [
        ("pretrain --keys", DINOv2RunConfig),
        ("distill --keys objective=distill_features", FeatureDistillationConfig),
        ("data stats --keys", DINOv2RunConfig),
        ("curate --keys", CurationConfig),
        *((f"evaluate {name} --keys", each.config) for name, each in evaluators().items()),
    ],
)
def test_keys_of_a_command_are_those_of_its_configuration_with_default_and_meaning(words, kind, shown):
    text, _ = shown[words]
    lines = text.splitlines()
    for key, default, meaning in describe_keys(kind):
        assert f"{key}={default}" in lines
        assert meaning, key
    assert {key for key, _, _ in describe_keys(kind)} == set(dotted_keys(kind()))


def test_keys_are_those_of_the_objective_in_a_file_with_the_sections_of_its_tables(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("objective: distill_features\nstudents: {small: {preset: tiny}}\n")
    main(["pretrain", "--config", str(tmp_path / "run.yaml"), "--keys"])
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "distill.cls_weight=1.0",
        "students.small.drop_path_rate=0.3",
        "data.mix.NAME.path=None",
        "evaluations={}",
    ):
        assert line in lines, line
    assert not any(line.startswith("dino.") for line in lines)


def test_keys_of_a_section_are_shown_only(capsys):
    main(["pretrain", "--keys", "optim"])
    keys = [line.partition("=")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert keys == [key for key in dotted_keys(DINOv2RunConfig()) if key.startswith("optim.")]
    main(["pretrain", "--keys", "optim.base_lr"])
    assert capsys.readouterr().out.startswith("optim.base_lr=0.004\n    ")
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "--keys", "optimm"])
    assert ended.value.code == 2 and "--keys optimm: there is no such section; choose one of" in capsys.readouterr().err


def test_configuration_of_an_evaluator_is_found_by_its_name():
    assert {name: evaluation_config(name) for name in evaluators()} == {
        name: each.config for name, each in evaluators().items()
    }
    assert evaluation_config("mean_norm") is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_commands_options_and_paths(shell, capsys):
    main(["completion", shell])
    script = capsys.readouterr().out
    for word in ("pretrain", "visualize", "neighbours", "resume", "num-attention-heads", shtab.FILE[shell]):
        assert word in script, word
    assert "SUPPRESS" not in script


@pytest.mark.parametrize("module", ["dinov2_hf", "dinov2_hf.cli"])
def test_package_runs_as_a_module(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"dinov2_hf {__version__}"), done.stderr
