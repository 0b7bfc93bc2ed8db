"""Records whose header names are not UTF-8: both Kafka clients would stop at one, for ever, and its partition with it.

Kafka says that a header's name is a text, but no broker looks. Here such a name is read with replacement characters,
so that the record reaches our own code, which answers it like any other that cannot be understood.
"""

from typing import Any

from kafka.record.default_records import DefaultRecordBatch


class _Forgiving(bytearray):
    """Bytes whose slices decode with replacement characters."""

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)
        return _Forgiving(part) if isinstance(at, slice) else part

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:  # noqa: ARG002 - that is the point
        return super().decode(encoding, "replace")


def forgiving(read_one: Any) -> Any:
    """The same reader of one record, which tries again where a name does not decode."""

    def read(self: Any, *arguments: Any) -> Any:
        try:
            return read_one(self, *arguments)
        except UnicodeDecodeError:
            self._buffer = _Forgiving(self._buffer)
            return read_one(self, *arguments)

    return read


def forgive_edges() -> None:
    """Teach kafka-python, which gates, tools and recovery read with. Once is enough."""
    taught = getattr(DefaultRecordBatch, "_goldline", False)
    if not taught:
        DefaultRecordBatch._read_msg = forgiving(DefaultRecordBatch._read_msg)
        DefaultRecordBatch._goldline = True
