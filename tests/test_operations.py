"""What happens to a service in operation: promotions under load, sudden deaths, a stop, certificates, spans, counters."""
import contextlib
import datetime as dt
import http.client
import http.server
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import Cli, ending, root, start, until_ready
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.parcels import make_project
from benchmarks.soak import Case, Clients, cases, kill, without_row, workers
from mlsys.core import MlsysError, Project
from mlsys.registry import Registry
from mlsys.roles import Serving
from mlsys.service import RunningService, check_certificate, check_start, exports_spans, free_port, running_service, stage


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("parcels"))


@pytest.fixture(scope="module")
def asked(project: Project) -> list[Case]:
    """Requests, and what each version says."""
    return cases(Registry(project), ["v1", "v2"])


@pytest.fixture(scope="module")
def service(project: Project) -> Iterator[RunningService]:
    """Two workers."""
    with running_service(project, workers=2) as running:
        yield running


def eventually(true: Callable[[], object], seconds: float = 60.0, what: str = "") -> None:
    """Wait until something holds; the machine may be slow."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def team(service: RunningService) -> list[psutil.Process]:
    return workers(psutil.Process(service.process.pid))


def holder_of(connection: socket.socket, team: list[psutil.Process]) -> psutil.Process | None:
    """The worker that holds the other end."""
    port = connection.getsockname()[1]
    for one in team:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(end.raddr and end.raddr.port == port for end in one.net_connections("tcp")):
                return one
    return None


def all_answer(url: str, team: Callable[[], list[psutil.Process]], number: int = 2) -> None:
    """Wait until so many workers have answered over connections of their own."""
    seen: set[int] = set()

    def ask() -> bool:
        with contextlib.ExitStack() as stack:  # connections that stay open, or one worker might take them all
            for _ in range(16):
                connection = stack.enter_context(contextlib.closing(http.client.HTTPConnection("127.0.0.1", port_of(url), 30)))
                with contextlib.suppress(OSError, http.client.HTTPException):
                    connection.request("GET", "/schema")
                    if connection.getresponse().status == 200 and (one := holder_of(connection.sock, team())):
                        seen.add(one.pid)
        return len(seen & {one.pid for one in team()}) >= number
    eventually(ask, 120, "a worker answers nothing")


def metric(url: str, line: str) -> float:
    """The value of one line of /metrics; 0 when there is none."""
    found = re.search(rf"^{re.escape(line)} (\S+)$", httpx.get(f"{url}/metrics", timeout=60).text, re.M)
    return float(found[1]) if found else 0.0


answered = 'mlsys_predictions_total{model="v1",role="champion"}'


@pytest.mark.stress
def test_metrics_are_those_of_all_workers_and_of_no_other_service(project, service, asked):
    all_answer(service.url, lambda: team(service))
    before = metric(service.url, answered)
    taken: dict[int, int] = {}
    while len(taken) < 2:  # until both have predicted something
        connection = http.client.HTTPConnection("127.0.0.1", port_of(service.url), timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/predict", asked[0][0], {"Content-Type": "application/json"})
            assert connection.getresponse().read()
            if one := holder_of(connection.sock, team(service)):
                taken[one.pid] = taken.get(one.pid, 0) + 1
    with Clients(port_of(service.url), asked, 8, 200) as told:
        eventually(lambda: len(told.ids) > 100)
    total = before + len(told.ids) + sum(taken.values())
    eventually(lambda: metric(service.url, answered) == total, 30, f"{metric(service.url, answered)}, not {total}")
    with running_service(project) as other:
        assert metric(other.url, answered) == 0
        assert metric(service.url, answered) == total


@pytest.mark.stress
def test_a_promotion_and_a_rollback_reach_every_worker_without_a_failed_request(project, service, asked):
    registry = Registry(project)
    registry.promote("v1", "where it begins")
    all_answer(service.url, lambda: team(service))
    begun = time.monotonic()
    registry.get("v2")
    patience = 2 + 10 * (time.monotonic() - begun)  # 2 s, and what a crowded machine takes for the same work
    with contextlib.ExitStack() as stack:
        asking = {}  # a connection to each worker, kept
        while len(asking) < 2:
            connection = http.client.HTTPConnection("127.0.0.1", port_of(service.url), 60)
            stack.enter_context(contextlib.closing(connection))
            connection.request("GET", "/schema")
            assert connection.getresponse().read()
            asking.setdefault(getattr(holder_of(connection.sock, team(service)), "pid", 0), connection)
            asking.pop(0, None)

        def models() -> set[str]:
            found = set()
            for connection in asking.values():
                connection.request("POST", "/predict", asked[0][0], {"Content-Type": "application/json"})
                found.add(json.loads(connection.getresponse().read())["predictions"][0]["model"])
            return found
        with Clients(port_of(service.url), asked, 8, 100) as told:
            for change, serves in ((lambda: registry.promote("v2", "better"), "v2"), (lambda: registry.rollback("not"), "v1"),
                                   (lambda: registry.promote("v2", "again"), "v2"), (lambda: registry.rollback("no"), "v1")):
                change()
                begun = time.monotonic()
                eventually(lambda serves=serves: models() == {serves}, patience, f"{models()} serve, not {serves}")
                time.sleep(0.3)
                assert models() == {serves}, begun
    assert {"v1", "v2"} == set(told.last)
    assert not told.wrong and not told.failed, (told.wrong[:3], told.failed[:3])
    assert without_row(project, told.ids) == 0


@pytest.fixture(scope="module")
def tables(project: Project) -> Path:
    """The file of tables of v2, the version of trees; registration made it."""
    (file,) = (project.var / "tables").glob("*.npy")
    return file


making = """
import os, sys, time
from mlsys.core import Project
from mlsys.registry import Registry

