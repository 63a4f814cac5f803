"""The service under promotions and kill -9: `python -m benchmarks.soak [--seconds 600] [--project DIR]`.

Two workers answer a constant stream of requests, at 70 % of what they can at most, which is measured first. Every 5 s comes
a promotion or a rollback, and every 30 s the younger worker is killed with -9. Counted are wrong answers, answers without a
row in the log, and requests that failed: those that were in flight on a killed worker, and others. The older worker lives
to the end, and its memory is shown over the time. Without `--project`, a small one is made; any other needs two versions.
"""

import argparse
import asyncio
import itertools
import json
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import psutil
import sqlalchemy as sa
import uvloop

from benchmarks.parcels import make_project
from mlsys.core import Project
from mlsys.prediction_log import PredictionLog
from mlsys.records import prediction_table
from mlsys.registry import Registry
from mlsys.roles import Holder
from mlsys.service import running_service
from mlsys.serving import example_rows

Case = tuple[bytes, dict[str, float]]  # a body, and its score by version
_length = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def workers(supervisor: psutil.Process) -> list[psutil.Process]:
    """The worker processes of a service, the oldest first."""
    found = []
    for one in supervisor.children(recursive=True):
        try:
            if "_bentoml_impl.worker.service" in one.cmdline():
                found.append(one)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda one: one.create_time())


def cases(registry: Registry, names: list[str]) -> list[Case]:
    """Requests for a row each, and what each version says about it."""
    holders = {name: Holder(registry.get(name)) for name in names}
    rows = example_rows(next(iter(holders.values())).version)
    told = {name: holder.score(holder.intake.check(rows).clean) for name, holder in holders.items()}
    return [(json.dumps({"rows": [row]}).encode(), {name: float(scores[number]) for name, scores in told.items()})
            for number, row in enumerate(rows)]


@dataclass
class Told:
    """What clients were told."""
    ids: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # no 200, or not what the version says
    failed: list[tuple[float, int, str]] = field(default_factory=list)  # when, on which local port, and how
    last: dict[str, float] = field(default_factory=dict)  # when a request was sent that a version answered

    def check(self, begun: float, status: int, body: bytes, scores: dict[str, float]) -> None:
        """Judge an answer."""
        if status != 200:
            self.wrong.append(f"{status} {body[:200]!r}")
            return
        (one,) = msgspec.json.decode(body)["predictions"]
        self.ids.append(one["id"])
        self.last[one["model"]] = max(begun, self.last.get(one["model"], 0.0))
        if not abs(one["score"] - scores.get(one["model"], math.nan)) <= 1e-9 or one["role"] == "fallback":
            self.wrong.append(json.dumps(one)[:200])


