"""Hooks are real programs and real servers: they get JSON, and nothing they do reaches the gate."""

import json
import socket
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from structlog.testing import capture_logs

from pipeline.errors import ConfigError
from pipeline.settings import Gate as GateSettings
from workers.gate import Action
from workers.hooks import Hooks

HOSTILE = ["$(touch pwned)", "`touch pwned`; touch pwned", "--help", "a\nb\x00c", '"}\n{"action": "pass', "☃" * 50]


def action(kind="reject", *, part_id="p-1", in_a_row=1):
    return Action(
        part_id=part_id,
        frame_id="f-1",
        station="line-1/top",
        action=kind,
        why="verdict",
        reason=None,
        score=1.5,
        decided_at="2025-06-15T12:00:00.000000Z",
        slack_ms=12.0,
        in_a_row=in_a_row,
    )


def writes(path):
    """A command that keeps its standard input and its arguments."""
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).open('ab').write(sys.stdin.buffer.read() + b'\\n')"
    return (sys.executable, "-c", code, str(path))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def called(settings, *actions):
    """What was logged while these actions were carried out."""
    with capture_logs() as logged:
        hooks = Hooks(settings)
        for each in actions:
            hooks.call(each)
        hooks.close()
    return logged


@contextmanager
def server(status=200, *, delay_s=0.0):
    """A PLC that speaks HTTP: its URL and the bodies that it was sent."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append((self.path, self.headers["content-type"], json.loads(body)))
            time.sleep(delay_s)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/gate", bodies
        http.shutdown()
        thread.join()


@contextmanager
def raw_server(answer):
    """A server that says `answer` and hangs up, whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        thread.join(10)


def test_a_command_gets_the_action_on_its_standard_input(tmp_path):
    seen = tmp_path / "seen"
    assert called(GateSettings(on_reject=writes(seen)), action()) == []
    assert lines(seen) == [action().body()]


def test_each_verdict_has_its_own_command(tmp_path):
    passed, rejected = tmp_path / "passed", tmp_path / "rejected"
    settings = GateSettings(on_pass=writes(passed), on_reject=writes(rejected))
    called(settings, action("pass", part_id="a"), action("reject", part_id="b"), action("pass", part_id="c"))
    assert sorted(each["part_id"] for each in lines(passed)) == ["a", "c"]
    assert [each["part_id"] for each in lines(rejected)] == ["b"]


def test_without_hooks_nothing_is_called():
    assert called(GateSettings(), action("pass"), action("reject", in_a_row=100)) == []


@pytest.mark.parametrize("part_id", HOSTILE)
def test_a_part_id_reaches_a_command_only_as_json(tmp_path, monkeypatch, part_id):
    monkeypatch.chdir(tmp_path)
    seen = tmp_path / "seen"
    keeps_arguments = f"import sys, json; json.dump(sys.argv, open({str(tmp_path / 'argv')!r}, 'w')); "
    program, flag, code, path = writes(seen)
    called(GateSettings(on_reject=(program, flag, keeps_arguments + code, path)), action(part_id=part_id))
    assert lines(seen)[0]["part_id"] == part_id
    assert json.loads((tmp_path / "argv").read_text()) == ["-c", str(seen)]
    assert not (tmp_path / "pwned").exists()


def test_a_url_is_sent_the_action():
    with server() as (url, bodies):
        logged = called(GateSettings(reject_url=url), action(part_id=HOSTILE[4]), action("pass"))
    assert bodies == [("/gate", "application/json", action(part_id=HOSTILE[4]).body())]
    assert logged == []


def test_a_command_and_a_url_are_both_called(tmp_path):
    seen = tmp_path / "seen"
    with server() as (url, bodies):
        called(GateSettings(on_pass=writes(seen), pass_url=url), action("pass"))
    assert len(lines(seen)) == len(bodies) == 1


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "-c", "raise SystemExit(3)"),
        (sys.executable, "-c", "import os; os.close(0)"),
        ("/nowhere/at/all",),
        ("/etc/passwd",),
        ("a\x00b",),
    ],
)
def test_a_failing_command_is_a_log_line_and_the_next_one_is_called(tmp_path, command):
    seen = tmp_path / "seen"
    logged = called(GateSettings(on_reject=command, on_pass=writes(seen)), action(), action("pass"), action())
    assert len(lines(seen)) == 1
    fails = "os.close" not in command[-1]
    assert [each["event"] for each in logged] == ["hook failed"] * 2 * fails


def test_a_hook_that_hangs_is_ended():
    settings = GateSettings(on_reject=(sys.executable, "-c", "import time; time.sleep(60)"), hook_timeout_s=0.3)
    started = time.monotonic()
    logged = called(settings, action())
    assert time.monotonic() - started < 20
    assert "timed out" in logged[0]["error"]


def test_calling_never_waits_for_the_hook():
    settings = GateSettings(on_reject=(sys.executable, "-c", "import time; time.sleep(60)"), hook_timeout_s=0.5)
    hooks = Hooks(settings)
    started = time.monotonic()
    for _ in range(8):
        hooks.call(action())
    assert time.monotonic() - started < 0.5
    hooks.close()


def test_what_a_command_prints_stays_out_of_the_gates_output(capfd):
    called(GateSettings(on_reject=(sys.executable, "-c", "print('not an action')")), action())
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_a_server_that_refuses_is_a_log_line(status):
    with server(status) as (url, bodies):
        logged = called(GateSettings(reject_url=url), action())
    assert len(bodies) == 1
    assert [each["event"] for each in logged] == ["hook failed"]


def test_a_server_that_is_not_there_is_a_log_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    logged = called(GateSettings(reject_url=f"http://127.0.0.1:{port}/"), action())
    assert [each["event"] for each in logged] == ["hook failed"]


def test_a_server_that_does_not_answer_is_a_log_line():
    with server(delay_s=1.0) as (url, _):
        logged = called(GateSettings(reject_url=url, hook_timeout_s=0.2), action())
    assert "timed out" in logged[0]["error"]


@pytest.mark.parametrize(
    "answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200]
)
def test_a_server_that_talks_nonsense_is_a_log_line(answer):
    with raw_server(answer) as url:
        logged = called(GateSettings(reject_url=url), action())
    assert [each["event"] for each in logged] == ["hook failed"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://plc/x", "plc/gate", "javascript:1"])
def test_only_http_is_called(url):
    with pytest.raises(ConfigError, match="http://"):
        Hooks(GateSettings(pass_url=url))


def test_the_line_is_stopped_once_when_too_many_in_a_row_do_not_pass(tmp_path):
    stopped = tmp_path / "stopped"
    settings = GateSettings(stop_after=3, on_stop=writes(stopped))
    logged = called(settings, *(action(in_a_row=n) for n in (1, 2, 3, 4, 5)))
    assert [each["in_a_row"] for each in lines(stopped)] == [3]
    assert [(each["log_level"], each["n"]) for each in logged] == [("critical", 3)]


def test_a_row_that_begins_again_stops_the_line_again(tmp_path):
    stopped = tmp_path / "stopped"
    settings = GateSettings(stop_after=2, on_stop=writes(stopped))
    called(settings, *(action(in_a_row=n) for n in (1, 2, 0, 1, 2, 3)))
    assert len(lines(stopped)) == 2


def test_without_a_setting_no_row_is_too_long(tmp_path):
    stopped = tmp_path / "stopped"
    assert called(GateSettings(on_stop=writes(stopped)), *(action(in_a_row=n) for n in (0, 1, 50))) == []
    assert lines(stopped) == []
