"""What a process says of itself over HTTP."""

import json
import socket
import urllib.error
import urllib.request

import pytest
from structlog.testing import capture_logs

from pipeline.settings import build
from workers.exposition import Exposition
from workers.health import Check, Health, Heart
from workers.scrape import scrape


def settings(port, **station):
    return build({"metrics": {"port": port}, "stations": {"line-1/top": station}})


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serve():
    """Starts a process's server; all are stopped."""
    started = []

    def start(given, **options):
        health = Health(Exposition("worker", given), given, **options)
        health.start()
        started.append(health)
        return health

    yield start
    for health in started:
        health.stop()


def get(url, accept="*/*"):
    request = urllib.request.Request(url, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def test_health_is_200_or_503_and_names_each_check(serve, free_port):
    checks = [Check("loop", ok=True, detail="fine"), Check("model line-1/top/default", ok=False, detail='<"damaged">')]
    health = serve(settings(free_port), live=lambda: checks[:1], ready=lambda: checks)
    status, kind, body = get(f"{health.url}/health/live")
    assert (status, kind, json.loads(body)["ok"]) == (200, "application/json", True)
    status, _, body = get(f"{health.url}/health/ready?verbose")
    assert status == 503
    assert json.loads(body) == {
        "ok": False,
        "checks": [
            {"name": "loop", "ok": True, "detail": "fine"},
            {"name": "model line-1/top/default", "ok": False, "detail": '<"damaged">'},
        ],
    }
    assert get(f"{health.url}/../etc/passwd")[0] == 404


def test_a_check_that_fails_itself_is_not_healthy(serve, free_port):
    def broken():
        raise RuntimeError("a disk hangs")

    status, _, body = get(f"{serve(settings(free_port), live=broken).url}/health/live")
    assert status == 503
    assert "a disk hangs" in json.loads(body)["checks"][0]["detail"]


def test_the_build_is_told_in_either_format(serve, free_port):
    url = serve(settings(free_port)).url
    assert scrape(url).sum("goldline_build_info", process="worker") == 1
    _, kind, body = get(f"{url}/metrics", "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_several_processes_on_a_machine_take_the_next_free_port(serve, free_port):
    first, second = serve(settings(free_port)), serve(settings(free_port))
    assert first.url == f"http://127.0.0.1:{free_port}"
    assert first.url != second.url
    assert get(f"{second.url}/health/live")[0] == 200


def test_a_port_that_was_asked_for_and_is_taken_is_an_error_in_the_log_and_no_more(serve, free_port):
    serve(settings(free_port))
    with capture_logs() as logged:
        health = serve(settings(0), port=free_port)
    assert health.url is None
    assert [(each["event"], each["log_level"], each["first"]) for each in logged] == [
        ("no metrics: their port is taken", "error", free_port)
    ]


@pytest.mark.parametrize("options", [{}, {"port": 0}])
def test_port_0_is_off(serve, free_port, options):
    assert serve(settings(free_port if options else 0), **options).url is None


def test_a_loop_that_has_stood_still_is_not_alive():
    now = [100.0]
    heart = Heart(lambda: now[0])
    assert heart.alive().ok
    assert not heart.started().ok
    heart.beat()
    now[0] += 9.9
    assert heart.alive().ok
    assert heart.started().ok
    now[0] += 0.2
    assert not heart.alive().ok