class Clients:
    """Clients that ask until their block ends, each on a connection that it keeps, and check every answer.

    Parameters
    ----------
    rate : float, optional
        Requests a second of all of them; as many as are answered when None.
    """

    def __init__(self, port: int, cases: list[Case], number: int = 8, rate: float | None = None) -> None:
        self.port, self.cases, self.number = port, cases, number
        self.pause = number / rate if rate else 0.0
        self.told, self._stop = Told(), threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._all()))

    def __enter__(self) -> Told:
        self._thread.start()
        return self.told

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    async def _all(self) -> None:
        await asyncio.gather(*(self._one(number) for number in range(self.number)))

    async def _one(self, number: int) -> None:
        due, last, link = time.monotonic() + self.pause * number / self.number, 0.0, None
        for body, scores in itertools.cycle(self.cases[number % len(self.cases):] + self.cases[:number % len(self.cases)]):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._stop.is_set():
                break
            begun, port = time.monotonic(), 0
            due = max(due + self.pause, begun - 1)  # what was held up for longer than a second is not caught up on
            try:
                async with asyncio.timeout(60):
                    if link and (link[0].at_eof() or begun - last > 2):  # a server may close a connection that rests
                        link[1].close()
                        link = None
                    link = reader, writer = link or await asyncio.open_connection("127.0.0.1", self.port)
                    port = writer.get_extra_info("sockname")[1]
                    writer.write(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                                 b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = _length.search(head)
                    answer = await reader.readexactly(int(length[1]) if length else 0)
            except (OSError, EOFError, TimeoutError) as error:
                self.told.failed.append((time.monotonic(), port, repr(error)))
                if link:
                    link[1].close()
                link, due = None, max(due, time.monotonic() + 0.05)
                continue
            last = time.monotonic()
            self.told.check(begun, int(head[9:12]), answer, scores)
        if link:
            link[1].close()


def kill(worker: psutil.Process) -> set[int]:
    """Kill a worker with -9; the local ports of the clients whose connections it held."""
    worker.suspend()  # what it holds now is what it holds when it dies
    held = {one.raddr.port for one in worker.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED and one.raddr}
    worker.send_signal(signal.SIGKILL)
    return held


def without_row(project: Project, ids: list[str]) -> int:
    """How many of the answers the prediction log does not have."""
    with PredictionLog(project.database_url).engine.connect() as connection:
        return len(set(ids) - set(connection.scalars(sa.select(prediction_table.c.id))))


@dataclass
class Course:
    """What was done to the service, and when."""
    changes: int = 0
    slowest: float = 0.0  # seconds for which the champion of before still answered
    kills: list[tuple[float, set[int]]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # MB of the worker that lives to the end

    def explains(self, when: float, port: int) -> bool:
        """Whether a request failed because its worker was killed."""
        return any(port in held and at <= when <= at + 60 for at, held in self.kills)

    def grows(self) -> bool:
        """Whether the worker holds a tenth more at the end than after a minute, when all versions have been loaded."""
        return len(self.memory) > 3 and self.memory[-1] > 1.1 * self.memory[2]


def disturb(registry: Registry, supervisor: psutil.Process, told: Told, seconds: float) -> Course:
    """Promote, roll back and kill, for so long."""
    course, start = Course(), time.monotonic()
    first, second = registry.versions()[:2]
    registry.promote(first, "the soak begins")
    oldest = workers(supervisor)[0]
    changed, before = time.monotonic(), second
    for step in range(1, max(2, int(seconds / 5)) + 1):
        time.sleep(max(0.0, start + 5 * step - time.monotonic()))
        course.slowest = max(course.slowest, told.last.get(before, 0.0) - changed)
        before = first if step % 2 else second
        if step % 2:
            registry.promote(second, "soak")
        else:
            registry.rollback("soak")
        course.changes, changed = course.changes + 1, time.monotonic()
        if step % 6 == 3 and len(alive := workers(supervisor)) > 1:
            course.kills.append((time.monotonic(), kill(alive[-1])))
        if step % 6 == 0 or step == 1:  # every 30 s
            course.memory.append(round(oldest.memory_info().rss / 1e6))
    time.sleep(3)
    course.slowest = max(course.slowest, told.last.get(before, 0.0) - changed)
    course.memory.append(round(oldest.memory_info().rss / 1e6))
    return course


def soak(project: Project, seconds: float, clients: int, share: float) -> dict[str, Any]:
    """Run it, and count."""
    registry = Registry(project)
    asked = cases(registry, registry.versions()[:2])
    with running_service(project, workers=2) as service:
        supervisor, port = psutil.Process(service.process.pid), int(service.url.rpartition(":")[2])
        with Clients(port, asked, clients):
            time.sleep(2)
        begun = time.monotonic()
        with Clients(port, asked, clients) as most:
            time.sleep(5)
        rate = len(most.ids) / (time.monotonic() - begun)
        begun = time.monotonic()
        with Clients(port, asked, clients, share * rate) as told:
            course = disturb(registry, supervisor, told, seconds)
        taken = time.monotonic() - begun
        left = len(workers(supervisor))
    explained = [course.explains(when, port) for when, port, _ in told.failed]
    return {
        "requests a second": f"{len(told.ids) / taken:,.0f}, of {rate:,.0f} at most",
        "answers": len(told.ids), "wrong answers": len(told.wrong),
        "without a log row": without_row(project, told.ids + most.ids),
        "champion changed": f"{course.changes} times; the one before answered for up to {max(0.0, course.slowest):.1f} s",
        "workers killed": f"{len(course.kills)}; {left} work at the end",
        "failed with them": sum(explained), "failed otherwise": len(explained) - sum(explained),
        "memory MB": " ".join(map(str, course.memory)),
        "memory": "grows" if course.grows() else "flat",
        "for example": [*told.wrong, *(one for one, known in zip(told.failed, explained, strict=True) if not known)][:3],
    }


def main() -> None:
    """Soak, and print the counts; ends with 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.7, help="of the maximum")
    parser.add_argument("--project", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Project.find(options.project) if options.project else make_project(Path(folder))
        if len(Registry(project).versions()) < 2:
            print(f"{project.root} needs two versions: run mlsys retrain twice there, or leave --project out.")
            return
        os.environ["MLSYS_ACCESS_LOG"] = "off"  # ten minutes of lines tell nothing here
        told = soak(project, options.seconds, options.clients, options.share)
    for name, value in told.items():
        print(f"{name:18} {value}")
    if told["wrong answers"] or told["without a log row"] or told["failed otherwise"] or told["memory"] == "grows":
        sys.exit(1)


if __name__ == "__main__":
    main()
