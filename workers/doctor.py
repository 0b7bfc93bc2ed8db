"""Whether this machine and what a line stands on are fit for it: one finding for each thing, with what to do.

Nothing is changed but for empty files that are made and removed, to see whether a folder can be written.
"""

import contextlib
import ctypes
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from model_store import ModelKey, open_store
from model_store.frames import open_roots
from model_store.pool import open_pool
from model_store.urls import folder_of
from pipeline.errors import GoldlineError
from pipeline.settings import Frames, Settings
from workers import clients, kafka_jars, settings_file, topics, waiting

_STORE_S = 10.0
_FREE_MIN = 1_000_000_000
_FREE_SHARE_MIN = 0.05
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}

State = Literal["pass", "fail", "skip"]


class Finding(Struct, frozen=True, kw_only=True):
    """What was found of one thing.

    Attributes:
        state: `skip` is what this line does not need.
        seen: what is there, in words.
        todo: what to do about it; empty but for `fail`.
    """

    name: str
    state: State
    seen: str
    todo: str = ""


def connections(settings: Settings) -> Iterator[Finding]:
    """Device, broker and store: what `goldline check --connect` asks for."""
    for probe in (device, broker, store):
        yield from probe(settings)


def everything(settings: Settings) -> Iterator[Finding]:
    """All there is."""
    found = list(broker(settings))
    yield from java(settings, needed=any(f.state == "fail" for f in found))
    yield from found
    answers = all(f.state == "pass" for f in found)
    yield from topics_(settings) if answers else [_skip("topics", "the broker does not answer")]
    for probe in (redis, store, frames, pool, weights, device, clock, disk):
        yield from probe(settings)


def java(settings: Settings, *, needed: bool) -> Iterator[Finding]:
    """A Java for the development broker, where there is no other."""
    try:
        yield _pass("java", f"{kafka_jars.java()}")
    except GoldlineError as error:
        if _is_here(settings) and needed:
            yield _fail("java", "none of 17 or later", str(error))
        else:
            yield _skip("java", "none of 17 or later; only a development broker needs it")


def broker(settings: Settings) -> Iterator[Finding]:
    """Whether a broker answers, with the line's certificates and password."""
    kafka = settings.kafka
    where = ", ".join(kafka.brokers)
    try:
        options = clients.client_options(kafka)
        with topics.connected(kafka.brokers, options, clients.ANSWER_S) as admin:
            count = len(admin.describe_cluster()["brokers"])
    except GoldlineError as error:
        yield _fail("broker", f"{where}: does not answer", str(error))
        return
    yield _pass("broker", f"{where}: {count} {'broker answers' if count == 1 else 'brokers answer'}")


def topics_(settings: Settings) -> Iterator[Finding]:
    """Every topic with its partitions and limits."""
    wanted = topics.of(settings)
    try:
        problems = topics.check(settings.kafka.brokers, wanted, client_options=clients.client_options(settings.kafka))
    except GoldlineError as error:
        problems = [str(error)]
    for problem in problems:
        seen, _, todo = problem.partition("; ")
        yield _fail("topics", seen, todo or "see to the broker's access rules")
    if not problems:
        limit = settings.frames.inline_max_bytes
        yield _pass("topics", f"{len(wanted)} topics of {settings.kafka.prefix}, for pictures of {limit:,} bytes")


def redis(settings: Settings) -> Iterator[Finding]:
    """Each Redis that models or pictures are in: an answer, and for models that none is evicted."""
    named = {
        "[store] url": settings.store.url,
        **{f"[frames] roots {i}": r for i, r in enumerate(settings.frames.roots)},
    }
    urls = {what: url for what, url in named.items() if url.startswith(("redis://", "rediss://"))}
    if not urls:
        yield _skip("redis", "no model and no picture is in Redis")
    for what, url in urls.items():
        yield from _redis(what, url, models=what == "[store] url")


