"""Image, compose, Collector, Cloud Run and workflow fit the code: names, ports, limits, schemas. Static."""

import importlib.resources
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from consumer.settings import ConsumerSettings
from receiver.serve.transport.health import LIVENESS
from receiver.settings import ReceiverSettings
from shared.database_settings import DatabaseSettings
from shared.settings import load
from viewer.settings import ViewerSettings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOW = ROOT / ".github/workflows/telemetry-processor.yml"
RIGHTS = {  # to write, by job; every other job reads the repository and no more
    "telemetry-processor.yml": {("deploy", "id-token")},
    "release.yml": {("image", "packages"), ("publish", "contents"), ("publish", "packages"), ("publish", "id-token")},
}
PROCESSES = (ReceiverSettings, ConsumerSettings, ViewerSettings)
SETTINGS = {name.upper() for process in PROCESSES for name in process.model_fields}


def document(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def schema(name: str) -> dict[str, Any]:
    """One that the package check-jsonschema carries."""
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor"
    return json.loads((folder / f"{name}.json").read_text())


COMPOSE = document(ROOT / "docker-compose.yml")
SERVICES = COMPOSE["services"]
CLOUD_RUN = {path.stem: document(path) for path in (DEPLOY / "cloudrun").glob("*.yaml")}


def test_the_compose_file_fits_its_schema() -> None:
    """Docker compose refuses a file with an unknown key."""
    jsonschema.validate(COMPOSE, schema("compose-spec"))


def test_compose_has_the_promised_services_and_its_conditions_can_be_met() -> None:
    """Waiting for the health of a service without a health check waits for ever."""
    always = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert always == {
        "redpanda",
        "postgres-analytics",
        "migrate",
        "telemetry-receiver",
        "telemetry-consumer",
        "otel-collector",
    }
    assert SERVICES.keys() - always == {"prometheus", "grafana", "redpanda-console", "telemetry-viewer"}
    for service in SERVICES.values():
        for name, wanted in service.get("depends_on", {}).items():
            assert wanted["condition"] != "service_healthy" or "healthcheck" in SERVICES[name], name


@pytest.mark.parametrize("name", SERVICES)
def test_a_compose_service_is_pinned_bounded_and_seen_by_this_machine_only(name: str) -> None:
    """`latest` breaks on a Tuesday, a service without a limit takes its neighbours down, 0.0.0.0 is the internet."""
    service = SERVICES[name]
    assert re.search(r":v?\d+[\d.]*$|:local$", service["image"].partition("@")[0])
    assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert "no-new-privileges:true" in service["security_opt"]
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source


TAG_ALONE = {"otel/opentelemetry-collector-contrib", "redpandadata/console"}


def test_images_of_others_have_a_digest() -> None:
    """A tag is moved by whoever may push it; a digest is one image for ever."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    stages = re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE)
    images = {image for image in re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) if image not in stages}
    images |= {service["image"] for service in SERVICES.values()} - {"telemetry-processor:local"}
    assert len(images) == 8
    tagged = {image for image in images if not re.fullmatch(r"[a-z/-]+:v?\d[\w.-]*@sha256:[0-9a-f]{64}", image)}
    assert {image.partition(":")[0] for image in tagged} == TAG_ALONE


def test_every_variable_that_compose_fills_in_stands_in_the_template_of_env() -> None:
    """`docker compose` reads .env, which is a copy of it; a variable that is not there is found in no list."""
    text = (ROOT / "docker-compose.yml").read_text()
    filled = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text))
    assert filled
    assert filled <= set(re.findall(r"^# ?([A-Z_0-9]+)=", (DEPLOY / "env.txt").read_text(), re.MULTILINE))


def test_compose_asks_for_the_databases_password_and_ships_none() -> None:
    """A default password is everybody's password."""
    given = [service["environment"].get("ANALYTICS_DB_PASS", "") for service in (SERVICES["migrate"],)]
    given.append(SERVICES["postgres-analytics"]["environment"]["POSTGRES_PASSWORD"])
    assert all(value.startswith("${ANALYTICS_DB_PASS:?") for value in given)


def test_the_receiver_has_no_way_to_the_database() -> None:
    """Whoever breaks into the process that faces senders must not find rows behind it."""
    assert "analytics" not in SERVICES["telemetry-receiver"]["networks"]
    assert "analytics" not in SERVICES["otel-collector"]["networks"]


def test_the_page_reads_as_the_role_that_only_reads_and_has_no_way_to_kafka() -> None:
    """It is what people open in browsers."""
    page = SERVICES["telemetry-viewer"]
    assert page["networks"] == ["analytics"]
    assert "env_file" not in page
    assert page["environment"]["VIEWER_DATABASE_URL"].startswith("postgresql://analytics_reader:")
    assert page["environment"]["VIEWER_PASSWORD_FILE"] == f"/run/secrets/{page['secrets'][0]}"
    assert COMPOSE["secrets"] == {page["secrets"][0]: {"environment": "VIEWER_PASS"}}


def test_the_build_context_holds_what_the_image_copies_and_no_secret() -> None:
    """A file that .dockerignore hides breaks the build; one that it lets through is in every registry."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    copied = [
        path.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
        for path in line.split()
    ]
    assert {path for path in copied if path != "deploy/lock/development.txt"} == allowed
    assert all((ROOT / path).exists() for path in copied)


def test_the_image_is_hashed_and_runs_as_nobody_in_particular() -> None:
    """Kubernetes can check `runAsNonRoot` of a numeric user only; an unhashed package is whoever took the name."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", dockerfile, re.MULTILINE)
    assert "STOPSIGNAL SIGTERM" in dockerfile
    installs = re.findall(r"pip install ([^\n\\]+)", dockerfile)
    assert len(installs) == 4
    assert all("--require-hashes" in install or "--no-index" in install for install in installs)
    final = dockerfile.split("\nFROM ")[-1]
    assert "RUN" not in final


