"""The Helm chart gives the manifests of the kustomization, and its values do what their names say."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from support.helm import CHART, rendered

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
CHART_MANIFESTS = rendered()


def kustomized() -> dict[tuple[str, str], dict[str, Any]]:
    """What `kubectl apply -k` sends, but for the namespace: resources, with the common label and the image's tag."""
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    [label], [image] = kustomization["labels"], kustomization["images"]
    assert label["includeTemplates"] is True
    found = {}
    for name in kustomization["resources"]:
        for manifest in yaml.safe_load_all((FOLDER / name).read_text()):
            made = deepcopy(manifest)
            made["metadata"].setdefault("labels", {})
            made["metadata"]["labels"] = {**made["metadata"]["labels"], **label["pairs"]}
            if template := made["spec"].get("template") if made["kind"] in {"Deployment", "Job"} else None:
                template["metadata"]["labels"] = {**template["metadata"]["labels"], **label["pairs"]}
                for container in template["spec"]["containers"]:
                    assert container["image"] == image["name"]
                    container["image"] += f":{image['newTag']}"
            found[made["kind"], made["metadata"]["name"]] = made
    return found


def without_helms_own(manifest: dict[str, Any]) -> dict[str, Any]:
    """Without the hook of the migration, and the checksum by which a change of settings starts new pods."""
    bare = deepcopy(manifest)
    if bare["kind"] == "Job":
        hooks = bare["metadata"].pop("annotations")
        assert hooks == {
            "helm.sh/hook": "pre-install,pre-upgrade",
            "helm.sh/hook-delete-policy": "before-hook-creation",
        }
    annotations = bare.get("spec", {}).get("template", {}).get("metadata", {}).get("annotations", {})
    assert ("checksum/settings" in annotations) is (
        bare["metadata"]["name"] in READ_SETTINGS and bare["kind"] == "Deployment"
    )
    annotations.pop("checksum/settings", None)
    return bare


READ_SETTINGS = {"telemetry-receiver", "telemetry-consumer"}


def test_the_chart_and_the_kustomization_have_the_same_manifests() -> None:
    """Who moves from one to the other must not find another product."""
    assert CHART_MANIFESTS.keys() == kustomized().keys()


@pytest.mark.parametrize("key", kustomized(), ids=" ".join)
def test_a_manifest_of_the_chart_is_that_of_the_kustomization(key: tuple[str, str]) -> None:
    """A limit, a right or a probe that is changed in one place only is a fault on half of the clusters."""
    assert without_helms_own(CHART_MANIFESTS[key]) == kustomized()[key]


@pytest.mark.parametrize("key", CHART_MANIFESTS, ids=" ".join)
def test_a_manifest_of_the_chart_fits_the_schema_of_kubernetes(key: tuple[str, str]) -> None:
    if not CHART_MANIFESTS[key]["apiVersion"].startswith("keda.sh/"):
        kubernetes_validate.validate(CHART_MANIFESTS[key], "1.33", strict=True)


def test_every_value_is_used_and_every_used_value_is_there() -> None:
    """A value that no template reads is a knob that turns nothing."""
    templates = "".join(path.read_text() for path in sorted((CHART / "templates").glob("*.yaml")))
    used = set(re.findall(r"\.Values\.([\w.]+)", templates))

    def leaves(values: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for name, value in values.items():
            is_whole = prefix + name in used or not isinstance(value, dict)
            found |= {prefix + name} if is_whole else leaves(value, f"{prefix}{name}.")
        return found

    read_in_settings = {name for name in used if name.startswith("settings.")}
    assert leaves(yaml.safe_load((CHART / "values.yaml").read_text())) == used - read_in_settings


def test_values_change_what_they_name() -> None:
    """Another registry, other settings, a cluster without KEDA, page and network policies."""
    made = rendered(
        image={"repository": "registry.example/telemetry", "tag": "2"},
        settings={"KAFKA_TOPIC": "clicks", "KAFKA_TOPIC_PARTITIONS": "24", "RETENTION_DAYS": 90},
        receiver={"minReplicas": 3},
        consumer={"replicas": 4, "keda": {"enabled": False}},
        viewer={"enabled": False},
        networkPolicy={"enabled": False},
    )
    assert {kind for kind, _ in made}.isdisjoint({"NetworkPolicy", "ScaledObject", "TriggerAuthentication"})
    assert ("Deployment", "telemetry-viewer") not in made
    consumer = made["Deployment", "telemetry-consumer"]["spec"]
    assert consumer["replicas"] == 4
    assert consumer["template"]["spec"]["containers"][0]["image"] == "registry.example/telemetry:2"
    assert made["HorizontalPodAutoscaler", "telemetry-receiver"]["spec"]["minReplicas"] == 3
    data = made["ConfigMap", "telemetry-settings"]["data"]
    assert (data["KAFKA_TOPIC"], data["RETENTION_DAYS"], data["DEPLOYMENT_TYPE"]) == ("clicks", "90", "cloud")
    scaled = rendered(settings={"KAFKA_TOPIC": "clicks", "KAFKA_TOPIC_PARTITIONS": "24"})[
        "ScaledObject", "telemetry-consumer"
    ]
    assert scaled["spec"]["maxReplicaCount"] == 24
    assert scaled["spec"]["triggers"][0]["metadata"]["topic"] == "clicks"


def test_a_change_of_settings_starts_new_pods() -> None:
    """A ConfigMap that changes under running pods is read by none of them."""

    def checksum(**settings: str) -> str:
        pod = rendered(settings=settings)["Deployment", "telemetry-consumer"]["spec"]["template"]
        return pod["metadata"]["annotations"]["checksum/settings"]

    assert checksum() == checksum() != checksum(LOG_LEVEL="DEBUG")
