"""What ``kubectl apply -k`` would send, for the parts of kustomize that deploy/kubernetes uses.

Names of ConfigMaps have no hash here. An unknown field of a kustomization is an error, so that
nothing is left out in silence.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"

_KNOWN_FIELDS = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "labels",
    "configMapGenerator",
    "patches",
    "replicas",
    "images",
}


def build(folder: Path) -> list[dict[str, Any]]:
    """Every object of a kustomization."""
    kustomization: Any = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(kustomization) - _KNOWN_FIELDS
    assert not unknown, f"{folder} uses {unknown}, which is not read here"
    objects: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = folder / name
        objects += build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for generator in kustomization.get("configMapGenerator", []):
        _generate(objects, generator)
    for patch in kustomization.get("patches", []):
        for operation in yaml.safe_load(patch["patch"]):
            _apply(find(objects, patch["target"]["kind"], patch["target"]["name"]), operation)
    for replicas in kustomization.get("replicas", []):
        [scaled] = [
            each
            for each in objects
            if each["metadata"]["name"] == replicas["name"] and "replicas" in each.get("spec", {})
        ]
        scaled["spec"]["replicas"] = replicas["count"]
    for image in kustomization.get("images", []):
        for container in containers(objects):
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    if namespace := kustomization.get("namespace"):
        for each in objects:
            if each["kind"] != "Namespace":
                each["metadata"]["namespace"] = namespace
    return objects


def find(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [found] = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Pod specs by the name of what makes them."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in objects
        if "template" in each.get("spec", {})
    }


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [container for pod in pods(objects).values() for container in pod["containers"]]


def _generate(objects: list[dict[str, Any]], generator: Mapping[str, Any]) -> None:
    data = dict(literal.split("=", 1) for literal in generator["literals"])
    if generator.get("behavior") == "merge":
        find(objects, "ConfigMap", generator["name"])["data"] |= data
        return
    metadata = {"name": generator["name"]}
    objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _apply(target: Any, operation: Mapping[str, Any]) -> None:
    """One step of a JSON patch (RFC 6902); ``replace`` needs something to replace."""
    *way, last = [part.replace("~1", "/") for part in operation["path"].split("/")[1:]]
    for part in way:
        target = target[int(part) if isinstance(target, list) else part]
    assert operation["op"] in ("add", "replace")
    assert operation["op"] == "add" or last in target, f"{operation['path']} is not there"
    target[last] = copy.deepcopy(operation["value"])