def _redis(what: str, url: str, *, models: bool) -> Iterator[Finding]:
    from model_store import redis_client  # noqa: PLC0415 - loaded only where it is used

    name = f"redis, {what}"
    try:
        server = redis_client.parse(url, options=frozenset({"cache"}))
        with redis_client.answering():
            client = server.connect(timeout_s=4.0, retries=0)
            memory = client.info("memory")
    except GoldlineError as error:
        yield _fail(name, str(error), f"start it, or mend {what} in {settings_file.named()}")
        return
    policy = str(memory.get("maxmemory_policy", "unknown"))
    if models and policy not in {"noeviction", "unknown"}:
        todo = "CONFIG SET maxmemory-policy noeviction, and in redis.conf: an evicted piece of a model is damage"
        yield _fail(name, f"{server.host}:{server.port} may evict models: {policy}", todo)
        return
    yield _pass(name, f"{server.host}:{server.port} answers, {memory.get('used_memory_human')} used, {policy}")


def store(settings: Settings) -> Iterator[Finding]:
    """Whether models can be read, written where they are in a folder, and every station has one."""
    url = settings.store.url
    keys = [ModelKey(name, recipe) for name, station in settings.stations.items() for recipe in station.recipes]
    try:
        with_one = waiting.at_most(_STORE_S, lambda: _in_service(url), what="the model store")
    except GoldlineError as error:
        fit = f"goldline fit PICTURES --station {keys[0].station if keys else 'LINE/PLACE'} --store {_plain_url(url)}"
        yield _fail("store", str(error), f"mount it, or mend [store] url; a new one begins with its first model: {fit}")
        return
    folder = None if _is_redis(url) else Path(urlsplit(url).path if "://" in url else url)
    rights = "" if folder is None else ", can be written" if _writable(folder) else ", read only from here"
    yield _pass("store", f"{_plain_url(url)}: answers{rights}")
    without = [key for key in keys if key not in with_one]
    if without:
        listed = ", ".join(map(str, without))
        fit = f"goldline fit PICTURES --station {without[0].station} --store {_plain_url(url)}"
        todo = f"{fit}, or goldline models promote"
        yield _fail("models", f"none in service: {listed}", todo)
    elif keys:
        yield _pass("models", f"one in service for each station and recipe ({len(keys)})")


def _in_service(url: str) -> set[ModelKey]:
    opened = open_store(url)
    return {key for key in opened.keys() if opened.current(key)}  # noqa: SIM118 - it is no mapping


def frames(settings: Settings) -> Iterator[Finding]:
    """The places for large pictures; folders alone, Redis is looked at by itself."""
    create = f"goldline frames create {settings_file.option()}"
    if not settings.frames.roots:
        yield _skip("frames", "no place for pictures above [frames] inline_max_bytes")
    for url in settings.frames.roots:
        if _is_redis(url):
            continue
        (root,) = open_roots([url], keep_s=settings.frames.keep_s).stores
        found = _folder("frames", url, root.check, f"mount it; a new one: {create}")
        if found.state == "fail" and settings.frames.roots == Frames().roots and not folder_of(url, "frames").exists():
            # Nobody asked for it: most lines send nothing so large.
            found = _skip("frames", f"nothing at {url}, where pictures above inline_max_bytes would go: {create}")
        yield found


def pool(settings: Settings) -> Iterator[Finding]:
    """The pool of accepted frames, where there is one."""
    if settings.pool.url is None:
        yield _skip("pool", "accepted frames are not kept")
        return
    yield _folder(
        "pool", settings.pool.url, open_pool(settings.pool).defects, "mount it; a new one is made by a worker"
    )


def weights(settings: Settings) -> Iterator[Finding]:
    """The backbone that ships, and each that settings name."""
    from workers.backbones import DEFAULT, sources  # noqa: PLC0415 - torch takes seconds to import

    looked_at = sources(settings)
    for name in dict.fromkeys([DEFAULT, *settings.backbones]):
        there = [place for place in looked_at.places(name) if place.there]
        if there:
            yield _pass("weights", f"{name}: {there[0].path or 'to be fetched'} ({there[0].kind})")
        else:
            yield _fail("weights", f"{name}: none", f"goldline weights import FILE --name {name}, or mend [backbones]")


