"""Odd requests against a real service: `python -m benchmarks.fuzz [--requests 100000] [--seed N] [--only NUMBER]`.

Rows of random types, huge numbers, broken texts, nested and doubled fields, broken JSON, NaN, wrong types of content, methods,
paths and headers, sent over connections that are kept. Whatever is sent, there is no 5xx; every refusal is JSON of the form
`{"errors": [{"row", "field", "problem"}]}`; every prediction has a finite score; a connection is closed only where HTTP says
so; and at the end the service is ready, and its memory has not grown. Each request follows from the seed and its number, so
`--seed` with `--only` sends one of them again. `--project` serves that project instead of a small one.
"""

import argparse
import contextlib
import json
import math
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.parcels import make_project
from benchmarks.soak import workers
from mlsys.core import Project
from mlsys.registry import Registry
from mlsys.service import RunningService, running_service

bound = 150  # MB by which a worker may grow between the first tenth of the requests and the last
texts = ["", " ", "0", "-0", "1e400", "NaN", "Infinity", "-inf", "null", "None", "true", "FALSE", "1,5", "1.5", "١٢٣",
         "½", "𝟏", "0x10", "1_000", "2026-01-01", "2026-02-30", "9999-12-31T23:59:59Z", "0000-00-00",
         "2026-01-01T00:00:00+99:99", "12:00", "yesterday", "red", "RED", " red ", "rеd", "é", "e\u0301", "\u0000",
         "\u202e", "\ufeff", "\u200b", "🜁", "👩‍👩‍👧‍👦", "ß" * 300, "x" * 9_999, "x" * 10_001,
         "'; DROP TABLE predictions; --", "<script>alert(1)</script>", "../../etc/passwd", "%s%n", "{{7*7}}",
         "\r\nX: y"]
numbers = [0, -0.0, 1, -1, 0.1, 1e-320, 5e-324, 1e15, 2**53 + 1, 2**63, -2**63 - 1, 2**64, 10**30, 1e300, -1e300,
           1.7976931348623157e308, 10**400, 1e-7, 255, 65536, 3.0000000000000004, 1e22]
literals = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "01", "1.", ".5", "+1", "0x1F", "1e", "'x'",
            "undefined", "\\u0041", '"\\ud800"', '"\\x"', '"\t"', "nul", "tru", "[", "{", "}", '"', ",", "/* c */1",
            "1 2", "9" * 5000, "-", "1E+400", "0e0", "-0"]
paths = ["/predict", "/predict/", "//predict", "/Predict", "/predict?x=1", "/predict?" + "a" * 3000, "/feedback",
         "/model", "/schema", "/docs.json", "/metrics", "/", "/healthz", "/readyz", "/livez", "/schema.json",
         "/favicon.ico", "/robots.txt", "/..", "/../etc/passwd", "/%2e%2e/%2fetc", "/%00", "/%ff",
         "/predict%0d%0aX:1", "/" + "x" * 5000, "/wp-login.php", "/docs", "/static_content/x", "/é", "*"]
methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "M-SEARCH", "PURGE"]
kinds = ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON",
         "application/json;charset=latin-1", "text/plain", "", "application/x-www-form-urlencoded",
         "multipart/form-data; boundary=x", "application/jsonl", "application/*", "json", "a" * 4000,
         "application/vnd.api+json", "text/html", "application/xml", "\xff"]

strange_bodies = [b"", b"null", b"[]", b"{}", b"7", b'"rows"', b"\xff\xfe\x00", b"\x00" * 100, b"\xef\xbb\xbf{}",
                  b"\x1f\x8b\x08\x00", b'{"rows": null}', b'{"rows": {}}', b'{"rows": [[]]}', b'{"Rows": []}',
                  b'{"rows": [], "x": 1}']