def test_the_lock_still_has_what_builds_the_package() -> None:
    """The Dockerfile picks the builder's lines out of the lock of development."""
    [names] = re.findall(r"sed -n '/\^\\\((.+?)\\\)==", (DEPLOY / "Dockerfile").read_text())
    assert "/^maturin==/" in (DEPLOY / "Dockerfile").read_text()
    pinned = re.findall(r"^([a-z0-9-]+)==", (DEPLOY / "lock/development.txt").read_text(), re.MULTILINE)
    assert {"maturin", *names.split(r"\|")} <= set(pinned)


def test_migrate_sh_is_executable_and_plain_sh() -> None:
    """It is the command of a container."""
    script = DEPLOY / "migrate.sh"
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", script], check=True)


def test_the_collector_keeps_what_it_has_accepted() -> None:
    """With its defaults an outage of five minutes loses data in front of us, and no log of ours shows it."""
    config = document(DEPLOY / "otel-collector.yaml")
    exporter = config["exporters"]["otlp_grpc"]
    queue = exporter["sending_queue"]
    assert config["extensions"][queue["storage"]]["fsync"] is True
    assert queue["storage"] in config["service"]["extensions"]
    assert queue["block_on_overflow"] is True
    assert exporter["retry_on_failure"]["max_elapsed_time"] == "0s"
    assert exporter["compression"] == "gzip"
    assert "processors" not in config["service"]["pipelines"]["traces"]
    attempt_s = float(exporter["timeout"].rstrip("s"))
    assert attempt_s > ReceiverSettings.model_fields["publish_timeout_ms"].default / 1000 + 1


def test_a_batch_of_the_collector_fits_the_receivers_limits() -> None:
    """One that does not is refused in a way upon which the Collector drops it for good."""
    config = document(DEPLOY / "otel-collector.yaml")
    queue = config["exporters"]["otlp_grpc"]["sending_queue"]
    protocols = config["receivers"]["otlp"]["protocols"]
    assert queue["sizer"] == "bytes"
    largest_span = max(
        protocols["grpc"]["max_recv_msg_size_mib"] * 1024 * 1024, protocols["http"]["max_request_body_size"]
    )
    assert largest_span < queue["batch"]["max_size"]  # the Collector drops a span that no batch can hold
    assert queue["batch"]["max_size"] < ReceiverSettings.model_fields["max_request_bytes"].default
    smallest_span = 2 + 18 + 10 + 9 + 9  # tag and length, trace id, span id, two times
    assert queue["batch"]["max_size"] / smallest_span < ReceiverSettings.model_fields["max_spans_per_request"].default


