"""A Redis that takes no writes, because its disk or its memory is full, until room is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery_streams.connection import RedisClient
from tests.support.eventually import eventually

#: Bytes that an empty server has in use already.
_LITTLE = 500_000


@contextmanager
def disk_full(client: RedisClient) -> Iterator[None]:
    """Have the server fail to save, and so refuse whatever writes (MISCONF)."""
    in_the_way = Path(client.call("CONFIG", "GET", "dir")[1].decode()) / "dump.rdb"
    # It minds only where it shall save by itself; never so soon.
    client.call("CONFIG", "SET", "save", "86400 1000000")
    in_the_way.mkdir()
    try:
        _save(client, "err")
        yield
    finally:
        in_the_way.rmdir()
        _save(client, "ok")
        client.call("CONFIG", "SET", "save", "")
        in_the_way.unlink()


def _save(client: RedisClient, status: str) -> None:
    client.call("BGSAVE")

    def saved() -> bool:
        said = client.call("INFO", "persistence").decode()
        return "rdb_bgsave_in_progress:0" in said and f"rdb_last_bgsave_status:{status}" in said

    eventually(saved, message=f"the status of the save is {status}")


@contextmanager
def memory_full(client: RedisClient) -> Iterator[None]:
    """Lower maxmemory below what is in use: the server refuses whatever takes memory (OOM)."""
    client.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    client.call("CONFIG", "SET", "maxmemory", _LITTLE)
    try:
        yield
    finally:
        client.call("CONFIG", "SET", "maxmemory", 0)
