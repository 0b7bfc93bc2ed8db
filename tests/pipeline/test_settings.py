"""line.toml: what is read, what is refused, and how well the refusal is explained."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.settings import Sasl, Settings, Tls, build, read, secret_file

EVERYTHING = """
[kafka]
brokers = ["kafka-1:9093", "kafka-2:9093"]
prefix = "plant"
group = "inspectors"
tls = { ca_file = "ca.pem", cert_file = "me.pem", key_file = "me.key" }
sasl = { username = "me", password_file = "/run/secret", mechanism = "PLAIN" }
[store]
url = "redis://bank:6379/0"
poll_s = 1
[worker]
device = "cuda:1"
batch_max = 32
wait_ms = 2.5
threads = 4
window = 64
heatmaps = "all"
drain_s = 5.0
stuck_s = 30.0
remember = 5000
[frames]
inline_max_bytes = 500_000
max_pixels = 12_000_000
formats = ["JPEG", "PNG"]
deadline_max_ms = 1000
[gate]
on_pass = ["/bin/pulse", "--open"]
on_reject = ["/bin/pulse"]
pass_url = "http://plc/pass"
reject_url = "http://plc/reject"
hook_timeout_s = 0.5
stop_after = 5
on_stop = ["/bin/stop"]
silence_s = 3.0
fuse = "weighted"
reject_at = 1.5
part_deadline_ms = 900
[backbones."here:net"]
weights = "net.safetensors"
[backbones.resnet18]
[defaults]
deadline_ms = 200
on_no_decision = "pass"
false_reject_rate = 0.01
[stations."line-1/top"]
recipes = ["default", "m8-bolt"]
partition = 3
deadline_ms = 100
on_no_decision = "reject"
false_reject_rate = 0.002
weight = 2
frames_per_part = 3
optional = true
[stations."line-1/side"]
"""


def problems(tree, environment=None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build(tree, source="s", environment=environment)
    return [line.removeprefix("s: ") for line in str(caught.value).splitlines()]


def stations(**partitions):
    tree = {f"line-1/{name}": {} if at is None else {"partition": at} for name, at in partitions.items()}
    return build({"stations": tree})


def test_an_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "line.toml").write_text("")
    settings = read(tmp_path / "line.toml", {})
    assert settings == Settings()
    assert settings.on_no_decision("line-9/nowhere") == "reject"
    assert (settings.deadline_ms("line-9/nowhere"), settings.false_reject_rate("line-9/nowhere")) == (300, 0.005)
    assert settings.partitions() == {}
    assert settings.partition_count() == 1


def test_every_section_is_read(tmp_path):
    (tmp_path / "line.toml").write_text(EVERYTHING)
    s = read(tmp_path / "line.toml", {})
    assert s.kafka.brokers == ("kafka-1:9093", "kafka-2:9093")
    assert s.kafka.tls == Tls(ca_file="ca.pem", cert_file="me.pem", key_file="me.key")
    assert s.kafka.sasl == Sasl(username="me", password_file="/run/secret", mechanism="PLAIN")
    assert (s.store.url, s.store.poll_s) == ("redis://bank:6379/0", 1.0)
    assert (s.worker.device, s.worker.batch_max, s.worker.heatmaps) == ("cuda:1", 32, "all")
    assert (s.frames.formats, s.frames.max_pixels) == (("JPEG", "PNG"), 12_000_000)
    assert (s.gate.on_pass, s.gate.stop_after) == (("/bin/pulse", "--open"), 5)
    assert (s.gate.fuse, s.gate.reject_at, s.gate.part_deadline_ms) == ("weighted", 1.5, 900)
    top = s.stations["line-1/top"]
    assert (top.weight, top.frames_per_part, top.optional) == (2.0, 3, True)
    assert s.weights_files() == {"here:net": Path("net.safetensors"), "resnet18": None}


@pytest.mark.parametrize("root", ["/srv/frames", "srv/frames", "file://host/share", "s3://bucket", "redis://", ""])
def test_a_root_is_a_folder_s_or_a_redis_s_url(root):
    assert build({"frames": {"roots": ["file:///a", "redis://host:6379/1", "rediss://me@host"]}}).frames.roots[0]
    (problem,) = problems({"frames": {"roots": [root]}})
    assert problem.startswith("frames.roots")


def test_pictures_are_kept_until_their_frames_are_due():
    (problem,) = problems({"frames": {"keep_s": 60, "deadline_max_ms": 60_001}})
    assert problem == "frames.keep_s: 60 s is shorter than frames.deadline_max_ms 60001"


def test_a_station_s_own_value_goes_before_the_default(tmp_path):
    (tmp_path / "line.toml").write_text(EVERYTHING)
    s = read(tmp_path / "line.toml", {})
    for name, expected in {"line-1/top": (100, "reject", 0.002), "line-1/side": (200, "pass", 0.01)}.items():
        assert (s.deadline_ms(name), s.on_no_decision(name), s.false_reject_rate(name)) == expected


@pytest.mark.parametrize(
    ("tree", "where", "nearest"),
    [
        ({"kafak": {}}, "kafak", "kafka"),
        ({"worker": {"batch_mx": 3}}, "worker.batch_mx", "batch_max"),
        ({"kafka": {"tls": {"cafile": "x"}}}, "kafka.tls.cafile", "ca_file"),
        ({"stations": {"l/a": {"recipe": []}}}, "stations.l/a.recipe", "recipes"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(tree, where, nearest):
    (problem,) = problems(tree)
    assert problem == f"{where}: unknown setting; did you mean {nearest}?"


def test_a_key_like_none_is_told_what_there_is():
    (problem,) = problems({"store": {"zzzzzz": 1}})
    assert "known here: url, poll_s" in problem


def test_every_wrong_value_is_listed_with_its_path():
    found = problems(
        {
            "kafka": {"prefix": "no spaces", "brokers": ["fine:1", 7, 8], "sasl": {"mechanism": "NONE"}},
            "store": 3,
            "worker": {"batch_max": 0, "wait_ms": float("nan"), "heatmaps": "some", "threads": "4"},
            "frames": {"formats": ["JPEG", "GIF"], "max_pixels": 1.5},
            "defaults": {"false_reject_rate": 0.5, "on_no_decision": "maybe"},
            "stations": {"Line 1": {}, "l/a": {"partition": -1, "recipes": ["OK?", "../up"]}, "l/b": 1},
            "typo": 1,
        }
    )
    assert [problem.partition(": ")[0] for problem in found] == [
        "kafka.prefix",
        "kafka.brokers[1]",
        "kafka.brokers[2]",
        "kafka.sasl.password_file",
        "kafka.sasl.username",
        "kafka.sasl.mechanism",
        "store",
        "worker.batch_max",
        "worker.wait_ms",
        "worker.heatmaps",
        "worker.threads",
        "frames.formats[1]",
        "frames.max_pixels",
        "defaults.false_reject_rate",
        "defaults.on_no_decision",
        "stations.Line 1",
        "stations.l/a.partition",
        "stations.l/a.recipes[0]",
        "stations.l/a.recipes[1]",
        "stations.l/b",
        "typo",
    ]
    assert "saw 'GIF'" in found[11]


@pytest.mark.parametrize("name", ["line-1", "Line-1/top", "line_1/top", "a/b/c", "/top", "line-1/", "l/" + "x" * 61])
def test_a_station_s_name_is_line_slash_view(name):
    assert problems({"stations": {name: {}}})


@pytest.mark.parametrize("recipe", ["", "M8", "a b", "../x", ".hidden", "x" * 101, "ä"])
def test_a_recipe_s_name_is_safe_in_a_path(recipe):
    assert problems({"stations": {"l/a": {"recipes": [recipe]}}})


def test_a_certificate_needs_its_key():
    assert problems({"kafka": {"tls": {"cert_file": "x"}}}) == ["kafka.tls: cert_file and key_file go together"]


def test_partitions_are_the_station_s_own_or_the_lowest_free():
    s = stations(a=None, b=2, c=None, d=0, e=None)
    assert s.partitions() == {"line-1/a": 1, "line-1/b": 2, "line-1/c": 3, "line-1/d": 0, "line-1/e": 4}
    assert s.partition_count() == 5
    assert stations(a=9).partition_count() == 10


def test_two_stations_never_share_a_partition():
    tree = {"stations": {"l/a": {"partition": 1}, "l/b": {"partition": 1}}}
    assert problems(tree) == ["stations.l/b.partition: 1 is l/a's already"]


def test_the_environment_overrides_the_file_in_the_key_s_type(tmp_path):
    (tmp_path / "line.toml").write_text("[worker]\nbatch_max = 8\nwait_ms = 1.0\n")
    environment = {
        "GOLDLINE_WORKER__BATCH_MAX": "64",
        "GOLDLINE_STORE__POLL_S": "0.5",
        "GOLDLINE_KAFKA__BROKERS": "a:1, b:2",
        "GOLDLINE_FRAMES__FORMATS": "PNG",
        "GOLDLINE_GATE__ON_PASS": "",
        "GOLDLINE_GATE__PASS_URL": "http://plc",
        "GOLDLINE_KAFKA__SASL__USERNAME": "gate",
        "GOLDLINE_KAFKA__SASL__PASSWORD_FILE": "kafka.password",
        "GOLDLINE_DATA": "/not/a/setting",
        "HOME__WORKER": "x",
    }
    s = read(tmp_path / "line.toml", environment)
    assert (s.worker.batch_max, s.worker.wait_ms, s.store.poll_s) == (64, 1.0, 0.5)
    assert (s.kafka.brokers, s.frames.formats) == (("a:1", "b:2"), ("PNG",))
    assert (s.gate.on_pass, s.gate.pass_url) == ((), "http://plc")
    assert s.kafka.sasl
    assert (s.kafka.sasl.username, s.kafka.sasl.password_file) == ("gate", "kafka.password")


def test_each_process_may_have_a_kafka_user_of_its_own(tmp_path):
    (tmp_path / "line.toml").write_text('[kafka.sasl]\nusername = "anybody"\npassword_file = "/run/secrets/kafka"\n')
    s = read(tmp_path / "line.toml", {"GOLDLINE_KAFKA__SASL__USERNAME": "gate"})
    assert s.kafka.sasl
    assert (s.kafka.sasl.username, s.kafka.sasl.password_file) == ("gate", "/run/secrets/kafka")


def test_a_secret_without_a_folder_is_one_that_systemd_passed_on(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert secret_file("kafka.password") == Path("kafka.password")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/goldline-gate.service")
    assert secret_file("kafka.password") == Path("/run/credentials/goldline-gate.service/kafka.password")
    assert secret_file("/etc/goldline/kafka.password") == Path("/etc/goldline/kafka.password")


def test_a_variable_that_lacks_an_underscore_is_told_the_setting(tmp_path):
    others = ("DATA", "PEERS", "BROKER", "REDIS", "REDIS_PASSWORD", "WEIGHTS", "PICTURES", "KAFKA_SASL")
    environment = {f"GOLDLINE_{name}": "x" for name in others}
    found = problems({}, {"GOLDLINE_STORE_URL": "file:///x", **environment})
    assert found == ["environment GOLDLINE_STORE_URL: the setting is GOLDLINE_STORE__URL, two underscores"]


def test_one_text_where_a_list_is_needed_is_told_how_a_list_is_written():
    assert problems({"kafka": {"brokers": "localhost"}}) == ['kafka.brokers: a list is needed, as in ["localhost"]']


@pytest.mark.parametrize(
    ("tree", "environment", "where"),
    [
        ({"defaults": {"on_no_decision": "rejct"}}, {}, "defaults.on_no_decision"),
        ({"stations": {"l/a": {"on_no_decision": "rejct"}}}, {}, "stations.l/a.on_no_decision"),
        ({}, {"GOLDLINE_DEFAULTS__ON_NO_DECISION": "rejct"}, "environment GOLDLINE_DEFAULTS__ON_NO_DECISION"),
    ],
)
def test_a_wrong_choice_is_told_the_right_ones_wherever_it_is_made(tree, environment, where):
    assert problems(tree, environment) == [f"{where}: choose reject or pass (saw 'rejct')"]


def test_what_is_no_toml_for_another_reason_is_not_told_of_quotes(tmp_path):
    (tmp_path / "line.toml").write_text('[stations."line-1/top"\n')
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "line.toml", {})
    assert "quotes" not in str(caught.value)


def test_a_station_without_quotes_is_told_to_have_them(tmp_path):
    (tmp_path / "line.toml").write_text("[stations.line-1/top]\n")
    with pytest.raises(ConfigError, match=r'quotes: \[stations\."line-1/top"\]'):
        read(tmp_path / "line.toml", {})


def test_the_process_s_own_environment_counts(tmp_path, monkeypatch):
    (tmp_path / "line.toml").write_text("")
    monkeypatch.setenv("GOLDLINE_WORKER__DEVICE", "cpu")
    assert read(tmp_path / "line.toml").worker.device == "cpu"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GOLDLINE_WORKER__BATCHES", "1"),
        ("GOLDLINE_WRKER__BATCH_MAX", "1"),
        ("GOLDLINE_STATIONS__X", "1"),
        ("GOLDLINE_WORKER__BATCH_MAX", "many"),
        ("GOLDLINE_WORKER__BATCH_MAX", "0"),
        ("GOLDLINE_WORKER__WAIT_MS", "nan"),
        ("GOLDLINE_FRAMES__FORMATS", "PNG,GIF"),
        ("GOLDLINE_KAFKA__TLS", "yes"),
        ("GOLDLINE_KAFKA__SASL__USER", "x"),
        ("GOLDLINE_KAFKA__GROUP__X", "x"),
        ("GOLDLINE_BACKBONES__X__WEIGHTS", "x"),
    ],
)
def test_a_wrong_override_is_named(variable, value):
    (problem,) = problems({}, {variable: value})
    assert problem.startswith(f"environment {variable}: ")


def test_wrong_overrides_and_wrong_values_are_listed_together():
    found = problems({"worker": 3, "store": {"poll_s": -1}}, {"GOLDLINE_WORKER__DEVICE": "cpu", "GOLDLINE_X__Y": "1"})
    assert [p.split(":")[0] for p in found] == ["environment GOLDLINE_X__Y", "worker", "store.poll_s"]


def test_the_caller_s_tree_stays_as_it_is():
    tree = {"worker": {"batch_max": 4}}
    build(tree, environment={"GOLDLINE_WORKER__BATCH_MAX": "5", "GOLDLINE_KAFKA__PREFIX": "x"})
    assert tree == {"worker": {"batch_max": 4}}


def test_a_missing_file_is_told_by_its_path(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read settings .*none\.toml: No such file"):
        read(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="cannot read settings"):
        read(tmp_path, {})


@pytest.mark.parametrize("content", [b"[kafka", b"a = 1\na = 2", b"\xff\xfe\x00", b"{}"])
def test_what_is_not_toml_is_told(tmp_path, content):
    (tmp_path / "line.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"line\.toml is not TOML"):
        read(tmp_path / "line.toml", {})
