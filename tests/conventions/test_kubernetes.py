"""The Kubernetes manifests fit their schemas, the code, and the restricted profile of pod security."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from consumer.settings import ConsumerSettings
from receiver.serve.transport.health import LIVENESS
from receiver.settings import ReceiverSettings
from shared.settings import KafkaSettings
from viewer.settings import ViewerSettings

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
VERSION = "1.33"
PROCESSES = (ReceiverSettings, ConsumerSettings, ViewerSettings)
SETTINGS = {name.upper() for process in PROCESSES for name in process.model_fields}
MANIFESTS = {
    f"{path.name} {manifest['kind']} {manifest['metadata']['name']}": manifest
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for manifest in yaml.safe_load_all(path.read_text())
}
WORKLOADS = {one["metadata"]["name"]: one for one in MANIFESTS.values() if one["kind"] in {"Deployment", "Job"}}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_fits_the_schema_of_kubernetes(name: str) -> None:
    """The API server refuses an unknown field, or worse, drops it in silence."""
    if MANIFESTS[name]["apiVersion"].startswith("keda.sh/"):
        return  # not in the schemas of Kubernetes itself: its own test below
    kubernetes_validate.validate(MANIFESTS[name], VERSION, strict=True)


def test_the_kustomization_lists_every_manifest_but_the_example_of_secrets() -> None:
    """A file that is not listed is not applied; an example that is listed overwrites real secrets with nothing."""
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files - {"secrets.example.yaml"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_pod_has_no_more_rights_than_it_needs(name: str) -> None:
    """The restricted profile of pod security, spelled out."""
    pod = WORKLOADS[name]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def probes_of(role: str) -> dict[str, Any]:
    [container] = WORKLOADS[f"telemetry-{role}"]["spec"]["template"]["spec"]["containers"]
    kinds = ("startup", "liveness", "readiness")
    return {kind: container[f"{kind}Probe"].get("grpc") or container[f"{kind}Probe"]["httpGet"] for kind in kinds}


def test_liveness_looks_at_the_process_only() -> None:
    """A liveness probe on readiness restarts every process while the broker is down, and mends nothing."""
    assert probes_of("receiver") == {  # the port that senders use
        "startup": {"port": 4317, "service": LIVENESS},
        "liveness": {"port": 4317, "service": LIVENESS},
        "readiness": {"port": 4317},
    }
    assert probes_of("consumer") == {
        "startup": {"path": "/livez", "port": "metrics"},
        "liveness": {"path": "/livez", "port": "metrics"},
        "readiness": {"path": "/readyz", "port": "metrics"},
    }


@pytest.mark.parametrize(("role", "port"), [("receiver", 9464), ("consumer", 9465)])
def test_a_pod_names_its_metrics_port_and_has_time_to_stop(role: str, port: int) -> None:
    """Prometheus finds the one by name; killed in the middle of a drain, senders repeat what was stored."""
    pod = WORKLOADS[f"telemetry-{role}"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert {"name": "metrics", "containerPort": port} in container["ports"]
    assert pod["terminationGracePeriodSeconds"] >= 15 + container.get("lifecycle", {}).get("preStop", {}).get(
        "sleep", {}
    ).get("seconds", 0)


def test_keda_scales_the_consumer_up_to_its_partitions_and_never_to_none() -> None:
    """More consumers than partitions idle; with none, lag goes unseen."""
    kinds = {one["kind"]: one for one in MANIFESTS.values() if one["apiVersion"] == "keda.sh/v1alpha1"}
    scaled, settings = kinds["ScaledObject"]["spec"], named("ConfigMap", "telemetry-settings")["data"]
    assert scaled["scaleTargetRef"]["name"] in WORKLOADS
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (1, int(settings["KAFKA_TOPIC_PARTITIONS"]))
    [trigger] = scaled["triggers"]
    assert trigger["type"] == "kafka"
    metadata = trigger["metadata"]
    assert all(isinstance(value, str) for value in metadata.values())  # KEDA takes strings only
    assert metadata["bootstrapServers"] == settings["KAFKA_BOOTSTRAP_SERVERS"]
    assert metadata["topic"] == KafkaSettings.model_fields["kafka_topic"].default
    assert metadata["consumerGroup"] == KafkaSettings.model_fields["kafka_consumer_group"].default
    assert metadata["allowIdleConsumers"] == "false"
    assert trigger["authenticationRef"]["name"] == kinds["TriggerAuthentication"]["metadata"]["name"]
    for reference in kinds["TriggerAuthentication"]["spec"]["secretTargetRef"]:
        assert reference["key"] in named("Secret", reference["name"])["stringData"]


def named(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in MANIFESTS.values() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def test_each_pod_gets_the_secrets_of_its_own_and_no_others() -> None:
    """The receiver faces the senders: it must not hold the database's password."""
    secrets = {
        name: {
            source["secretRef"]["name"]
            for source in workload["spec"]["template"]["spec"]["containers"][0]["envFrom"]
            if "secretRef" in source
        }
        for name, workload in WORKLOADS.items()
    }
    assert secrets == {
        "telemetry-receiver": {"telemetry-shared", "telemetry-receiver"},
        "telemetry-consumer": {"telemetry-shared", "telemetry-database"},
        "telemetry-migrate": {"telemetry-database"},
        "telemetry-viewer": {"telemetry-viewer"},
    }
    assert all(named("Secret", name) for names in secrets.values() for name in names)


@pytest.mark.parametrize("name", [name for name in MANIFESTS if " ConfigMap " in name or " Secret " in name])
def test_a_setting_that_a_manifest_gives_exists(name: str) -> None:
    """A misspelt variable is an error nowhere: it does nothing."""
    manifest = MANIFESTS[name]
    assert set(manifest.get("data", {}) | manifest.get("stringData", {})) <= SETTINGS
