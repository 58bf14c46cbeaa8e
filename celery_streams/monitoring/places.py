"""places: which Redis database a URL means, told from the URL alone; it connects to nothing."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ("place",)


def place(url: str, *, default_database: int | str = 0) -> tuple[str, int, str]:
    """Return what tells Redis databases apart: host or socket, port, number; of several Sentinels, by the first.

    Never raises: a URL that cannot be parsed is a place of its own.
    """
    first = url.partition(";")[0]
    try:
        parts = urlsplit(first)
        port = parts.port or (26379 if parts.scheme.startswith("sentinel") else 6379)
    except ValueError:
        return first, 0, ""
    query = parse_qs(parts.query)
    fallback = str(default_database)
    if not parts.hostname:
        number = query.get("db", query.get("virtual_host", [fallback]))[0]
        return unquote(parts.path), 0, number.strip("/")
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return host, port, query.get("db", [parts.path.strip("/") or fallback])[0]
