"""A Redis as a plant would set it up: TLS on both sides, users with just the rights they need, passwords in files."""

import logging
import shutil
import subprocess
import traceback
from datetime import UTC, datetime

import pytest
import torch

from model_store import Marks, ModelKey, open_store
from model_store.lifecycle import collect
from pipeline.data import Artifact
from pipeline.errors import GoldlineError, StoreUnavailable
from tests.conftest import missing
from tests.redis_server import RedisServer, make_certificates

KEY = ModelKey("line-1/top")
WORD, OTHER_WORD = "plant-s3cret", "reader-s3cret"
USERS = f"""
user default off
user engineer on >{WORD} ~goldline:* resetchannels +@read +@write +@transaction +@connection -@dangerous
user reader on >{OTHER_WORD} %R~goldline:* resetchannels +@read +@connection
"""


def model(n):
    return Artifact(method="padim", tensors={"bank": torch.full((40, 6), float(n))}, meta={"n": n})


@pytest.fixture
def plant(redis_server, tmp_path):
    """The URL of a store by user; and what is in `tmp_path`: certificates, files with passwords."""
    assert redis_server
    if shutil.which("openssl") is None:
        missing("no openssl here: it makes the certificates")
    linked = subprocess.run(["ldd", shutil.which("redis-server")], capture_output=True, text=True, check=False).stdout
    if "libssl" not in linked:
        missing("this redis-server was built without TLS")
    certificates = make_certificates(tmp_path / "certificates")
    (tmp_path / "redis").mkdir()
    (tmp_path / "users.acl").write_text(USERS)
    (tmp_path / "engineer").write_text(f"{WORD}\n")
    (tmp_path / "reader").write_text(OTHER_WORD)
    with RedisServer(tmp_path / "redis", "--aclfile", str(tmp_path / "users.acl"), certificates=certificates) as server:

        def url(user="engineer", scheme="rediss", word=None, **files):
            options = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"} | files
            more = "".join(f"&{name}={certificates / file}" for name, file in options.items() if file)
            word = word or tmp_path / user
            return f"{scheme}://{user}@{server.address}/0?cache={tmp_path}/cache-{user}&password_file={word}{more}"

        yield url


def test_everything_works_with_the_rights_that_the_readme_names(plant):
    store = open_store(plant())
    first, second, third = (store.put(KEY, model(n)) for n in range(3))
    store.promote(KEY, first, expected=None, who="ana")
    store.promote(KEY, second, expected=first, who="ana")
    store.mark(KEY, Marks(shadow=third), expected=Marks(), who="ana")
    store.mark(KEY, Marks(), expected=Marks(shadow=third), who="ana")
    assert len(store.markings(KEY)) == len(store.history(KEY)) == 2
    assert [s.version for s in collect(store, unused_since=datetime.now(UTC)).swept] == [third]
    assert store.get(KEY, second).meta["n"] == 1
    reader = open_store(plant("reader"))
    assert reader.current(KEY) == second
    assert reader.get(KEY, second).meta["n"] == 1
    with pytest.raises(StoreUnavailable, match=r"(?i)permission"):
        reader.put(KEY, model(5))


def test_a_reader_that_may_not_record_its_use_still_loads(plant):
    store = open_store(plant())
    version = store.put(KEY, model(1))
    store._redis.hset("goldline:used:line-1/top:default", version, 0)
    assert open_store(plant("reader")).get(KEY, version).meta["n"] == 1
    assert store.versions(KEY)[0].used_at == datetime.fromtimestamp(0, UTC)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ca_file": "server.crt"},
        {"ca_file": None},
        {"cert_file": None, "key_file": None},
        {"scheme": "redis"},
        {"user": "nobody", "word": "engineer"},
        {"user": "engineer", "word": "reader"},
    ],
    ids=str,
)
def test_who_is_not_let_in_learns_why_and_no_password_is_shown(plant, tmp_path, caplog, wrong):
    open_store(plant()).put(KEY, model(1))
    caplog.set_level(logging.DEBUG)
    chosen = {**wrong, **({"word": tmp_path / wrong["word"]} if "word" in wrong else {})}
    store = open_store(plant(**chosen))
    with pytest.raises(GoldlineError) as caught:
        store.current(KEY)
    assert isinstance(caught.value, StoreUnavailable)
    shown = "".join(traceback.format_exception(caught.value, chain=True)) + repr(store) + caplog.text
    assert str(caught.value).removeprefix("model store in Redis: ") not in {"", str(caught.value)}
    assert "s3cret" not in shown
    assert "s3cret" not in (tmp_path / "redis" / "log").read_text()


def test_a_certificate_for_another_name_is_refused(plant, tmp_path):
    open_store(plant()).put(KEY, model(1))
    with pytest.raises(StoreUnavailable, match=r"(?i)hostname|certificate"):
        open_store(plant().replace("127.0.0.1", "localhost")).current(KEY)
