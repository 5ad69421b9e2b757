"""The Helm chart, and what it makes of the example: valid for Kubernetes, confined, with settings that can be read."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.settings import SiteSettings
from cloister import cli
from privacy.config import read_toml
from server.settings import ConsortiumSettings
from tests.deploy.image import ROOT
from transport.operations.settings import Operations

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

CHART, EXAMPLE = ROOT / "deploy" / "helm" / "cloister", ROOT / "deploy" / "helm" / "example.yaml"
MANIFESTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "cloister.yaml").read_text(encoding="utf-8"))
)
SETS = [one for one in MANIFESTS if one["kind"] == "StatefulSet"]
WARNING = 2  # of helm's severities


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
@pytest.mark.parametrize("version", ["1.30", "1.35"])
def test_kubernetes_takes_every_object(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def containers(kind: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for stateful in SETS:
        pod = stateful["spec"]["template"]["spec"]
        yield from ((pod, container) for container in pod[kind])


def test_every_container_is_confined() -> None:
    found = [*containers("containers"), *containers("initContainers")]
    assert len(found) == 4
    for pod, container in found:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        confined = container["securityContext"]
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert (confined["allowPrivilegeEscalation"], confined["readOnlyRootFilesystem"]) == (False, True)
        assert (confined["runAsNonRoot"], confined["runAsUser"]) == (True, 65532)
        assert "memory" in container["resources"]["limits"]
        assert container["image"].partition(":")[2] not in {"", "latest"}


def test_probes_ask_the_port_for_operators() -> None:
    for _, container in containers("containers"):
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        probes = {name: container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
        assert ports["operations"] == 9464
        assert {probe["port"] for probe in probes.values()} == {"operations"}
        assert [probe["path"] for probe in probes.values()] == ["/livez", "/livez", "/readyz"]


def test_a_containers_arguments_are_those_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _, container in containers("containers"):
        command, folder, *options = container["args"]
        assert (command, folder.startswith("/var/lib/cloister/")) == (container["name"], True)
        monkeypatch.setattr(sys, "argv", ["cloister", command, "/nowhere", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1, capsys.readouterr().err  # it is 2 for arguments that it does not know


def test_the_settings_can_be_read_and_hold_no_secret(tmp_path: Path) -> None:
    for one in MANIFESTS:
        for name, text in one.get("data", {}).items():
            (tmp_path / name).write_text(text, encoding="utf-8")
    server = read_toml(tmp_path / "consortium.toml", ConsortiumSettings)
    site = read_toml(tmp_path / "site.toml", SiteSettings)
    assert server.operations == site.operations == Operations("0.0.0.0:9464")
    assert server.joining is not None
    assert server.api is not None
    assert not [one for one in MANIFESTS if one["kind"] == "Secret"]


def test_a_network_policy_opens_the_operators_port_to_the_monitor_alone() -> None:
    policies = [one["spec"] for one in MANIFESTS if one["kind"] == "NetworkPolicy"]
    assert len(policies) == len(SETS)
    for policy in policies:
        for rule in policy["ingress"]:
            assert {"port": "operations"} not in rule["ports"] or rule["from"]


@pytest.mark.parametrize("part", ["server", "agent"])
def test_a_folder_is_filled_without_replacing_what_the_process_wrote(part: str, tmp_path: Path) -> None:
    (script,) = (
        container["command"][2]
        for pod, container in containers("initContainers")
        if pod["containers"][0]["name"] == part
    )
    for folder in ("settings", "keys", "data"):
        (tmp_path / folder).mkdir()
        script = script.replace(f'"/{folder}"', f'"{tmp_path / folder}"')
    script = script.replace("/var/lib/cloister/", f"{tmp_path}/data/")
    (tmp_path / "settings" / "a.toml").write_text("1", encoding="utf-8")
    for name in ("tls.pem", "roster"):
        (tmp_path / "keys" / name).write_text("1", encoding="utf-8")
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    for folder in ("settings", "keys"):
        for file in (tmp_path / folder).iterdir():
            file.write_text("2", encoding="utf-8")
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    made = {file.name: file for file in (tmp_path / "data").rglob("*") if file.is_file()}
    # an agent takes newer rosters from the server, but who else brings them to a server?
    expected = {"a.toml": "2", "tls.pem": "1", "roster": "2" if part == "server" else "1"}
    assert {name: file.read_text(encoding="utf-8") for name, file in made.items()} == expected
    assert {file.stat().st_mode & 0o777 for file in made.values()} == {0o600}


def rendered(values: Path) -> list[dict[str, Any]] | None:
    """What Helm makes of the chart; None if it refuses. Skip where there is no Helm."""
    if helm := shutil.which("helm"):
        command: list[str | Path] = [helm, "template", "cloister", CHART, "--namespace", "cloister", "--values", values]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return None if ended.returncode else list(yaml.safe_load_all(ended.stdout))
    helm_python = pytest.importorskip("helm_python", reason="there is no helm, and no helm-python-sdk")
    with helm_python.Chart.load(str(CHART)) as chart:
        try:
            made = chart.render(
                yaml.safe_load(values.read_text(encoding="utf-8")), name="cloister", namespace="cloister"
            )
        except helm_python.HelmError:
            return None
    return [one for text in made.values() for one in yaml.safe_load_all(text) if one]


def by_name(manifests: list[dict[str, Any]] | None) -> dict[tuple[str, str], dict[str, Any]]:
    assert manifests is not None
    return {(one["kind"], one["metadata"]["name"]): one for one in manifests if one}


def test_helm_makes_these_objects_of_the_example() -> None:
    assert by_name(rendered(EXAMPLE)) == by_name(MANIFESTS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"serer": {}},
        {"server": {"consortium": ""}},
        {"image": {"registry": ""}},
        {"agent": {"settings": ""}},
        {"server": {"store": "postgresql+psycopg://cloister:secret@postgres/cloister"}},
        {"server": {"service": {"type": "Ingress"}}},
    ],
    ids=str,
)
def test_helm_refuses_values_that_make_no_sense(wrong: dict[str, Any], tmp_path: Path) -> None:
    values = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    for part, changed in wrong.items():
        values[part] = values.get(part, {}) | changed
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert rendered(tmp_path / "values.yaml") is None


def test_helms_linter_finds_nothing() -> None:
    if helm := shutil.which("helm"):
        command: list[str | Path] = [helm, "lint", "--strict", CHART, "--values", EXAMPLE]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended.stdout
        return
    helm_python = pytest.importorskip("helm_python", reason="there is no helm, and no helm-python-sdk")
    report = helm_python.lint(str(CHART), yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")), strict=True)
    assert not report["errors"]
    assert not [said for said in report["messages"] if said["severity"] >= WARNING]
