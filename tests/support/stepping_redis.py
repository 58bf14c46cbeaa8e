"""A real Redis whose clock can be set while it runs; it needs a C compiler.

libfaketime would do, but it hangs where Redis allocates with jemalloc, which asks for the time before main().
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from celery_streams.embedded import EmbeddedRedis, find_server

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *ahead;  /* nanoseconds */

__attribute__((constructor)) static void attach(void) {
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
    void *found = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (found == MAP_FAILED) abort();
    ahead = found;
}

int clock_gettime(clockid_t which, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, which, at);
    if (!result && ahead && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
        long long whole = at->tv_sec * 1000000000LL + at->tv_nsec + *ahead;
        at->tv_sec = whole / 1000000000LL;
        at->tv_nsec = whole % 1000000000LL;
    }
    return result;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    at->tv_sec = exact.tv_sec;
    at->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (at) *at = exact.tv_sec;
    return exact.tv_sec;
}
"""


class SteppingRedis(EmbeddedRedis):
    """A server whose wall clock is as far off as was last said; its monotonic clock goes on as it does on a host."""

    def __init__(self, folder: Path, compiler: str) -> None:
        source, library, said = folder / "clock.c", folder / "clock.so", folder / "ahead"
        source.write_text(_SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, source], check=True)
        said.write_bytes(bytes(8))
        with said.open("r+b") as file:
            self._ahead = mmap.mmap(file.fileno(), 8)
        wrapper = folder / "redis-server-with-a-clock-of-its-own"
        wrapper.write_text(f'#!/bin/sh\nLD_PRELOAD={library} CLOCK_AHEAD={said} exec {find_server()} "$@"\n')
        wrapper.chmod(0o755)
        super().__init__(executable=wrapper)

    def set_clock(self, seconds: float) -> None:
        """Set the clock so many seconds ahead of this host's, or behind it."""
        self._ahead[:] = struct.pack("=q", int(seconds * 1e9))


@contextmanager
def stepping_redis(folder: Path) -> Iterator[SteppingRedis]:
    """Run such a server; the test is skipped where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    server = SteppingRedis(folder, compiler)
    with server:
        yield server
