"""Requests as fast as a server answers them: `python -m benchmarks.load PORT PATH BODIES SECONDS CONCURRENCY`.

Connections are kept open, and each sends its next request when the answer to the last one is whole. BODIES is a file with a
JSON list of bodies, sent in turn. Printed is one line of JSON: answers a second, the median and the 99th percentile of the
milliseconds that they took, and how many were no 200.
"""

import asyncio
import itertools
import json
import re
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import uvloop

_length = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One client on one connection."""

    def __init__(self, requests: "itertools.cycle[bytes]", taken: list[float], failed: list[int]) -> None:
        self.requests, self.taken, self.failed, self.buffer = requests, taken, failed, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport
        self.send()

    def send(self) -> None:
        """The next request."""
        self.began = time.perf_counter()
        self.transport.write(next(self.requests))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """A piece of an answer."""
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _length.search(self.buffer, 0, head)
        if length is None:
            raise SystemExit(f"An answer without a length: {self.buffer[:300]!r}")
        if len(self.buffer) < head + 4 + int(length[1]):
            return
        self.taken.append(time.perf_counter() - self.began)
        if self.buffer[9:12] != b"200":
            self.failed.append(int(self.buffer[9:12]))
        self.buffer = b""
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        """A server that closes a connection in between has failed."""
        self.failed.append(0)


async def load(port: int, path: str, bodies: list[str], seconds: float, concurrency: int) -> dict[str, float]:
    """The figures of one run."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    requests = [f"{head}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode() for body in bodies]
    taken: list[float] = []
    failed: list[int] = []
    loop = asyncio.get_running_loop()

    def connection(start: int) -> Connection:
        return Connection(itertools.cycle(requests[start:] + requests[:start]), taken, failed)

    kept = [await loop.create_connection(partial(connection, number % len(requests)), "127.0.0.1", port)
            for number in range(concurrency)]
    await asyncio.sleep(seconds * 0.1)  # the first ones warm up
    taken.clear()
    begun = time.perf_counter()
    await asyncio.sleep(seconds)
    elapsed, found, lost = time.perf_counter() - begun, list(taken), len(failed)
    for transport, _ in kept:
        transport.abort()
    times = np.array(found) * 1000 if found else np.array([np.nan])
    return {"rate": len(found) / elapsed, "p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99)),
            "failed": lost}


if __name__ == "__main__":
    port, path, file, seconds, concurrency = sys.argv[1:]
    print(json.dumps(uvloop.run(load(int(port), path, json.loads(Path(file).read_text()), float(seconds), int(concurrency)))))
