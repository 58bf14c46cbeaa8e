"""The client: one function for each thing that the provider does, over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode

from django.conf import settings

__all__ = ("EvolutionError", "TooManyRequests", "group_size", "mark_as_read", "profile_picture", "send_text")

#: Seconds for an answer.
TIMEOUT = 15.0


class EvolutionError(Exception):
    """The API did not answer, or with an error."""


class TooManyRequests(EvolutionError):
    """The API wants to be left alone for some seconds."""

    @property
    def seconds(self) -> float:
        """How long."""
        return float(self.args[0])


def send_text(jid: str, text: str, *, key: str) -> None:
    """Send a message; the provider delivers one with the same key only once.

    Raises:
        EvolutionError: it was not taken; TooManyRequests, if only for now.
    """
    _call("message/sendText", {"number": jid, "text": text}, {"Idempotency-Key": key})


def mark_as_read(jid: str, message_id: int) -> None:
    """Mark a message as read; doing it twice changes nothing.

    Raises:
        EvolutionError: as with :func:`send_text`.
    """
    _call("chat/markMessageAsRead", {"readMessages": [{"remoteJid": jid, "id": str(message_id)}]})


def profile_picture(jid: str) -> bytes:
    """Return the picture of a contact or group, an SVG.

    Raises:
        EvolutionError: as with :func:`send_text`.
    """
    address = str(json.loads(_call("chat/fetchProfilePictureUrl", {"number": jid}))["profilePictureUrl"])
    if not address.startswith(("http://", "https://")):
        raise EvolutionError(f"The Evolution API told no address of a picture: {address!r}.")
    return _open(urllib.request.Request(address))


def group_size(jid: str) -> int:
    """Return how many members a group has.

    Raises:
        EvolutionError: as with :func:`send_text`.
    """
    told = json.loads(_open(_request(f"group/findGroupInfos?{urlencode({'groupJid': jid})}")))
    return int(told["size"])


def _call(path: str, content: dict[str, Any], headers: dict[str, str] | None = None) -> bytes:
    return _open(_request(path, json.dumps(content).encode(), headers))


def _request(path: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> urllib.request.Request:
    command, _, query = path.partition("?")
    url = f"{settings.EVOLUTION_URL}/{command}/{settings.EVOLUTION_INSTANCE}{'?' if query else ''}{query}"
    return urllib.request.Request(
        url, data, {"apikey": settings.EVOLUTION_KEY, "Content-Type": "application/json", **(headers or {})}
    )


def _open(request: urllib.request.Request) -> bytes:
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as exc:
        with exc:
            if exc.code == 429:
                raise TooManyRequests(float(exc.headers.get("Retry-After") or 1)) from exc
            raise EvolutionError(f"The Evolution API answered {exc.code} {exc.reason}.") from exc
    except OSError as exc:
        raise EvolutionError(f"The Evolution API does not answer: {exc}.") from exc
