"""deploy/kubernetes fits the API of Kubernetes, the images and the settings classes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from cyclora_core import __version__
from cyclora_core.environment import unknown_variables
from cyclora_server.settings import Settings
from cyclora_workers.settings import WorkerSettings
from deploy import dockerfile, kustomization
from deploy.kustomization import FOLDER, build, containers, find, pods
from deploy.test_compose import SETTINGS

OVERLAYS = ("cpu", "gpu")
PROCESSES = ("server", "scheduler", "worker")
VERSION = "1.31"
"""Of the API that the objects are checked against."""

Objects = list[dict[str, Any]]


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def objects(overlay: str) -> Objects:
    return build(FOLDER / "overlays" / overlay)


def variables(objects: Objects, process: str) -> dict[str, str]:
    """The environment of a process as a pod gets it; what comes from its own fields is its name."""
    [container] = pods(objects)[process]["containers"]
    image = dockerfile.read().image(process)
    found: dict[str, str] = {**image.environment}
    for source in container["envFrom"]:
        found |= find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for each in container["env"]:
        found[each["name"]] = each.get("value", f"{process}-0")
    return found


def test_every_object_is_one_that_kubernetes_takes(objects: Objects) -> None:
    if not os.environ.get("CI"):
        pytest.importorskip("kubernetes_validate")
    import kubernetes_validate

    for each in objects:
        kubernetes_validate.validate(each, VERSION, strict=True)


def test_kubectl_makes_the_same_objects(overlay: str, objects: Objects) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl here; the other tests read the kustomizations by themselves")
    command = [kubectl, "kustomize", str(FOLDER / "overlays" / overlay)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    text = re.sub(r"\bsettings-[a-z0-9]{10}\b", "settings", ran.stdout)

    theirs = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text)}

    for each in theirs.values():
        each["metadata"].pop("labels", None)
    ours = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    for each in ours.values():
        each["metadata"].pop("labels", None)
    assert theirs == ours


@pytest.mark.parametrize("process", PROCESSES)
def test_every_variable_is_a_setting_that_takes_its_value(
    objects: Objects, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("CYCLORA_")]:
        monkeypatch.delenv(name)
    found = variables(objects, process)
    for name, value in found.items():
        monkeypatch.setenv(name, value)

    assert unknown_variables(found) == []
    SETTINGS[process]()
    assert found["CYCLORA_REDIS_URL"] == "redis://:$(STORE_PASSWORD)@store:6379/0"


@pytest.mark.parametrize("process", PROCESSES)
def test_a_pod_runs_the_image_as_its_user_with_as_few_rights_as_it_can(
    objects: Objects, process: str
) -> None:
    pod = pods(objects)[process]
    [container] = pod["containers"]

    assert "command" not in container
    assert "args" not in container
    assert pod["securityContext"]["runAsUser"] == int(dockerfile.read().image(process).user)
    assert container["image"].startswith(f"cyclora-{process}")
    assert container["image"].endswith(f":{__version__}")


def test_every_pod_is_restricted(objects: Objects) -> None:
    namespace = find(objects, "Namespace", "cyclora")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"

    for pod in pods(objects).values():
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("process", PROCESSES)
def test_probes_ask_the_port_that_tells_how_a_process_is(objects: Objects, process: str) -> None:
    [container] = pods(objects)[process]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}

    assert str(ports["metrics"]) == variables(objects, process)["CYCLORA_METRICS_PORT"]
    assert set(ports.values()) == set(dockerfile.read().image(process).ports)
    for name, path in (("livenessProbe", "/healthz/live"), ("readinessProbe", "/healthz/ready")):
        assert container[name]["httpGet"] == {"path": path, "port": "metrics"}
    assert container["startupProbe"]["httpGet"]["port"] == "metrics"


def test_services_lead_to_ports_of_the_pods_they_select(objects: Objects) -> None:
    for service in (each for each in objects if each["kind"] == "Service"):
        name = service["spec"]["selector"]["app.kubernetes.io/name"]
        [container] = pods(objects)[name]["containers"]
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_selectors_select_their_own_pods(objects: Objects) -> None:
    for each in objects:
        if "template" in each.get("spec", {}):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
            if each["kind"] == "StatefulSet":
                find(objects, "Service", each["spec"]["serviceName"])


def test_every_volume_that_is_mounted_exists(objects: Objects) -> None:
    for each in objects:
        if "template" not in each.get("spec", {}):
            continue
        pod = each["spec"]["template"]["spec"]
        templates = each["spec"].get("volumeClaimTemplates", [])
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        volumes |= {template["metadata"]["name"] for template in templates}
        mounts = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
        assert mounts == volumes
        for volume in pod.get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                find(objects, "PersistentVolumeClaim", claim["claimName"])


def test_pods_get_longer_to_stop_than_they_take_to(objects: Objects) -> None:
    found = pods(objects)
    [server] = found["server"]["containers"]
    wait_s = int(server["lifecycle"]["preStop"]["exec"]["command"][1])

    grace_s = {name: pod["terminationGracePeriodSeconds"] for name, pod in found.items()}
    assert grace_s["server"] >= wait_s + Settings().shutdown_grace_s + 5
    assert grace_s["worker"] >= WorkerSettings().drain_s + 60


def test_the_store_is_that_of_compose(objects: Objects) -> None:
    from deploy.test_compose import SERVICES

    [container] = pods(objects)["store"]["containers"]
    compose = list(SERVICES["store"].command)
    del compose[1:3]  # --protected-mode: here there is a password

    assert container["image"] == SERVICES["store"].image
    assert container["args"][:-2] == compose
    assert container["args"][-2:] == ["--requirepass", "$(REDISCLI_AUTH)"]


def test_secrets_are_named_and_not_held(objects: Objects) -> None:
    assert not [each for each in objects if each["kind"] == "Secret"]
    for container in containers(objects):
        for each in container["env"]:
            if "PASSWORD" in each["name"] or "AUTH" in each["name"]:
                assert each["valueFrom"]["secretKeyRef"] == {"name": "store", "key": "password"}


def test_a_gpu_worker_has_a_gpu_of_its_own_and_the_image_with_cuda() -> None:
    objects = build(FOLDER / "overlays" / "gpu")
    [container] = pods(objects)["worker"]["containers"]

    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert container["image"] == f"cyclora-worker-cuda:{__version__}"
    assert variables(objects, "worker")["CYCLORA_DEVICE"] == "cuda"


def test_without_a_gpu_the_built_in_model_is_served_from_one_node() -> None:
    objects = build(FOLDER / "overlays" / "cpu")

    assert variables(objects, "worker")["CYCLORA_DEVICE"] == "cpu"
    assert "CYCLORA_BASE_MODEL" not in variables(objects, "worker")
    claim = find(objects, "PersistentVolumeClaim", "storage")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_a_field_of_kustomize_that_is_not_read_here_is_an_error(tmp_path: Any) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\nnamePrefix: x-\n")

    with pytest.raises(AssertionError, match="namePrefix"):
        kustomization.build(tmp_path)