def hang(file):
    print("writes", flush=True)
    time.sleep(600)
if sys.argv[2] == "hangs":
    os.fsync = hang
print(Registry(Project.find(sys.argv[1])).get("v2").explainer.method, flush=True)
"""


@contextlib.contextmanager
def makers(project: Project, number: int, how: str = "works") -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that need the tables; none is left at the end."""
    words = [sys.executable, "-c", making, str(project.root), how]
    begun = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(number)]
    try:
        yield begun
    finally:
        for one in begun:
            one.kill()
            one.communicate()


@pytest.mark.stress
def test_workers_share_the_tables_of_a_version_that_was_registered(project, service, tables):
    registry = Registry(project)
    registry.promote("v2", "it has trees")
    all_answer(service.url, lambda: team(service))
    eventually(lambda: metric(service.url, 'mlsys_serves{model="v2",role="champion"}') == 1)
    eventually(lambda: all(str(tables) in [one.path for one in process.memory_maps()] for process in team(service)),
               what="a worker has tables of its own")
    registry.promote("v1", "where it begins")


@pytest.mark.stress
def test_damaged_tables_change_no_answer_and_are_made_anew(project, asked, tables):
    whole = tables.read_bytes()
    row = json.loads(asked[0][0])["rows"][0]

    def reasons() -> dict[str, float]:
        with running_service(project) as service:
            answer = httpx.post(f"{service.url}/predict", json={"rows": [row], "explain": True}, timeout=60).json()
        (told,) = answer["predictions"]
        assert told["model"] == "v2" and told["role"] == "champion" and not told["warnings"]
        return {one["feature"]: one["contribution"] for one in told["explanation"]["contributions"]}
    Registry(project).promote("v2", "it has trees")
    expected, middle = reasons(), len(whole) // 2
    tables.unlink()
    tables.write_bytes(whole[:middle] + bytes([whole[middle] ^ 64]) + whole[middle + 1:])
    assert reasons() == expected
    assert tables.read_bytes() == whole
    Registry(project).promote("v1", "where it begins")


@pytest.mark.stress
def test_tables_are_whole_whoever_makes_them_at_once_or_dies_over_it(project, tables):
    whole = tables.read_bytes()

    def made(number: int) -> bytes:
        with makers(project, number) as several:
            for one in several:
                assert one.communicate(timeout=120)[0].strip() == "tables"
        return tables.read_bytes()
    tables.unlink()
    assert made(3) == whole
    tables.unlink()
    with makers(project, 1, "hangs") as (victim,):
        assert victim.stdout and victim.stdout.readline().strip() == "writes"
        victim.kill()
    assert not tables.exists() and len(list(tables.parent.iterdir())) == 1  # what it had written, under another name
    assert made(1) == whole


def test_a_bento_brings_its_tables_and_serves_without_them_too(project, tables, tmp_path, monkeypatch):
    registry = Registry(project)
    registry.promote("v2", "it has trees")
    folder = stage(project, tmp_path)
    registry.promote("v1", "where it begins")
    (packed,) = (folder / "tables").iterdir()
    assert packed.name == tables.name and packed.read_bytes() == tables.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("mlsys.trees._make", lambda *_: pytest.fail("the tables were made again"))
        assert Serving(folder / "model_version").ready()
    packed.unlink()
    packed.parent.rmdir()
    assert Serving(folder / "model_version").ready()
    assert not packed.parent.exists()  # nothing is written beside a version that came without


