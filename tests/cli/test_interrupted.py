"""Where a line of a command stands, and how Ctrl-C ends one."""

import contextlib
import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from tqdm.auto import tqdm

from dinov2_hf.cli.parser import Parser
from dinov2_hf.cli.running import _AboveBars, execute
from dinov2_hf.cli.train import is_of_lost_process
from dinov2_hf.launcher import is_launcher

from ..patience import HANGS


@pytest.fixture
def handler():
    """That of Ctrl-C, put back."""
    before = signal.getsignal(signal.SIGINT)
    yield before
    signal.signal(signal.SIGINT, before)


def test_an_error_stands_on_a_line_of_its_own_below_the_bar(capsys):
    bar = tqdm(total=10, file=sys.stderr)
    bar.update(3)
    with pytest.raises(SystemExit):
        Parser(prog="dinov2-hf pretrain").fail("the disk is full", status=1)
    assert capsys.readouterr().err.split("\n")[-2:] == ["dinov2-hf: error: the disk is full", ""]


def test_an_error_of_another_process_stands_below_the_bar_of_the_first(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        Parser(prog="dinov2-hf pretrain").fail("the disk is full", status=1)
    assert capsys.readouterr().err == "\ndinov2-hf: error: the disk is full\n"


def test_a_warning_stands_on_a_line_of_its_own_above_the_bar():
    screen = io.StringIO()
    with tqdm(total=10, file=screen) as bar, contextlib.redirect_stderr(screen):
        bar.update(3)
        _AboveBars(screen).handle(logging.makeLogRecord({"msg": "skipped a broken image"}))
    (line,) = re.findall(r"[^\r\n]*skipped a broken image[^\r]*", screen.getvalue())
    assert line.startswith("skipped a broken image\n")


def test_ctrl_c_ends_a_command_with_one_line_and_status_130(capsys, handler):
    def work(args):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    parser = Parser(prog="dinov2-hf evaluate")
    parser.set_defaults(run=work)
    with pytest.raises(SystemExit) as ended:
        execute(parser, [])
    assert ended.value.code == 130 and capsys.readouterr().err == "dinov2-hf: stopped by Ctrl-C\n"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # the next one ends the process at once


COMMANDS = {
    "page": ("ends it", "visualize page MODEL --port 0 --device cpu"),
    "evaluate": ("INFO train", "evaluate knn --model MODEL --data SET --device cpu"),
    "stats": ("Reading", "data stats IMAGES data.num_workers=2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_in_a_process_prints_one_line(name, small_run, small_set, image_folder):
    """The whole group gets it, data workers included, as from a terminal."""
    begun, words = COMMANDS[name]
    port = str(20_000 + os.getpid() % 20_000)
    values = {"MODEL": str(small_run.folder), "IMAGES": str(image_folder), "SET": str(small_set), "0": port}
    command = [sys.executable, "-m", "dinov2_hf", *(values.get(word, word) for word in words.split())]
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}  # NiceGUI reads it
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, **output, env=environment, start_new_session=True)
    said = ""
    while not re.search(begun, said):
        part = process.stdout.read(1)
        assert part, said
        said += part
    while name == "page":  # it takes Ctrl-C when it listens
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port))):
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 130 and said.endswith("dinov2-hf: stopped by Ctrl-C\n") and "Traceback" not in said


def test_an_exchange_with_a_process_that_ended_is_known():
    said = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"
    assert is_of_lost_process(RuntimeError(said)) and not is_of_lost_process(RuntimeError("shapes do not match"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python /usr/bin/accelerate launch train.py", True),
        ("/env/bin/accelerate-launch train.py", True),
        ("python -m accelerate.commands.launch --cpu train.py", True),
        ("python -m torch.distributed.run --standalone train.py", True),
        ("python -u -m torch.distributed.run train.py", True),
        ("/env/bin/torchrun --nproc_per_node=2 train.py", True),
        ("python train.py --launcher accelerate", False),
        ("python -m dinov2_hf pretrain", False),
        ("bash -c accelerate launch train.py", False),
        ("-bash", False),
        ("", False),
    ],
)
def test_launchers_are_known_by_their_command_line(line, expected):
    assert is_launcher(line.split()) == expected
