"""A credential provider as managed servers need one: the password is a token that somebody changes."""

from __future__ import annotations

import os
from pathlib import Path

import redis

#: The environment variable that names the file with user and token, which is read at each connect.
FILE = "TOKEN_OF_THE_TEST"

#: Its dotted path, for URLs.
PROVIDER = f"{__name__}.FromFile"


class FromFile(redis.CredentialProvider):
    """Gives what stands in the file now."""

    def get_credentials(self) -> tuple[str, str]:
        user, token = Path(os.environ[FILE]).read_text().split()
        return user, token


def write_credentials(path: Path, user: str, token: str) -> None:
    """Write the file in one step: who reads it in between must not see half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(f"{user} {token}")
    fresh.replace(path)
