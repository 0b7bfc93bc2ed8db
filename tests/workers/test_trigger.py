"""Lines of a trigger, from whatever it is, for no longer than somebody wants them."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.errors import ConfigError
from workers import trigger


def never():
    return False


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "barrier.fifo"
    os.mkfifo(path)
    return path


def test_a_file_is_read_to_its_end_and_its_last_line_needs_no_newline(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\n\nl\xffast")
    assert list(trigger.lines(trigger.opened(str(path)), never)) == ["one", "two", "", "l\ufffdast"]
    path.write_bytes(b"")
    assert list(trigger.lines(trigger.opened(str(path)), never)) == []


def test_a_fifo_is_opened_before_it_has_a_writer_and_read_until_the_last_one_goes(fifo):
    source = trigger.opened(str(fifo))
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(trigger.lines(source, never)))
    reader.start()
    time.sleep(3 * trigger._LOOK_S)
    assert reader.is_alive(), "no writer yet is not the end"
    with fifo.open("wb", buffering=0) as first:
        first.write(b"a")
        time.sleep(2 * trigger._LOOK_S)
        first.write(b"b\nc")
        with fifo.open("wb", buffering=0) as second:
            second.write(b"d\n")
        time.sleep(2 * trigger._LOOK_S)
        assert reader.is_alive()
        assert seen == ["ab", "cd"]
    reader.join(10)
    assert not reader.is_alive()


def test_it_stops_while_a_writer_could_still_write(fifo):
    source, stop = trigger.opened(str(fifo)), threading.Event()
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(trigger.lines(source, stop.is_set)))
    with fifo.open("wb", buffering=0) as writer:
        reader.start()
        writer.write(b"one\nhalf")
        while not seen:
            time.sleep(0.01)
        stop.set()
        reader.join(10)
        assert not reader.is_alive()
    assert seen == ["one"]


def test_what_is_no_line_takes_no_memory_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(trigger, "_LONGEST", 100)
    monkeypatch.setattr(trigger, "_CHUNK", 64)
    path = tmp_path / "lines"
    path.write_bytes(b"x" * 1000 + b"\nend\n")
    *long, last = trigger.lines(trigger.opened(str(path)), never)
    assert last == "end"
    assert "".join(long) == "x" * 1000
    assert max(map(len, long)) <= 164


def test_what_cannot_be_read_is_refused_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"--trigger .*none: No such file"):
        trigger.opened(str(tmp_path / "none"))


def test_a_folder_is_no_trigger(tmp_path):
    with pytest.raises(ConfigError, match="it is a folder"):
        trigger.opened(str(tmp_path))
    with pytest.raises(ConfigError, match="--trigger"):
        trigger.opened("")


def test_who_writes_to_a_fifo_that_is_read_no_more_is_told_so(fifo):
    source = trigger.opened(str(fifo))
    with fifo.open("wb", buffering=0) as writer:
        assert list(trigger.lines(source, lambda: True)) == []
        with pytest.raises(BrokenPipeError):
            writer.write(b"part\n")


STANDARD_INPUT = """
import signal, threading
from workers import trigger
stop = threading.Event()
signal.signal(signal.SIGINT, lambda *_: stop.set())
def read():
    for line in trigger.lines(trigger.opened("-"), stop.is_set):
        print(line, flush=True)
reader = threading.Thread(target=read, daemon=True)
reader.start()
stop.wait()
print("ended", flush=True)
"""


def test_a_process_that_reads_standard_input_ends_when_it_is_told_to():
    with subprocess.Popen(
        [sys.executable, "-c", STANDARD_INPUT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdin.write(b"part\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"part\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0, process.stderr.read()
        assert process.stdout.read() == b"ended\n"
