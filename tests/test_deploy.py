"""What `mlsys build` says about running elsewhere, judged by each format's own rules, and tried where no container runs."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import kubernetes_validate
import promql_parser
import pytest
import yaml
from conftest import Cli

from mlsys.core import Project
from mlsys.gateway import meters
from mlsys.service import example_row, free_port

tools = Path(sys.executable).parent


@pytest.fixture(scope="module")
def bento(project: Project, cli: Cli) -> Path:
    built = cli("build", "--json", folder=project.root)
    assert built.code == 0, built.err
    said = json.loads(built.out)
    assert said["deploy"] == said["bento"] + "/deploy"
    return Path(said["bento"])


def hadolint(text: str) -> list[str]:
    """What the linter says of a Dockerfile."""
    done = subprocess.run([tools / "hadolint", "--no-color", "-"], input=text, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_dockerfile_passes_its_linter_and_copies_what_the_bento_has(bento: Path) -> None:
    text = (bento / "deploy" / "Dockerfile").read_text()
    assert hadolint(text) == []
    assert any("DL3006" in line for line in hadolint(text.replace(":3.11-slim-bookworm", ""))), "the linter sees nothing"
    assert any("DL3002" in line for line in hadolint(text.replace("USER 10001:10001", "USER root")))
    for source in re.findall(r"^COPY (\S+) ", text, re.M):
        assert (bento / source).exists(), source


def test_compose_file_follows_the_compose_specification(bento: Path, tmp_path: Path) -> None:
    def valid(path: Path) -> bool:
        command = [tools / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path]
        return subprocess.run(command, capture_output=True).returncode == 0

    path = bento / "deploy" / "compose.yaml"
    assert valid(path)
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(path.read_text().replace("read_only: true", "read_only_root: true"))
    assert not valid(wrong)
    context = path.parent / yaml.safe_load(path.read_text())["services"]["service"]["build"]["context"]
    assert context.resolve() == bento.resolve()


def test_kubernetes_manifests_follow_the_schemas_of_kubernetes(bento: Path) -> None:
    manifests = list(yaml.safe_load_all((bento / "deploy" / "kubernetes.yaml").read_text()))
    assert [one["kind"] for one in manifests] == ["Deployment", "Service", "PodDisruptionBudget"]
    for one in manifests:
        kubernetes_validate.validate(one, "1.33", strict=True)
    manifests[0]["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifests[0], "1.33", strict=True)
    assert manifests[1]["spec"]["selector"] == manifests[0]["spec"]["template"]["metadata"]["labels"]


def metric_names(expression: str) -> set[str]:
    """Metrics that a query reads, without what Prometheus appends; ValueError when it is no query."""
    promql_parser.parse(expression)
    return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in re.findall(r"mlsys_\w+", expression)}


def test_dashboard_asks_for_metrics_that_the_service_has(bento: Path) -> None:
    panels = json.loads((bento / "deploy" / "grafana.json").read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in metric_names(target["expr"])}
    there = {f"mlsys_{meter._name.removeprefix('mlsys_')}" for meter in vars(meters()).values()}
    assert len(panels) == 12 and asked <= there, asked - there
    with pytest.raises(ValueError):
        metric_names("sum by (model (rate(mlsys_predictions_total[5m]))")
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)


def test_no_file_holds_a_secret(bento: Path) -> None:
    for path in (bento / "deploy").iterdir():
        for line in path.read_text().splitlines():
            if re.search(r"(PASSWORD|API_KEY|DATABASE_URL)\S*[=:]", line):
                assert "${" in line or "..." in line, f"{path.name}: {line}"


def confined(command: list[str], data: Path, tmp: Path) -> list[str]:
    """The command as in a container: only two folders can be written to, and no capability is left."""
    mounts = f"mount --bind {data} {data} && mount --bind {tmp} /tmp && mount -o remount,ro,bind / && cd {data}"
    free = "exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all"
    return ["unshare", "--mount", "sh", "-euc", f'{mounts} && {free} "$@"', "sh", *command]


def test_bento_answers_without_rights_on_a_root_that_cannot_be_written_to(bento: Path, project: Project, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    probe = ["sh", "-c", f"touch {data}/a /tmp/b && ! touch /c {bento}/d 2>/dev/null && grep -q 'CapEff:.0*$' /proc/self/status"]
    (tmp_path / "tmp").mkdir()
    if not shutil.which("unshare") or subprocess.run(confined(probe, data, tmp_path / "tmp"), capture_output=True).returncode:
        pytest.skip("needs root and mount namespaces")
    port = free_port()
    from mlsys.deploy import writable

    stage = {"MLSYS_API_KEY": "of-this-test", **writable}
    serve = [str(tools / "bentoml"), "serve", str(bento), "--host", "0.0.0.0", "--port", str(port)]
    output = (tmp_path / "output").open("wb")
    process = subprocess.Popen(confined(serve, data, tmp_path / "tmp"), env={**os.environ, **stage}, stdout=output, stderr=output)

    def ask(path: str, body: dict | None = None, key: str = "of-this-test") -> dict:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{port}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"{}")

    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                ask("/readyz")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()[-2000:]
                time.sleep(0.3)
        from mlsys.registry import Registry

        row = example_row(Registry(project).champion())
        answer = ask("/predict", {"rows": [row], "explain": True})
        assert answer["predictions"][0]["explanation"]["contributions"]
        assert (data / "var" / "mlsys.db").exists()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask("/predict", {"rows": [row]}, key="wrong")
    finally:
        process.terminate()
        process.wait(30)
        output.close()