strange_headers = {
    "X-Request-ID": ["", "a" * 64, "a" * 65, "é", "a b", "<x>", "order-1"],
    "traceparent": ["", f"00-{'0' * 32}-{'0' * 16}-00", f"00-{'a' * 32}-{'b' * 16}-01", "x"],
    "Authorization": ["", "Bearer", "Bearer ", "Bearer a_b_c", "Basic YTpi", "é"],
    "Accept": ["text/html", "*/*", "", "application/xml;q=0"], "Accept-Encoding": ["gzip, br"], "Cookie": ["a=b; c"],
    "Content-Encoding": ["gzip"], "Expect": ["100-continue"], "X": ["y", "y" * 5000], "Range": ["bytes=0-1"],
    "If-None-Match": ["*"], "Content-Type": ["text/plain"], "Host": ["elsewhere"], "X-Forwarded-For": ["1.2.3.4"],
    "Origin": ["http://evil.example"], "X-HTTP-Method": ["PUT"],
    "Upgrade": ["h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
                "websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="],
}
no_http = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
           b"POST /predict HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n",
           b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
           b"POST /predict HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"]


class Sent(NamedTuple):
    """A request: what kind of oddity it is, its bytes, and what may follow."""
    name: str
    data: bytes
    method: str = "POST"
    path: str = "/predict"
    closes: bool = False  # HTTP lets the server close the connection after it
    foreign: bool = False  # no HTTP at all: the server in front answers it in plain text


def head(method: str, path: str, body: bytes, kind: str = "application/json", more: str = "") -> bytes:
    """A request's bytes."""
    typed = f"Content-Type: {kind}\r\n" if kind else ""
    first = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{typed}{more}Content-Length: {len(body)}\r\n\r\n"
    return first.encode("utf-8", "surrogatepass") + body