@pytest.mark.stress
def test_a_worker_killed_under_load_takes_only_its_own_requests_along(project, service, asked):
    registry = Registry(project)
    registry.promote("v1", "where it begins")
    all_answer(service.url, lambda: team(service))
    with Clients(port_of(service.url), asked, 16) as told:
        for _ in range(2):
            before = len(told.ids), len(told.failed)
            eventually(lambda before=before: len(told.ids) > before[0] + 200)
            victim = max(team(service), key=lambda one: len(one.net_connections("tcp")))
            held = kill(victim)
            assert held
            eventually(lambda victim=victim: len(team(service)) == 2 and victim.pid not in [one.pid for one in team(service)],
                       what="no worker came in its place")
            all_answer(service.url, lambda: team(service))
            count = len(told.ids)
            eventually(lambda count=count: len(told.ids) > count + 100)
            lost = told.failed[before[1]:]
            assert {port for _, port, _ in lost} <= held, (lost, held)
            assert len(lost) == len({port for _, port, _ in lost})  # each once: its next connection is answered
    assert not told.wrong, told.wrong[:3]
    assert told.failed, "nothing was in flight"
    assert without_row(project, told.ids) == 0
    assert len(httpx.get(f"{service.url}/metrics", timeout=60).text) > 1000


def log_processes(above: psutil.Process) -> list[psutil.Process]:
    """The processes that write the prediction log."""
    found = []
    for one in above.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [one] * any("mlsys.log_process" in word for word in one.cmdline())
    return found


def test_killed_log_processes_are_replaced_and_nothing_is_lost(project, service, asked):
    supervisor = psutil.Process(service.process.pid)
    all_answer(service.url, lambda: team(service))
    with Clients(port_of(service.url), asked, 8) as told:
        for _ in range(3):
            eventually(lambda: len(log_processes(supervisor)) == 2)
            count, victims = len(told.ids), log_processes(supervisor)
            for one in victims:
                one.kill()
            eventually(lambda count=count: len(told.ids) > count + 100)
            eventually(lambda victims=victims: len({*log_processes(supervisor)} - {*victims}) == 2, what="none came in its place")
    assert not told.wrong and not told.failed, (told.wrong[:3], told.failed[:3])
    eventually(lambda: without_row(project, told.ids) == 0, 10)
    victim = team(service)[0]
    mine = log_processes(victim)
    assert len(mine) == 1
    kill(victim)
    eventually(lambda: gone(mine[0]), 10, "a log process outlives its worker")
    eventually(lambda: len(team(service)) == 2 and victim not in team(service))


@pytest.mark.stress
def test_metrics_forget_what_a_killed_worker_was_doing(project, service, asked):
    registry, serves = Registry(project), 'mlsys_serves{model="%s",role="champion"}'
    registry.promote("v2", "the one that the victim serves")
    eventually(lambda: metric(service.url, serves % "v2") == 1 and metric(service.url, serves % "v1") == 0)
    victim = team(service)[-1]
    kill(victim)
    registry.promote("v1", "after its death")
    eventually(lambda: metric(service.url, serves % "v1") == 1)
    eventually(lambda: metric(service.url, serves % "v2") == 0, what="a dead worker still serves")
    all_answer(service.url, lambda: team(service))