def device(settings: Settings) -> Iterator[Finding]:
    """The device of [worker] device."""
    from pipeline.devices import describe_device  # noqa: PLC0415 - torch takes seconds to import

    try:
        yield _pass("device", f"{settings.worker.device}: {describe_device(settings.worker.device)}")
    except GoldlineError as error:
        yield _fail("device", str(error), f"mend [worker] device in {settings_file.named()}, or install a driver")


def clock(settings: Settings) -> Iterator[Finding]:
    """Whether this machine's clock is held to others': deadlines are times that cameras set and gates keep."""
    if _is_here(settings):
        yield _skip("clock", "the broker is on this machine: there is one clock")
        return
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # all fields 0: it is only asked
    except (OSError, AttributeError):
        yield _skip("clock", "this system does not tell whether its clock is synchronised")
        return
    if state in {-1, _TIME_ERROR}:
        todo = "install chrony, or timedatectl set-ntp true: a camera's time is compared with this one"
        yield _fail("clock", "not synchronised, says the kernel", todo)
    else:
        yield _pass("clock", "synchronised, says the kernel")


def disk(settings: Settings) -> Iterator[Finding]:
    """Room in every folder that is written."""
    urls = [settings.store.url, settings.pool.url, *settings.frames.roots]
    local = [folder_of(url, "disk") for url in urls if url and url.startswith("file:///") and "?" not in url]
    rooms: dict[Path, Any] = {}
    for wanted in (*local, Path(settings.drift.folder).expanduser()):
        try:
            rooms.update([waiting.at_most(_STORE_S, functools.partial(_room, wanted), what=str(wanted))])
        except (GoldlineError, OSError) as error:
            yield _fail("disk", str(error), f"see what {wanted} is mounted from, and whether that answers")
    for folder, usage in rooms.items():
        seen = f"{folder}: {usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f}"
        if usage.free < _FREE_MIN or usage.free < _FREE_SHARE_MIN * usage.total:
            yield _fail("disk", seen, "make room: goldline models gc, [pool] max_bytes, [frames] keep_s")
        else:
            yield _pass("disk", seen)


def _folder(name: str, url: str, ask: Callable[[], object], todo: str) -> Finding:
    """A folder of ours that has its marker and can be written."""
    folder = folder_of(url, name)
    try:
        waiting.at_most(_STORE_S, ask, what=str(folder))
        may_write = waiting.at_most(_STORE_S, lambda: _writable(folder), what=str(folder))
    except GoldlineError as error:
        return _fail(name, str(error), todo)
    if not may_write:
        return _fail(name, f"{folder} cannot be written by this user", f"give this user the right to write to {folder}")
    return _pass(name, f"{folder} can be written")


def _room(wanted: Path) -> tuple[Path, Any]:
    """The folder, or the nearest above it that is there, where it would be made; and the room on its disk."""
    folder = next(each for each in (wanted, *wanted.parents) if each.is_dir())
    return folder, shutil.disk_usage(folder)


def _writable(folder: Path) -> bool:
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder):
        return True
    return False


def _is_here(settings: Settings) -> bool:
    """Whether the brokers are on this machine alone."""
    return all(address.rpartition(":")[0].strip("[]") in _LOOPBACK for address in settings.kafka.brokers)


def _is_redis(url: str) -> bool:
    return url.startswith(("redis://", "rediss://"))


def _plain_url(url: str) -> str:
    """Without options: where a password is read is nobody's business."""
    return url.partition("?")[0]


def _pass(name: str, seen: str) -> Finding:
    return Finding(name=name, state="pass", seen=seen)


def _fail(name: str, seen: str, todo: str) -> Finding:
    return Finding(name=name, state="fail", seen=seen, todo=todo)


def _skip(name: str, seen: str) -> Finding:
    return Finding(name=name, state="skip", seen=seen)