class Oddities:
    """Requests, each made from the seed and its number alone.

    Parameters
    ----------
    rows : list of dict
        Good rows to spoil.
    """

    def __init__(self, seed: int, rows: list[dict[str, Any]]) -> None:
        self.seed, self.rows = seed, rows
        makers: list[tuple[int, Callable[[random.Random], Sent]]] = [
            (8, self.good), (40, self.odd_row), (12, self.many_rows), (8, self.odd_text), (6, self.spoilt), (4, self.doubled),
            (3, self.deep), (3, self.odd_body), (6, self.odd_path), (3, self.odd_type), (5, self.odd_headers), (6, self.labels),
            (2, self.chunked), (2, self.pieces), (1, self.last), (1, self.foreign)]
        self.makers, self.weights = [make for _, make in makers], [weight for weight, _ in makers]

    def make(self, number: int) -> Sent:
        """The request of that number."""
        draw = random.Random(f"{self.seed}/{number}")
        if draw.random() < 0.0003:
            return self.huge(draw)
        (make,) = draw.choices(self.makers, self.weights)
        return make(draw)

    def value(self, draw: random.Random, depth: int = 0) -> Any:
        """Any value that JSON can carry, and some that it cannot."""
        pick = draw.random()
        if pick < 0.3:
            return draw.choice(texts)
        if pick < 0.5:
            return draw.choice(numbers)
        if pick < 0.6:
            return draw.uniform(-1, 1) * 10.0 ** draw.randint(-320, 308)
        if pick < 0.68:
            return draw.choice([None, True, False])
        if pick < 0.72:
            return draw.choice([math.nan, math.inf, -math.inf])
        if pick < 0.84 or depth > 3:
            return "".join(chr(draw.choice([draw.randint(32, 126), draw.randint(0, 0x2fff), draw.randint(0xd7f0, 0xe010),
                                            draw.randint(0x10000, 0x10ffff)])) for _ in range(draw.randint(0, 30)))
        if pick < 0.92:
            return [self.value(draw, depth + 1) for _ in range(draw.randint(0, 4))]
        return {str(self.value(draw, 9))[:50]: self.value(draw, depth + 1) for _ in range(draw.randint(0, 4))}

    def row(self, draw: random.Random) -> dict[str, Any]:
        """A good row with something odd in it."""
        row = dict(draw.choice(self.rows))
        for _ in range(draw.choice([0, 1, 1, 1, 2, 5])):
            change, name = draw.random(), draw.choice(list(row) or ["x"])
            if change < 0.75:
                row[name] = self.value(draw)
            elif change < 0.85:
                row.pop(name, None)
            else:
                row[draw.choice([name.upper(), name + " ", "", "id", "__proto__", *texts])] = self.value(draw)
        return row

    def body(self, draw: random.Random, told: Any) -> bytes:
        """JSON in one of the ways in which it may be written."""
        text = json.dumps(told, ensure_ascii=draw.random() < 0.5, indent=draw.choice([None, None, 1]))
        return text.encode("utf-8", "surrogatepass")

    def explain(self, draw: random.Random) -> dict[str, Any]:
        """Sometimes the wish for an explanation."""
        pick = draw.random()
        return {} if pick < 0.5 else {"explain": draw.choice([True, False, 0, 1, 2, 10**9]) if pick < 0.9 else self.value(draw)}

    def good(self, draw: random.Random) -> Sent:
        """Nothing wrong with it."""
        return Sent("good", head("POST", "/predict", self.body(draw, {"rows": [draw.choice(self.rows)], **self.explain(draw)})))

    def odd_row(self, draw: random.Random) -> Sent:
        """One row."""
        return Sent("odd row", head("POST", "/predict", self.body(draw, {"rows": [self.row(draw)], **self.explain(draw)})))

    def many_rows(self, draw: random.Random) -> Sent:
        """Rows among which there is something else."""
        rows: list[Any] = [self.row(draw) if draw.random() < 0.3 else draw.choice(self.rows) for _ in range(draw.randint(0, 40))]
        if draw.random() < 0.2:
            rows.insert(draw.randint(0, len(rows)), self.value(draw))
        return Sent("many rows", head("POST", "/predict", self.body(draw, {"rows": rows, **self.explain(draw)})))

    def odd_text(self, draw: random.Random) -> Sent:
        """A value that is no JSON, or hardly."""
        row, name = dict(draw.choice(self.rows)), draw.choice(list(self.rows[0]))
        row[name] = "@@"
        text = json.dumps({"rows": [row]}).replace('"@@"', draw.choice(literals))
        return Sent("odd literal", head("POST", "/predict", text.encode()))

    def spoilt(self, draw: random.Random) -> Sent:
        """Some bytes of a good body are others."""
        body = bytearray(self.body(draw, {"rows": [draw.choice(self.rows)]}))
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(body)) if body else 0
            what = draw.random()
            if what < 0.4 and body:
                body[at] = draw.randrange(256)
            elif what < 0.7:
                del body[at:at + draw.randint(1, 20)]
            else:
                body[at:at] = draw.randbytes(draw.randint(1, 5))
        return Sent("spoilt bytes", head("POST", "/predict", bytes(body)))

    def doubled(self, draw: random.Random) -> Sent:
        """A field twice."""
        row = draw.choice(self.rows)
        name = draw.choice(list(row))
        text = json.dumps(row)[:-1] + f", {json.dumps(name)}: {json.dumps(self.value(draw))}}}"
        twice = draw.choice(['{"rows": [%s]}', '{"rows": 1, "rows": [%s]}', '{"rows": [%s], "explain": 1, "explain": true}'])
        return Sent("a field twice", head("POST", "/predict", (twice % text).encode("utf-8", "surrogatepass")))

    def deep(self, draw: random.Random) -> Sent:
        """Brackets in brackets."""
        depth = draw.choice([10, 500, 990, 1024, 5000, 100_000])
        left, right = draw.choice([("[", "]"), ('{"a":', "}"), ('[{"rows":', "}]")])
        inside = draw.choice(["", "1"]) if left == "[" else "1"
        text = left * depth + inside + right * (depth if draw.random() < 0.7 else depth - 1)
        return Sent("deep", head("POST", "/predict", draw.choice(["%s", '{"rows": %s}', '{"rows": [{"amount": %s}]}']).replace(
            "%s", text).encode()))

    def odd_body(self, draw: random.Random) -> Sent:
        """A body that is something else."""
        bodies = [*strange_bodies, draw.randbytes(200), json.dumps({"rows": [{}] * 10_001}).encode(),
                  json.dumps({"rows": [self.rows[0]] * 1001, "explain": True}).encode(), self.body(draw, self.value(draw))]
        return Sent("odd body", head("POST", draw.choice(["/predict", "/feedback"]), draw.choice(bodies)))

    def odd_path(self, draw: random.Random) -> Sent:
        """Another place, asked in another way."""
        method, path = draw.choice(methods), draw.choice(paths)
        body = b"" if method in ("GET", "HEAD") and draw.random() < 0.9 else b'{"rows": []}'
        return Sent("odd path", head(method, path, body), method, path, foreign=path == "*" or not path.isascii())

    def odd_type(self, draw: random.Random) -> Sent:
        """JSON that says it is something else."""
        body, kind = self.body(draw, {"rows": [draw.choice(self.rows)]}), draw.choice(kinds)
        first = head("POST", "/predict", body, "@@").replace(b"@@", kind.encode("latin-1"))
        return Sent("odd type", first)

    def odd_headers(self, draw: random.Random) -> Sent:
        """Headers that nobody needs."""
        lines = [f"{name}: {draw.choice(values)}" for name, values in strange_headers.items()]
        more = "".join(line + "\r\n" for line in draw.sample(lines, draw.randint(1, 4)))
        body = self.body(draw, {"rows": [draw.choice(self.rows)]})
        socket_wanted = "websocket" in more
        return Sent("odd headers", head("POST", "/predict", body, more=more), closes=socket_wanted, foreign=socket_wanted)

    def labels(self, draw: random.Random) -> Sent:
        """POST /feedback."""
        labels = [{"id": draw.choice(["x", "", 7, None, self.value(draw)]), "label": draw.choice(["yes", "no", self.value(draw)]),
                   **draw.choice([{}, {"at": draw.choice(texts)}, {"at": self.value(draw)}, {"why": 1}])}
                  for _ in range(draw.randint(0, 5))]
        told = draw.choice([{"labels": labels}, {"labels": labels}, {"labels": self.value(draw)}])
        return Sent("labels", head("POST", "/feedback", self.body(draw, told)), path="/feedback")

    def chunked(self, draw: random.Random) -> Sent:
        """A body in chunks."""
        body, parts = self.body(draw, {"rows": [self.row(draw)]}), b""
        while body:
            size = draw.randint(1, max(1, len(body)))
            parts, body = parts + b"%x\r\n%b\r\n" % (size, body[:size]), body[size:]
        first = head("POST", "/predict", b"", more="@@").replace(b"@@Content-Length: 0", b"Transfer-Encoding: chunked")
        return Sent("chunked", first + parts + b"0\r\n\r\n")

    def pieces(self, draw: random.Random) -> Sent:
        """The same as another one; it is sent in pieces."""
        return self.odd_row(draw)._replace(name="in pieces")

    def last(self, draw: random.Random) -> Sent:
        """The last request of its connection."""
        body = self.body(draw, {"rows": [self.row(draw)]})
        data = head("POST", "/predict", body, more="Connection: close\r\n")
        old = data.replace(b"HTTP/1.1", b"HTTP/1.0", 1).replace(b"Connection: close\r\n", b"", 1)
        return Sent("last", draw.choice([data, old]), closes=True)

    def foreign(self, draw: random.Random) -> Sent:
        """What is no HTTP."""
        data = draw.choice([*no_http, no_http[0] + draw.randbytes(50)])
        return Sent("no HTTP", data, closes=True, foreign=True)

    def huge(self, draw: random.Random) -> Sent:
        """More than is taken."""
        body = b'{"rows": "' + b"x" * (17 * 2**20) + b'"}'
        declared = head("POST", "/predict", b"").replace(b"Content-Length: 0", b"Content-Length: 999999999999")
        return draw.choice([Sent("huge", head("POST", "/predict", body)), Sent("huge, it says", declared, closes=True)])