@contextlib.contextmanager
def served(project: Project, *words: object) -> Iterator[tuple[str, subprocess.Popen[str], list[psutil.Process]]]:
    """`mlsys serve` with two workers, and its processes: the supervisor and its workers; none is left at the end."""
    command = start("serve", "--port", free_port(), "--workers", 2, *words, folder=project.root)
    processes: list[psutil.Process] = []
    try:
        url = until_ready(command)
        (supervisor,) = psutil.Process(command.pid).children()
        all_answer(url, lambda: workers(supervisor))
        processes += [supervisor, *workers(supervisor)]
        yield url, command, processes
    finally:
        for one in [*processes, psutil.Process(command.pid)] if command.returncode is None else processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for stream in (command.stdout, command.stderr):
            if stream:
                stream.close()
        command.wait()


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, even if nobody has asked how."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def refused(port: int) -> bool:
    """Whether nobody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def starts_again(project: Project, port: int, asked: list[Case]) -> None:
    """A new service on the same port answers rightly."""
    with running_service(project, port), Clients(port, asked, 2, 50) as told:
        eventually(lambda: len(told.ids) > 20)
    assert not told.wrong and not told.failed, (told.wrong[:3], told.failed[:3])


@pytest.mark.stress
def test_a_stop_answers_what_was_asked_before(project, asked):
    body = asked[0][0]
    row = json.loads(body)["rows"][0]
    large = json.dumps({"rows": [row] * 1000, "explain": True}).encode()

    def ask(body: bytes) -> tuple[socket.socket, bytes]:
        """A connection on which half a request was sent, and the other half."""
        head = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection = socket.create_connection(("127.0.0.1", port), timeout=120)
        connection.sendall(head + body[:len(body) // 2])
        return connection, body[len(body) // 2:]

    def read(connection: socket.socket) -> tuple[int, list[str]]:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, [one["id"] for one in json.loads(answer.read()).get("predictions", [])]

    with served(project) as (url, command, processes):
        port = port_of(url)
        begun = [ask(body) for _ in range(12)] + [ask(large) for _ in range(4)]
        eventually(lambda: metric(url, "mlsys_waiting") >= 16, what="the service has not begun with all of them")
        for connection, rest in begun[12:]:
            connection.sendall(rest)
        command.terminate()

        def taken() -> bool:
            """Whether a new connection still finds somebody who answers."""
            with contextlib.suppress(OSError, http.client.HTTPException), \
                    contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as late:
                late.request("GET", "/schema")
                late.getresponse()
                return True
            return False
        eventually(lambda: not taken(), what="new requests are still answered")
        assert command.poll() is None, "it did not wait for requests in flight"
        for connection, rest in begun[:12]:
            connection.sendall(rest)
        with ThreadPoolExecutor(len(begun)) as pool:
            answers = list(pool.map(read, [connection for connection, _ in begun]))
        for connection, _ in begun:
            connection.close()
        stopped = ending(command)
        assert stopped.code == 0 and "Stopped." in stopped.out, stopped
        assert [status for status, _ in answers] == [200] * 16
        assert [len(ids) for _, ids in answers] == [1] * 12 + [1000] * 4
        assert without_row(project, [one for _, ids in answers for one in ids]) == 0
        assert refused(port)
        eventually(lambda: all(map(gone, processes)), what="a process is left")


def test_the_last_answers_before_a_stop_are_in_the_log_though_none_waited_for_it(tmp_path):
    project = make_project(tmp_path, durable=False)
    asked = cases(Registry(project), ["v1"])
    with running_service(project) as service, Clients(port_of(service.url), asked, 8) as told:
        eventually(lambda: len(told.ids) > 500)
        service.process.terminate()
        service.process.wait(60)
    assert not told.wrong and without_row(project, told.ids) == 0


@pytest.mark.stress
@pytest.mark.parametrize("who", ["the supervisor", "the command"])
def test_no_worker_outlives_a_sudden_death_above_it(project, asked, who):
    Registry(project).promote("v1", "where it begins")
    with served(project) as (url, command, processes):
        port = port_of(url)
        with Clients(port, asked, 8) as told:
            eventually(lambda: len(told.ids) > 100)
            os.kill(command.pid if who == "the command" else processes[0].pid, signal.SIGKILL)  # and nobody waits for it
            eventually(lambda: all(map(gone, processes)), 90, f"{[one for one in processes if not gone(one)]} live on")
        assert not told.wrong, told.wrong[:3]
        assert without_row(project, told.ids) == 0
        if who == "the supervisor":
            stopped = ending(command)
            assert stopped.code == 1 and "ended by itself" in stopped.err and "did not become ready" not in stopped.err
        assert refused(port)
        starts_again(project, port, asked)


@pytest.mark.stress
def test_no_worker_outlives_a_supervisor_that_died_before_it_was_ready(project):
    command = start("serve", "--port", free_port(), "--workers", 2, folder=project.root)
    begun: list[psutil.Process] = []
    try:
        eventually(lambda: psutil.Process(command.pid).children())
        (supervisor,) = psutil.Process(command.pid).children()
        eventually(lambda: len(workers(supervisor)) == 2)
        begun = workers(supervisor)
        supervisor.kill()
        stopped = ending(command)
        assert stopped.code == 1, stopped
        eventually(lambda: all(map(gone, begun)), 90, f"{begun} live on")
    finally:
        command.kill()
        command.wait()
        for one in begun:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def self_signed(folder: Path, name: str = "own") -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody but itself vouches for, and its key."""
    key, today = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    whose = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "parcels")])
    certificate = (
        x509.CertificateBuilder().subject_name(whose).issuer_name(whose).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - dt.timedelta(days=1)).not_valid_after(today + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256()))
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                           serialization.NoEncryption()))
    return paths


