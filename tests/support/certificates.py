"""Certificates of a small authority of a test's own, made with openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from celery_streams.embedded import EmbeddedRedis
from celery_streams.exceptions import BrokerUnavailable


@dataclass(frozen=True, slots=True)
class Certificates:
    """What signed all of them, and the certificate and key of a server at 127.0.0.1, and of a client."""

    authority: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]

    @property
    def server_options(self) -> tuple[str, ...]:
        """Options of redis.conf."""
        certificate, key = map(str, self.server)
        return ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", str(self.authority))


@lru_cache
def missing() -> str:
    """Return why there is no TLS here: nothing makes certificates, or the server has none; '' when there is."""
    if shutil.which("openssl") is None:
        return "openssl makes the certificates"
    try:
        with EmbeddedRedis(args=("--tls-port", "0")):
            return ""
    except BrokerUnavailable as exc:
        return f"this server has no TLS: {exc}"


def certificates(directory: Path) -> Certificates:
    """Make all of them in ``directory``."""
    _openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority"),
        *("-keyout", directory / "ca.key", "-out", directory / "ca.crt"),
    )
    return Certificates(
        directory / "ca.crt",
        _signed(directory, "server", extension="subjectAltName=IP:127.0.0.1"),
        _signed(directory, "client", extension="extendedKeyUsage=clientAuth"),
    )


def _signed(directory: Path, name: str, *, extension: str) -> tuple[Path, Path]:
    key, request, certificate = (directory / f"{name}.{kind}" for kind in ("key", "csr", "crt"))
    extensions = directory / f"{name}.ext"
    extensions.write_text(extension)
    _openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
    _openssl(
        *("x509", "-req", "-in", request, "-CA", directory / "ca.crt", "-CAkey", directory / "ca.key"),
        *("-CAcreateserial", "-out", certificate, "-days", "2", "-extfile", extensions),
    )
    return certificate, key


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