def cloud_run_container(name: str) -> dict[str, Any]:
    spec = CLOUD_RUN[name]["spec"]["template"]["spec"]
    [container] = (spec["template"]["spec"] if "template" in spec else spec)["containers"]
    return container


def environment_of(name: str) -> dict[str, Any]:
    return {variable["name"]: variable for variable in cloud_run_container(name)["env"]}


def test_cloud_run_speaks_http_2_to_the_receiver_and_leaves_it_its_cpu() -> None:
    """gRPC needs HTTP/2 end to end; a throttled receiver cannot publish what it holds."""
    receiver_container = cloud_run_container("receiver")
    default_port = ReceiverSettings.model_fields["port"].default
    assert receiver_container["ports"] == [{"name": "h2c", "containerPort": default_port}]
    annotations = CLOUD_RUN["receiver"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["run.googleapis.com/cpu-throttling"] == "false"
    assert int(annotations["autoscaling.knative.dev/minScale"]) >= 1
    for probe in ("livenessProbe", "startupProbe"):
        assert receiver_container[probe]["grpc"] == {"port": default_port, "service": LIVENESS}
    assert {name: CLOUD_RUN[name]["kind"] for name in CLOUD_RUN} == {
        "receiver": "Service",
        "consumer": "WorkerPool",
        "migrate": "Job",
    }


@pytest.mark.parametrize("name", ["consumer", "migrate"])
def test_cloud_run_reaches_cloud_sql_through_its_socket(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder must be the one that the annotation mounts, and our own rules must read it as a socket."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANALYTICS_DATABASE_URL", raising=False)
    environment = environment_of(name)
    for variable in ("ANALYTICS_DB_HOST", "ANALYTICS_DB_NAME", "ANALYTICS_DB_USER"):
        value = environment[variable]["value"]
        for placeholder in ("PROJECT", "REGION", "INSTANCE"):
            value = value.replace(f"${{{placeholder}}}", placeholder.lower())
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("ANALYTICS_DB_PASS", "secret")
    address = load(DatabaseSettings).database_url
    assert address == "postgresql://telemetry:secret@/analytics?host=/cloudsql/project%3Aregion%3Ainstance&port=5432"
    annotations = CLOUD_RUN[name]["spec"]["template"]["metadata"]["annotations"]
    instance = annotations["run.googleapis.com/cloudsql-instances"]
    assert environment["ANALYTICS_DB_HOST"]["value"] == f"/cloudsql/{instance}"


@pytest.mark.parametrize("name", CLOUD_RUN)
def test_cloud_run_takes_secrets_by_reference(name: str) -> None:
    """A secret in a manifest is a secret in git."""
    secret = {"ANALYTICS_DB_PASS", "KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD", "ID_HASH_KEY", "API_KEYS"}
    for variable in environment_of(name).values():
        assert ("valueFrom" in variable) == (variable["name"] in secret), variable["name"]
    if name == "receiver":
        assert not any(variable.startswith("ANALYTICS") for variable in environment_of(name))


def given_settings() -> Iterator[tuple[str, set[str]]]:
    for name in ("migrate", "telemetry-receiver", "telemetry-consumer", "telemetry-viewer"):
        yield f"compose {name}", set(SERVICES[name]["environment"])
    for name in CLOUD_RUN:
        yield f"cloudrun {name}", set(environment_of(name))


GIVEN = dict(given_settings())


@pytest.mark.parametrize("place", GIVEN)
def test_a_setting_that_a_deployment_gives_exists(place: str) -> None:
    """A misspelt variable is an error nowhere: it does nothing."""
    assert GIVEN[place] <= SETTINGS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_fits_its_schema(path: Path) -> None:
    """GitHub runs nothing of a file that it cannot read, and says so on a page that nobody opens."""
    workflow: dict[Any, Any] = document(path)
    workflow["on"] = workflow.pop(True)  # YAML 1.1 reads the key `on` as a truth value
    jsonschema.validate(workflow, schema("github-workflows"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_pinned_actions_with_the_least_rights(path: Path) -> None:
    """A tag of an action can be moved by whoever takes its repository over; a right that is there is used."""
    workflow = document(path)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    for step in steps:
        assert re.search(r"@[0-9a-f]{40}$", step.get("uses", "@" + 40 * "0")), step
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    for line in path.read_text().splitlines():
        assert "uses:" not in line or re.search(r"@[0-9a-f]{40}  # v\d+\.\d+\.\d+$", line), line
    written = {
        (name, right)
        for name, job in workflow["jobs"].items()
        for right, way in job.get("permissions", {}).items()
        if way == "write"
    }
    assert written == RIGHTS[path.name]
    assert all(job["timeout-minutes"] <= 40 for job in workflow["jobs"].values())


def test_a_release_is_of_a_commit_that_passed_and_of_one_version() -> None:
    """What was never tested together must not carry a number."""
    release = document(ROOT / ".github/workflows/release.yml")
    jobs = release["jobs"]
    assert release[True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}
    assert {name for name, job in jobs.items() if "needs" not in job} == {"ready"}
    assert set(jobs["publish"]["needs"]) == {"native", "package", "image"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = {
        project["version"],
        tomllib.loads((ROOT / "native/pyproject.toml").read_text())["project"]["version"],
        tomllib.loads((ROOT / "native/Cargo.toml").read_text())["package"]["version"],
        document(DEPLOY / "helm/telemetry-processor/Chart.yaml")["version"],
        document(DEPLOY / "helm/telemetry-processor/Chart.yaml")["appVersion"],
    }
    assert len(versions) == 1, versions


def test_the_workflow_tests_every_python_that_the_package_admits() -> None:
    """A version that nobody runs is a version that fails at somebody else's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matrix = document(WORKFLOW)["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={matrix[0]}"
    assert matrix == ["3.11", "3.12", "3.13", "3.14"]
    assert matrix == [name.rpartition(" ")[2] for name in project["classifiers"] if re.search(r":: 3\.\d+$", name)]


def test_the_workflow_names_files_and_targets_that_exist() -> None:
    """CI that breaks for a moved file is found out by the next pull request of somebody else."""
    text = WORKFLOW.read_text()
    files = set(re.findall(r"\b(?:deploy|tests)/[\w./-]+\.\w+", text))
    assert files
    assert all((ROOT / name).is_file() for name in files), files
    folders = [f"deploy/cloudrun/{name}.yaml" for name in ("migrate", "consumer", "receiver")]
    assert "for name in migrate consumer receiver" in text
    assert all((ROOT / name).is_file() for name in folders)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets
    services = re.findall(r"docker compose exec -T (\S+)", text)
    assert services
    assert set(services) <= SERVICES.keys()


def test_the_workflow_deploys_from_main_only_and_only_where_it_is_set_up() -> None:
    """A fork has no cloud; a pull request must not reach ours."""
    workflow = document(WORKFLOW)
    deploy = workflow["jobs"]["deploy"]
    assert set(deploy["needs"]) == {"test", "smoke", "senders", "browser"}
    assert "refs/heads/main" in deploy["if"]
    assert "vars.GCP_WORKLOAD_IDENTITY_PROVIDER != ''" in deploy["if"]
    filled = set(
        re.findall(r"\$\{([A-Z_]+)\}", "".join(path.read_text() for path in (DEPLOY / "cloudrun").glob("*.yaml")))
    )
    assert filled == deploy["env"].keys()


def test_installing_says_how_far_it_is_and_what_failed(tmp_path: Path) -> None:
    """Two silent minutes look like a hang; a failure without pip's words is a riddle."""
    entry = re.search(
        r"^packaging==.*?(?=^\S)", (DEPLOY / "lock/development.txt").read_text(), re.MULTILINE | re.DOTALL
    )
    assert entry
    for lock, code, said in (
        (entry[0], 0, "fetched 1 of 1 packages"),
        (re.sub(r"packaging==\S+", "packaging==0.0.1", entry[0]), 1, "ERROR"),  # no such version
    ):
        (tmp_path / "lock.txt").write_text(lock)
        command = [sys.executable, ROOT / "deploy/local/install.py", tmp_path / "lock.txt"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert said in done.stdout