@pytest.mark.stress
def test_https_is_answered_under_its_certificate_and_nothing_else_is(project, asked, tmp_path):
    (certificate, key), (stranger, _) = self_signed(tmp_path), self_signed(tmp_path, "another")
    command = start("serve", "--port", free_port(), "--ssl-certfile", certificate, "--ssl-keyfile", key, folder=project.root)
    try:
        url = until_ready(command)
        assert url.startswith("https://127.0.0.1:")
        headers = {"Content-Type": "application/json"}
        with httpx.Client(verify=ssl.create_default_context(cafile=certificate), timeout=60) as client:
            answer = client.post(f"{url}/predict", content=asked[0][0], headers=headers)
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["score"] == pytest.approx(asked[0][1]["v1"], abs=1e-9)
        for other in (ssl.create_default_context(cafile=stranger), ssl.create_default_context()):
            with pytest.raises(httpx.ConnectError, match="(?i)certificate"):
                httpx.get(f"{url}/schema", verify=other, timeout=60)
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http") + "/schema", timeout=60)
    finally:
        command.terminate()
        assert ending(command).code == 0


def test_https_without_a_certificate_that_works_is_refused_in_one_sentence(project, cli: Cli, tmp_path):
    (certificate, key), (_, stranger) = self_signed(tmp_path), self_signed(tmp_path, "another")
    locked = tmp_path / "locked.key"
    locked.write_bytes(serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"hush")))
    nothing = tmp_path / "nothing.pem"
    nothing.touch()
    wrong = [(certificate, stranger), (nothing, key), (certificate, nothing), (key, certificate), (certificate, locked)]
    for one, other in wrong:
        with pytest.raises(MlsysError, match=rf"^No HTTPS with the certificate {re.escape(str(one))} .*belongs to"):
            check_certificate(one, other)
    check_certificate(certificate, key)
    told = cli("serve", "--ssl-certfile", certificate, "--ssl-keyfile", stranger, folder=project.root)
    assert told.code == 1 and told.err.startswith("Error: No HTTPS") and len(told.err.strip().splitlines()) == 1 and not told.out
    told = cli("serve", "--ssl-certfile", tmp_path / "lost.pem", "--ssl-keyfile", key, folder=project.root)
    assert told.code == 2 and "lost.pem' does not exist" in told.err.splitlines()[-1]
    told = cli("serve", "--ssl-certfile", certificate, folder=project.root)
    assert told.code == 2 and "HTTPS needs both" in told.err


def test_a_command_that_strangers_could_reach_without_a_key_is_refused(project, cli: Cli):
    told = cli("serve", "--host", "0.0.0.0", "--port", free_port(), folder=project.root)
    assert told.code == 1 and "0.0.0.0 can be reached from other machines" in told.err and "mlsys keys add" in told.err
    assert len(told.err.strip().splitlines()) == 1 and "Starting" not in told.out


def test_spans_without_the_package_that_sends_them_are_refused(project, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setattr("mlsys.service.exports_spans", lambda: False)
    with pytest.raises(MlsysError, match="spans at http://127.0.0.1:4318, .* pip install opentelemetry-exporter-otlp-proto-http"):
        check_start(project, free_port(), "127.0.0.1")


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Where spans can be sent, and what came: the path and the body of each request."""
    came: list[tuple[str, bytes]] = []

    class Collects(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collects) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", came
        server.shutdown()


@pytest.mark.stress
@pytest.mark.skipif(not exports_spans(), reason="opentelemetry-exporter-otlp-proto-http is not installed")
def test_a_prediction_leads_to_a_span_at_the_collector(project, asked, monkeypatch):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with collector() as (where, came):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", where)
        with running_service(project) as service:
            answer = httpx.post(f"{service.url}/predict", content=asked[0][0], timeout=60, headers={
                "Content-Type": "application/json", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
            assert answer.status_code == 200 and answer.headers["traceparent"].split("-")[1] == trace
            assert without_row(project, [answer.json()["predictions"][0]["id"]]) == 0

            def spans() -> list[str]:
                told = [ExportTraceServiceRequest.FromString(body) for path, body in came if path == "/v1/traces"]
                return [span.name for one in told for resource in one.resource_spans for scope in resource.scope_spans
                        for span in scope.spans if span.trace_id.hex() == trace]
            eventually(spans, what="no span came")
            assert any("/predict" in name for name in spans()), spans()


@pytest.mark.stress
def test_three_thousand_odd_requests_break_nothing():
    words = [sys.executable, "-m", "benchmarks.fuzz", "--requests", "2000"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0 and "Nothing found." in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]
