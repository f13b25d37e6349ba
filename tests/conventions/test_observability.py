"""Alerts and dashboards speak of metrics, panels and pages that exist."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from promql_parser import AggregateExpr, VectorSelector

import consumer.metrics
import receiver.metrics
import viewer.metrics

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in (DEPLOY / "grafana/dashboards").glob("*.json")}


def document(path: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / path).read_text())


ALERTS = [rule for group in document("deploy/prometheus/alerts.yml")["groups"] for rule in group["rules"]]
DATA_SOURCES = document("deploy/grafana/provisioning/datasources/telemetry.yaml")["datasources"]


def declared() -> dict[str, set[str]]:
    """Every series that our processes serve, with its labels."""
    found: dict[str, set[str]] = {}
    for module in (receiver.metrics, consumer.metrics, viewer.metrics):
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                for suffix in {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(
                    metric._type, [""]
                ):
                    labels = {"le"} if suffix == "_bucket" else set()
                    found[metric._name + suffix] = {*metric._labelnames, *labels}
    return found


PROMETHEUS_LABELS = {"job", "instance"}
SERIES = declared() | {"up": set()}


def expressions() -> Iterator[tuple[str, str]]:
    yield from ((rule["alert"], rule["expr"]) for rule in ALERTS)
    for panel in DASHBOARDS["operations"]["panels"]:
        yield from ((f"{panel['title']} {target['refId']}", target["expr"]) for target in panel["targets"])


EXPRESSIONS = dict(expressions())


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_parses_and_uses_metrics_and_labels_that_exist(name: str) -> None:
    """An alert on a metric that nobody serves never fires, and nobody notices until it should have."""
    selectors: list[VectorSelector] = []
    labels: set[str] = set()

    def visit(node: object) -> bool:
        if isinstance(node, VectorSelector):
            selectors.append(node)
        if isinstance(node, AggregateExpr) and node.modifier:
            labels.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(EXPRESSIONS[name]), visit)
    assert selectors
    assert {selector.name for selector in selectors} <= SERIES.keys()
    known = PROMETHEUS_LABELS.union(*(SERIES[selector.name] for selector in selectors))
    matched = {matcher.name for selector in selectors for matcher in selector.matchers.matchers}
    assert matched | labels <= known


def test_every_value_that_an_expression_asks_for_is_one_of_the_closed_set() -> None:
    """`code="UNAVAILABEL"` matches nothing and looks like health."""
    asked = set(re.findall(r'code=~?"([^"]+)"', " ".join(EXPRESSIONS.values())))
    assert {code for value in asked for code in value.split("|")} <= set(receiver.metrics.CODES)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_urgent_it_is_what_happened_and_where_to_read_on(rule: dict[str, Any]) -> None:
    """It is read by somebody who was asleep a minute ago."""
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert len(rule["annotations"]["summary"]) > 20
    path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor == rule["alert"].lower()
    headings = re.findall(r"^#+ (\w+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert rule["alert"] in headings


def test_the_runbook_has_no_section_for_an_alert_that_is_gone() -> None:
    """Both ways, or the page rots."""
    headings = re.findall(r"^#+ (Telemetry\w+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in ALERTS)


def test_prometheus_scrapes_both_services_at_the_ports_they_serve() -> None:
    """A wrong port is a process that is down, to Prometheus."""
    prometheus = document("deploy/prometheus/prometheus.yml")
    scraped = {
        place["names"][0]: place["port"] for job in prometheus["scrape_configs"] for place in job["dns_sd_configs"]
    }
    assert scraped == {"telemetry-receiver": 9464, "telemetry-consumer": 9465}
    assert scraped.keys() <= document("docker-compose.yml")["services"].keys()
    assert prometheus["rule_files"] == ["alerts.yml"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_uses_data_sources_that_are_provisioned(name: str) -> None:
    """A panel of an unknown source is an error message on a wall."""
    known = {(source["type"], source["uid"]) for source in DATA_SOURCES}
    used = {
        (source["type"], source["uid"])
        for panel in DASHBOARDS[name]["panels"]
        for source in [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    }
    assert used <= known
    assert len({panel["id"] for panel in DASHBOARDS[name]["panels"]}) == len(DASHBOARDS[name]["panels"])


def test_every_panel_of_product_analytics_is_under_the_rule_of_k_and_a_viewer_starts_at_five() -> None:
    """A new panel that forgets the rule shows single people."""
    product = DASHBOARDS["product"]
    [k] = [variable for variable in product["templating"]["list"] if variable["name"] == "k"]
    assert (k["current"]["value"], min(int(value) for value in k["query"].split(","))) == ("5", 5)
    for panel in product["panels"]:
        sql = panel["targets"][0]["rawSql"]
        assert re.findall(r"\bFROM (\S+?)\(", sql), panel["title"]
        assert all(source.startswith("analytics.") for source in re.findall(r"\bFROM (\S+)", sql)), panel["title"]
        counts_people = not re.search(r"analytics\.(requests_over_time|freshness)\(", sql)
        assert ("smallest_group => $k" in sql) == counts_people, panel["title"]


def test_grafana_logs_in_as_the_role_that_only_reads() -> None:
    """Dashboards need no more."""
    [analytics] = [source for source in DATA_SOURCES if source["uid"] == "analytics"]
    assert analytics["user"] == "analytics_reader"
    assert "CREATE ROLE analytics_reader" in (DEPLOY / "postgres/reader.sql").read_text()


def test_every_metric_is_shown_or_explained_somewhere() -> None:
    """One that stands on no dashboard, in no alert and on no page helps nobody."""
    used = set(re.findall(r"\b(?:receiver|consumer|viewer)_[a-z_]+", " ".join(EXPRESSIONS.values())))
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    explained = {
        name for page in pages for name in re.findall(r"\b(?:receiver|consumer|viewer)_[a-z_]+", page.read_text())
    }
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in declared()}
    assert {name for name in families if not {name, f"{name}_bucket", f"{name}_sum"} & (used | explained)} == set()


def test_every_metric_has_a_sentence_and_a_unit_or_counts_something() -> None:
    """`_total` counts; a gauge or a histogram without a unit in its name is guessed at."""
    units = (
        "_seconds",
        "_bytes",
        "_records",
        "_ratio",
        "_ready",
        "_open",
        "_info",
        "_balanced",
        "_waiting",
        "_writers",
        "_connections",
    )
    for module in (receiver.metrics, consumer.metrics):
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase):
                assert len(metric._documentation) > 20, metric._name
                assert metric._type == "counter" or metric._name.endswith(units), metric._name