class Answer(NamedTuple):
    """What came back."""
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """A connection that is kept as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket: socket.socket | None = None
        self.rests, self.since = b"", 0.0

    def close(self) -> None:
        """End it."""
        if self.socket:
            self.socket.close()
        self.socket, self.rests = None, b""

    def ask(self, sent: Sent) -> Answer:
        """An answer; EOFError when the server closed the connection instead."""
        if self.socket and time.monotonic() - self.since > 2:  # a server may close a connection that rests
            self.close()
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=60)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        size = max(1, len(sent.data) // 5) if sent.name == "in pieces" else len(sent.data)
        with contextlib.suppress(ConnectionError):  # it may have answered already and read no further
            for start in range(0, len(sent.data), size):
                self.socket.sendall(sent.data[start:start + size])
        answer = self._answer(sent)
        while answer.status in (100, 102, 103):
            answer = self._answer(sent)
        self.since = time.monotonic()
        if answer.headers.get("connection", "").lower() == "close" or sent.closes or answer.status == 101:
            self.close()
        return answer

    def _answer(self, sent: Sent) -> Answer:
        first, _, lines = self._until(b"\r\n\r\n").decode("latin-1").partition("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines.splitlines())}
        status = int(first.split()[1])
        if sent.method == "HEAD" or status in (204, 304) or status < 200:
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size + 2)[:-2]
            self._until(b"\r\n")
        else:
            body = self._exactly(int(headers.get("content-length", "0")))
        return Answer(status, headers, body)

    def _until(self, mark: bytes) -> bytes:
        while mark not in self.rests:
            self._more()
        found, _, self.rests = self.rests.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self.rests) < size:
            self._more()
        found, self.rests = self.rests[:size], self.rests[size:]
        return found

    def _more(self) -> None:
        assert self.socket is not None
        if not (data := self.socket.recv(2**16)):
            raise EOFError
        self.rests += data


def no_constant(text: str) -> None:
    """NaN and the infinities are no JSON."""
    raise ValueError(f"{text} in the answer")


def fault(sent: Sent, answer: Answer) -> str:
    """What is wrong with an answer; empty when nothing is."""
    if answer.status >= 500:
        return f"status {answer.status}"
    if sent.foreign and answer.status in (400, 403, 404, 426, 101):
        return ""
    told = None
    if answer.body and ("json" in answer.headers.get("content-type", "") or answer.status >= 300):
        try:
            told = json.loads(answer.body, parse_constant=no_constant)
        except ValueError as error:
            return f"no JSON: {error}"
    if answer.status >= 300:
        return "" if sent.method == "HEAD" else wrong_refusal(told)
    if sent.name == "good" and "explain" not in sent.data.decode("utf-8", "replace") and answer.status != 200:
        return "a good request was refused"
    return wrong_predictions(told) if sent.path == "/predict" else ""


def wrong_refusal(told: Any) -> str:
    """What is wrong with a refusal."""
    if not isinstance(told, dict) or set(told) != {"errors"} or not isinstance(told["errors"], list) or not told["errors"]:
        return "no list of errors"
    for one in told["errors"]:
        if set(one) != {"row", "field", "problem"} or not isinstance(one["problem"], str) or not one["problem"]:
            return "an error without a problem"
        if not isinstance(one["row"], int | None) or not isinstance(one["field"], str | None):
            return "an error in no place"
    return ""


def wrong_predictions(told: Any) -> str:
    """What is wrong with predictions."""
    for one in told["predictions"]:
        if set(one) != {"id", "score", "decision", "model", "role", "warnings", "explanation"}:
            return f"fields {sorted(one)}"
        if not (isinstance(one["score"], float | int) and math.isfinite(one["score"])):
            return f"score {one['score']!r}"
        if one["role"] == "fallback":
            return f"a fallback: {one['warnings']}"
        if one["explanation"]:
            margin = one["explanation"]["base"] + sum(part["contribution"] for part in one["explanation"]["contributions"])
            if not math.isfinite(margin):
                return "an explanation that is not finite"
    return ""


class Findings:
    """What several clients found."""

    def __init__(self) -> None:
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.faults: list[str] = []
        self.next, self.lock = 0, threading.Lock()

    def number(self, most: int) -> int | None:
        """The number of the next request; None when all were sent or too much is wrong."""
        with self.lock:
            if self.next >= most or len(self.faults) >= 20:
                return None
            self.next += 1
            return self.next - 1

    def send(self, connection: Connection, number: int, sent: Sent) -> None:
        """Send a request and judge what comes back."""
        try:
            answer = connection.ask(sent)
            problem = fault(sent, answer)
            self.statuses[sent.name, answer.status] += 1
            told = f"{answer.status} {answer.body[:300]!r}"
        except (OSError, EOFError) as error:
            connection.close()
            problem, told = "" if sent.foreign else f"no answer: {error!r}", ""
            self.statuses[sent.name, 0] += 1
        except Exception as error:
            connection.close()
            problem, told = f"an answer that cannot be read: {error!r}", ""
        if problem:
            self.faults.append(f"request {number} ({sent.name}): {problem}\n    sent {sent.data[:600]!r}\n    got  {told}")


def memory(service: RunningService) -> float:
    """MB that the workers hold."""
    return sum(one.memory_info().rss for one in workers(psutil.Process(service.process.pid))) / 1e6


def fuzz(project: Project, requests: range, seed: int, clients: int = 4) -> tuple[Findings, list[float], bool]:
    """Send the requests of these numbers; what was found, the memory after the first tenth and at the end, and readiness."""
    found, held = Findings(), [0.0, 0.0]
    found.next = requests.start
    with running_service(project) as service:
        port = int(service.url.rpartition(":")[2])
        rows = json.loads(Connection(port).ask(Sent("rows", head("GET", "/schema", b""), "GET")).body)["examples"]
        oddities = Oddities(seed, rows)

        def work(stop: int) -> None:
            connection = Connection(port)
            while (number := found.number(stop)) is not None:
                found.send(connection, number, oddities.make(number))
            connection.close()

        for place, stop in enumerate((requests.start + len(requests) // 10, requests.stop)):
            threads = [threading.Thread(target=work, args=(stop,)) for _ in range(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            held[place] = memory(service)
        ready = service.ready()
        broken = re.findall(r".*(?:Traceback|\[ERROR\]).*", service.log.read_text(errors="replace"))
    found.faults += [f"in the service's log: {line}" for line in broken[:5]]
    return found, held, ready


def main() -> None:
    """Send, and print what was found; ends with 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--only", type=int, help="send the request of this number alone")
    parser.add_argument("--project", type=Path)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    requests = range(options.requests) if options.only is None else range(options.only, options.only + 1)
    with tempfile.TemporaryDirectory() as folder:
        project = Project.find(options.project) if options.project else make_project(Path(folder))
        if not options.project:  # half of the rows for the linear model, half for the trees
            Registry(project).promote("v2", "both kinds", role="canary", share=0.5)
        begun = time.monotonic()
        found, held, ready = fuzz(project, requests, options.seed)
    for name in dict.fromkeys(name for name, _ in sorted(found.statuses)):
        told = [f"{count:,} x {status or 'closed'}" for (one, status), count in sorted(found.statuses.items()) if one == name]
        print(f"{name:16}", ", ".join(told))
    grown = held[1] - held[0]
    print(f"{sum(found.statuses.values()):,} requests in {time.monotonic() - begun:.0f} s; memory {held[0]:.0f} MB after a tenth "
          f"of them, {held[1]:.0f} MB at the end; {'ready' if ready else 'NOT READY'}")
    for one in found.faults[:20]:
        print(one)
    if found.faults or not ready or grown > bound:
        print(f"BROKEN; again: python -m benchmarks.fuzz --seed {options.seed} --only NUMBER")
        sys.exit(1)
    print("Nothing found.")


if __name__ == "__main__":
    main()
