"""How aiokafka, which Faust reads frames with, takes them from the socket and apart."""

from collections.abc import Iterator
from typing import Any

import aiokafka.conn
import aiokafka.consumer.fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

from workers.header_names import forgiving

_READ_AHEAD_BYTES = 8 * 1024 * 1024
_FIRST_MAGIC = 2  # older batches have no headers


class _SlowBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    """aiokafka's batch in Python, which can be taught."""

    _read_msg = forgiving(_DefaultRecordBatchPy._read_msg)


class _Batch:
    """aiokafka's compiled batch; the slow one reads it where the compiled one cannot."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._fast = DefaultRecordBatch(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fast, name)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._fast))
        except UnicodeDecodeError:
            return iter(_SlowBatch(self._data))


class _Records(_MemoryRecordsPy):  # type: ignore[misc]
    """The batches of one fetch."""

    def next_batch(self, *arguments: Any) -> Any:
        """As aiokafka's, with our batch for those that may have headers."""
        data = self._next_slice
        if data is None or len(data) < self.MIN_SLICE or data[self.MAGIC_OFFSET] < _FIRST_MAGIC:
            return super().next_batch(*arguments)
        self._cache_next()
        return _Batch(data)


def prepare() -> None:
    """Read frames whole, and forgive names of headers that are no texts.

    aiokafka stops reading from a socket at 128 kB, and a frame has more: half a millisecond each.
    """
    aiokafka.conn.READER_LIMIT = _READ_AHEAD_BYTES
    aiokafka.consumer.fetcher.MemoryRecords = _Records
