"""A PostgreSQL server of the tests' own: in a folder that is thrown away, on a free port, not as root."""
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from mlsys.service import free_port


def binaries() -> Path | None:
    """Where the newest server's programs lie; None when there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class Server:
    """A server that can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        found = binaries()
        if found is None:
            pytest.skip("no PostgreSQL server is installed; on Debian: apt-get install postgresql")
        self.bin, self.data, self.port = found, folder / "data", free_port()
        if os.getuid() == 0:  # the server refuses to run as root
            try:
                shutil.chown(folder, "postgres")
            except LookupError:
                pytest.skip("a server cannot run as root, and there is no user postgres to run it")
        self.run("initdb", "-D", self.data, "-A", "trust", "-U", "mlsys", "-E", "UTF8", "--locale=C")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://mlsys@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *words: object) -> str:
        """One of the server's programs, to its end."""
        rights = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        done = subprocess.run([self.bin / program, *map(str, words)], capture_output=True, text=True, cwd=self.data.parent,
                              timeout=60, stdin=subprocess.DEVNULL, **rights)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        options = f"-p {self.port} -k {self.data.parent} -c listen_addresses=127.0.0.1"
        log = self.data.parent / "server.log"
        rights = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        done = subprocess.run([self.bin / "pg_ctl", "-D", self.data, "-w", "-t", "60", "-l", log, "-o", options, "start"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=90,
                              cwd=self.data.parent, **rights)
        assert done.returncode == 0, log.read_text() if log.exists() else "no log"

    def stop(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def database(self, name: str) -> str:
        """The URL of a new, empty database."""
        self.run("psql", "-h", "127.0.0.1", "-p", self.port, "-U", "mlsys", "-d", "postgres", "-c", f"CREATE DATABASE {name}")
        return f"postgresql://mlsys@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="module")
def server():
    """A running server."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    folder.chmod(0o755)
    try:
        running = Server(folder)
        yield running
        running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
