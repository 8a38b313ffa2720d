"""The lock of a run's folder: who holds it, who takes it over, who is refused."""

import contextlib
import json
import logging
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from dinov2_hf.runs import RunFolder, lock
from dinov2_hf.runs.lock import Owner, RunLock, start_of

from ..patience import HANGS

HERE = socket.gethostname()


@pytest.fixture
def ended():
    """The owner of a lock that a process left which has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner(HERE, process.pid, start_of(process.pid), time.time() - 3600)
    process.communicate()
    assert start_of(process.pid) is None
    return owner


def leave(folder, owner):
    """Leaves the lock of an owner in a folder."""
    (folder / ".lock").write_text(json.dumps(asdict(owner)))


def test_a_folder_in_use_is_refused_with_the_process_and_its_age(tmp_path):
    with RunFolder(tmp_path / "run").lock:
        line = rf"run is in use by another run: process {os.getpid()} on {HERE}, which began 0 min ago; end it or wait"
        with pytest.raises(ValueError, match=line):
            RunFolder(tmp_path / "run").lock.require_free()
        with pytest.raises(ValueError, match="or give another train.output_dir"), RunLock(tmp_path / "run"):
            pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_lock_may_be_nested_and_goes_at_the_end_of_the_outer_block(tmp_path):
    own = RunLock(tmp_path)
    with pytest.raises(KeyboardInterrupt), own:
        with own:
            own.require_free()
        assert own.path.exists()
        raise KeyboardInterrupt
    assert not own.path.exists()
    with own:
        assert own.path.exists()


def test_the_lock_of_an_ended_process_is_taken_over(tmp_path, ended, caplog):
    leave(tmp_path, ended)
    caplog.set_level(logging.INFO)
    RunLock(tmp_path).require_free()
    assert (tmp_path / ".lock").exists()  # nothing is written before the run begins
    with RunLock(tmp_path) as own:
        assert Owner.read(own.path.read_text()).pid == os.getpid()
    assert f"took over the lock of a run that was killed: process {ended.pid} on {HERE}, which began 1 h 0 min ago" in (
        caplog.text
    )
    assert list(tmp_path.iterdir()) == []


def test_another_process_with_the_same_number_is_not_taken_for_the_owner(tmp_path):
    leave(tmp_path, Owner(HERE, os.getpid(), "another start", time.time()))
    with RunLock(tmp_path):
        pass


def test_a_process_that_ended_and_was_not_waited_for_is_gone():
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + HANGS
    while start_of(process.pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.wait() == 0


def test_the_start_of_a_process_does_not_change_and_differs_from_that_of_a_later_one():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    later = start_of(process.pid)
    process.communicate()
    assert start_of(os.getpid()) == start_of(os.getpid()) != later and later is not None


def test_the_lock_of_another_host_is_refused_with_what_to_remove(tmp_path):
    leave(tmp_path, Owner("gpu07", 4711, "unknown", time.time() - 3 * 3600 - 60))
    line = rf"on another host: process 4711 on gpu07, which began 3 h 1 min ago; if that .* remove {tmp_path}/.lock and"
    for attempt in (RunLock(tmp_path).require_free, RunLock(tmp_path).__enter__):
        with pytest.raises(ValueError, match=line):
            attempt()
    assert Owner.read((tmp_path / ".lock").read_text()).host == "gpu07"


@pytest.mark.parametrize(
    ("job", "restarts", "refused"), [("7", 1, False), ("7", 0, True), ("8", 1, True), ("", 1, True)]
)
def test_a_job_that_slurm_has_started_again_on_another_host_goes_on(tmp_path, monkeypatch, job, restarts, refused):
    leave(tmp_path, Owner("gpu07", 4711, "unknown", time.time(), job="7" * bool(job)))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    with pytest.raises(ValueError, match="gpu07") if refused else contextlib.nullcontext():
        RunLock(tmp_path).require_free()


@pytest.mark.parametrize("text", ["{", "[]", '{"host": "a", "pid": "b", "start": "c", "since": 1}', "\0" * 40])
def test_a_lock_that_cannot_be_read_is_refused(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / '.lock'} cannot be read; if no run writes into")):
        RunLock(tmp_path).require_free()


def test_a_lock_whose_process_was_killed_before_it_was_written_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_WAIT", 0.0)
    (tmp_path / ".lock").touch()
    with RunLock(tmp_path):
        pass


def test_a_lock_that_another_run_has_replaced_stays(tmp_path):
    with RunLock(tmp_path):
        leave(tmp_path, Owner("gpu07", 4711, "unknown", time.time()))
    assert Owner.read((tmp_path / ".lock").read_text()).host == "gpu07"


def _try(folder, barrier, results):
    barrier.wait()
    try:
        with RunLock(folder):
            results.put("held")
            barrier.wait()
    except ValueError:
        results.put("refused")
        barrier.wait()


def test_one_of_many_launches_takes_over(tmp_path, ended):
    leave(tmp_path, ended)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.Queue()
    processes = [context.Process(target=_try, args=(tmp_path, barrier, results)) for _ in range(6)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=HANGS) for _ in processes) == ["held", *["refused"] * 5]
    for process in processes:
        process.join()
    assert list(tmp_path.iterdir()) == []
