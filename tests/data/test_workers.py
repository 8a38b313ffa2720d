"""Data workers: signals to the job do not end them, and the one that ends is named."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from dinov2_hf.data.workers import WorkerLoader, _interrupted_later, _naming_ends


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    """For workers that have ended: torch does it every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


class Acting(Dataset):
    """Eight numbers; at the third, its worker does something."""

    def __init__(self, act=lambda: None):
        self.act = act

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 2:
            self.act()
        return index, os.getpid()


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def no_memory():
    os.kill(os.getpid(), signal.SIGBUS)


def left():
    sys.stderr.flush()
    os._exit(3)


def failing():
    raise RuntimeError("of the images")


def interrupted():
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
    time.sleep(0.1)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (killed, r"the data worker \d+ was killed by SIGKILL; most often the system did that because memory ran out: "),
        (no_memory, r"the data worker \d+ was killed by SIGBUS; most often shared memory is full"),
        (left, r"the data worker \d+ ended with status 3$"),
    ],
)
def test_a_worker_that_ends_is_named_with_the_cause(act, message):
    with pytest.raises(ChildProcessError, match=message):
        list(WorkerLoader(Acting(act), batch_size=None, num_workers=2))


def missing():
    raise FileNotFoundError("of the images")


@pytest.mark.parametrize(("act", "kind"), [(failing, RuntimeError), (missing, FileNotFoundError)])
def test_an_error_in_a_worker_is_raised_as_it_is(act, kind):
    with pytest.raises(kind, match="of the images"):
        list(WorkerLoader(Acting(act), batch_size=None, num_workers=1))


def test_a_connection_that_a_worker_breaks_while_it_ends_names_the_worker():
    """torch may find the worker still alive then, and raises what the connection says."""
    process = subprocess.Popen(["sleep", "60"])
    threading.Timer(0.1, process.kill).start()

    class Batches:
        _workers = [type("Worker", (), {"pid": process.pid, "exitcode": property(lambda self: process.poll())})()]

        def __iter__(self):
            raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ChildProcessError, match=f"the data worker {process.pid} was killed by SIGKILL"):
        list(_naming_ends(Batches()))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_outlive_the_signals_of_a_job(method):
    loader = WorkerLoader(Acting(interrupted), batch_size=None, num_workers=2, multiprocessing_context=method)
    read = list(loader)
    assert [number for number, _ in read] == list(range(8)) and len({process for _, process in read}) == 2


def test_a_worker_that_ends_raises_where_its_item_is_read_and_nowhere_else():
    batches = iter(WorkerLoader(Acting(), batch_size=None, num_workers=1, prefetch_factor=1))
    _, worker = next(batches)
    os.kill(worker, signal.SIGKILL)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:  # torch's own handler of SIGCHLD would raise here
        re.search("a", "b")
    with pytest.raises(ChildProcessError, match=f"the data worker {worker} was killed by SIGKILL"):
        list(batches)


def test_ctrl_c_while_workers_start_acts_after_it():
    seen = []
    with pytest.raises(KeyboardInterrupt):
        with _interrupted_later():
            os.kill(os.getpid(), signal.SIGINT)
            seen.append("the block goes on")
    assert seen and signal.getsignal(signal.SIGINT) is signal.default_int_handler
