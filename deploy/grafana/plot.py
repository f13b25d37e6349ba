"""A dashboard's own queries -> one PNG: what its panels show, without Grafana. docs/images are made by it.

product     the panels' SQL; without --database on a Postgres of its own, filled with made-up rows
operations  the panels' PromQL, asked of a running Prometheus

    .venv/bin/python deploy/grafana/plot.py product --out docs/images/product.png
    .venv/bin/python deploy/grafana/plot.py operations --prometheus http://127.0.0.1:9090 --minutes 15 --out o.png
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import matplotlib as mpl
from matplotlib import dates, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = Path(__file__).parent / "dashboards"
GRID_COLUMNS = 24
INCHES_A_COLUMN, INCHES_A_ROW = 15 / GRID_COLUMNS, 0.34
TABLE_ROWS_MAX = 8
COLOURS = ("#3871dc", "#e0752d", "#299c46", "#d44a3a", "#8f3bb8", "#e0b400", "#0a8f8f", "#7a5c3e", "#777777", "#c2185b")
INK, FAINT, GROUND = "#24292e", "#8b949e", "#f4f5f5"
FEWEST_USERS, BUCKET = 5, "day"


def main() -> None:
    arguments = _arguments()
    dashboard = json.loads((DASHBOARDS / f"{arguments.dashboard}.json").read_text())
    if arguments.dashboard == "product":
        with _database(arguments.database) as url:
            found = asyncio.run(_rows_of(dashboard, url, days=arguments.days))
        caption = f"{arguments.days} days of {'rows' if arguments.database else 'made-up rows'}, k = {FEWEST_USERS}"
    else:
        found = {
            panel["id"]: _series_of(panel, arguments.prometheus, minutes=arguments.minutes)
            for panel in dashboard["panels"]
        }
        caption = f"{arguments.minutes:g} minutes"
    figure = _drawn(dashboard, found, f"{caption}; drawn from the panels' queries by deploy/grafana/plot.py")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=80, facecolor=GROUND, pil_kwargs={"optimize": True})
    print(f"{arguments.out}: {arguments.out.stat().st_size // 1024} KiB")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dashboard", choices=["product", "operations"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--database", help="an analytics database; else one of made-up rows")
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=15)
    return parser.parse_args()


# ---- product: SQL


@contextmanager
def _database(url: str | None) -> Iterator[str]:
    """The database at the URL, or a migrated one with two weeks of a shop's rows."""
    if url is not None:
        yield url
        return
    sys.path.insert(0, str(ROOT))
    from deploy.local.postgres import PostgresServer  # noqa: PLC0415  only found once the root is on the path

    with tempfile.TemporaryDirectory(prefix="telemetry-plot-") as folder:
        Path(folder).chmod(0o755)  # Postgres runs as nobody when we are root
        with PostgresServer(Path(folder) / "postgres") as server:
            server.create_database("analytics")
            url = server.url("analytics")
            command = [sys.executable, "-m", "alembic", "upgrade", "head"]
            subprocess.run(command, cwd=ROOT, env={**os.environ, "ANALYTICS_DATABASE_URL": url}, check=True)
            asyncio.run(_fill(url))
            yield url


async def _fill(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(MADE_UP)
    finally:
        await connection.close()


# Hours of the day and week as an office has them; 240 people of twelve organizations, three of them too small to show.
MADE_UP = """
SELECT setseed(0.42);
CREATE TEMPORARY TABLE people AS SELECT
    substr(md5('user' || n), 1, 16) AS user_id,
    substr(md5('organization' || (12 * power(random(), 2))::int), 1, 16) AS organization_id,
    CASE WHEN random() < 0.7 THEN 'cloud' ELSE 'self-hosted' END AS deployment_type,
    power(random(), 2) AS zeal, row_number() OVER () AS number
FROM generate_series(1, 240) AS n;
CREATE TEMPORARY TABLE visits AS
SELECT people.*, hour + random() * interval '1 hour' AS at, random() AS dice
FROM people, generate_series(now() - interval '14 days', now() - interval '1 hour', interval '1 hour') AS hour
WHERE random() < zeal * 0.5 * greatest(0.06, sin((extract(hour FROM hour) - 6) / 14 * pi()))
    * CASE WHEN extract(isodow FROM hour) > 5 THEN 0.25 ELSE 1 END;
INSERT INTO user_activity (id, "timestamp", user_id, organization_id, deployment_type, event_type, event_metadata)
SELECT gen_random_uuid(), at, user_id, organization_id, deployment_type,
    CASE WHEN dice < 0.5 THEN 'login' WHEN dice < 0.55 THEN 'login_failed' WHEN dice < 0.9 THEN 'logout'
         ELSE 'password_changed' END, '{}'
FROM visits WHERE dice < 0.93;
INSERT INTO endpoint_usage (id, "timestamp", user_id, organization_id, deployment_type, endpoint, method, status_code,
    duration_ms, event_metadata)
SELECT gen_random_uuid(), at + n * interval '20 seconds', user_id, organization_id, deployment_type, endpoint, method,
    CASE WHEN random() < 0.012 THEN 500 WHEN random() < 0.04 THEN 404 ELSE 200 END,
    median * exp(0.6 * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random())), '{}'
FROM visits, generate_series(1, 5) AS n, LATERAL (
    SELECT * FROM (VALUES (0.34, '/api/products/{product}', 'GET', 40), (0.58, '/api/search', 'GET', 95),
        (0.72, '/orders/{id}', 'GET', 35), (0.82, '/api/login', 'POST', 160), (0.9, '/api/checkout', 'POST', 480),
        (1.0, '/api/assistant', 'POST', 2300)) AS known (upto, endpoint, method, median)
    WHERE upto >= abs(hashtext(user_id || at::text || n) % 1000) / 1000.0 ORDER BY upto LIMIT 1) AS endpoint;
INSERT INTO feature_usage (id, "timestamp", user_id, organization_id, deployment_type, feature_name, action,
    event_metadata)
SELECT gen_random_uuid(), at + interval '3 minutes', user_id, organization_id, deployment_type, feature_name, action,
    '{}'
FROM visits, LATERAL (
    SELECT * FROM (VALUES (0.45, 'product_search', 'searched'), (0.6, 'checkout', 'completed'),
        (0.9, 'shopping_assistant', 'asked'), (0.97, 'export', 'created'), (1.0, 'api_token', 'created'))
        AS known (upto, feature_name, action) WHERE upto >= dice ORDER BY upto LIMIT 1) AS feature;
ANALYZE;
"""


async def _rows_of(dashboard: dict[str, Any], url: str, *, days: int) -> dict[int, Any]:
    connection = await asyncpg.connect(url)
    until = datetime.now(UTC)
    try:
        return {
            panel["id"]: await connection.fetch(
                _expanded(panel["targets"][0]["rawSql"], until - timedelta(days), until)
            )
            for panel in dashboard["panels"]
        }
    finally:
        await connection.close()


def _expanded(sql: str, start: datetime, end: datetime) -> str:
    """What Grafana makes of a panel's SQL."""
    between = rf"\1 BETWEEN '{start.isoformat()}' AND '{end.isoformat()}'"
    sql = re.sub(r"\$__timeFilter\(([^)]+)\)", between, sql)
    return sql.replace("$k", str(FEWEST_USERS)).replace("$bucket", BUCKET)


# ---- operations: PromQL


def _series_of(panel: dict[str, Any], prometheus: str, *, minutes: float) -> dict[str, list[tuple[datetime, float]]]:
    """By legend, each panel's lines over the last minutes."""
    end = datetime.now(UTC).timestamp()
    found: dict[str, list[tuple[datetime, float]]] = {}
    for target in panel["targets"]:
        query = {"query": target["expr"], "start": end - 60 * minutes, "end": end, "step": max(5, minutes / 2)}
        url = f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as reply:  # noqa: S310  the operator's own address
            result = json.load(reply)["data"]["result"]
        for series in result:
            values = [(datetime.fromtimestamp(at, UTC), float(value)) for at, value in series["values"]]
            found[_legend(target, series["metric"])] = values
    return found


def _legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    template = target.get("legendFormat") or target["refId"]
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name.group(1), ""), template)


# ---- drawing


def _drawn(dashboard: dict[str, Any], found: dict[int, Any], caption: str) -> Figure:
    """Every panel where the dashboard has it."""
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    width, height = GRID_COLUMNS * INCHES_A_COLUMN, rows * INCHES_A_ROW + 0.7
    with mpl.rc_context({"font.size": 8.5, "font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": FAINT}):
        figure = Figure(figsize=(width, height))
        figure.text(0.01, 1 - 0.42 / height, dashboard["title"], fontsize=15, weight="bold")
        figure.text(0.99, 1 - 0.4 / height, caption, fontsize=8.5, color=FAINT, ha="right")
        for panel in panels:
            place = panel["gridPos"]
            left, right = place["x"] / GRID_COLUMNS, (place["x"] + place["w"]) / GRID_COLUMNS
            top = 1 - (0.7 + place["y"] * INCHES_A_ROW) / height
            bottom = top - place["h"] * INCHES_A_ROW / height
            _draw(figure, panel, found[panel["id"]], (left, bottom, right - left, top - bottom))
        return figure


def _draw(figure: Figure, panel: dict[str, Any], content: Any, box: tuple[float, float, float, float]) -> None:
    left, bottom, width, height = box
    inch_x, inch_y = 1 / figure.get_figwidth(), 1 / figure.get_figheight()
    card = figure.add_axes((left + 0.05 * inch_x, bottom + 0.05 * inch_y, width - 0.1 * inch_x, height - 0.1 * inch_y))
    card.set(xticks=[], yticks=[], facecolor="white")
    for spine in card.spines.values():
        spine.set_color("#d8dadd")
    card.annotate(
        panel["title"],
        (0, 1),
        xytext=(7, -6),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        weight="bold",
    )
    inner = (left + 0.6 * inch_x, bottom + 0.5 * inch_y, width - 0.8 * inch_x, height - 0.95 * inch_y)
    match panel["type"]:
        case "stat":
            _draw_number(card, panel, content)
        case "table":
            _draw_table(card, content, width / inch_x)
        case _:
            lines = content if isinstance(content, dict) else _lines(content)
            _draw_lines(figure.add_axes(inner), panel, lines)


def _draw_number(card: Axes, panel: dict[str, Any], content: Any) -> None:
    if isinstance(content, dict):
        values = {name: points[-1][1] for name, points in content.items() if points}
        shown = [_told(value, panel) for value in values.values()]
        text = "\n".join(f"{each}  {name.removeprefix('telemetry-')}" for each, name in zip(shown, values, strict=True))
        text = text if len(shown) > 1 else "".join(shown)
        size = 11 if len(shown) > 1 else 20
    else:
        text, size = f"{content[0][0]:,}" if content else "hidden", 30
    colour = COLOURS[2]
    card.text(
        0.5, 0.42, text or "no data", transform=card.transAxes, ha="center", va="center", fontsize=size, color=colour
    )


def _draw_table(card: Axes, rows: Sequence[asyncpg.Record], width_inches: float) -> None:
    if not rows:
        card.text(0.5, 0.45, "nothing to show", transform=card.transAxes, ha="center", color=FAINT)
        return
    names = list(rows[0].keys())
    texts = [[_cell(value) for value in row.values()] for row in rows[:TABLE_ROWS_MAX]]
    lengths = [max(len(name), *(len(line[column]) for line in texts)) + 2 for column, name in enumerate(names)]
    edges = [sum(lengths[: column + 1]) / sum(lengths) for column in range(len(names))]
    size = min(8.5, 150 * width_inches / sum(lengths) / 1.35)
    step = min(0.105, 0.8 / (len(texts) + 1))
    for number, line in enumerate([names, *texts]):
        y = 0.83 - number * step
        if number:
            card.axhline(y + step / 2, 0.015, 0.985, color="#e4e6e8", linewidth=0.6)
        for column, text in enumerate(line):
            is_text = isinstance(rows[0][column], str)
            x = (edges[column - 1] if column else 0) if is_text else edges[column]
            card.text(
                0.015 + 0.97 * x,
                y,
                text,
                transform=card.transAxes,
                ha="left" if is_text else "right",
                va="center",
                fontsize=size,
                color=INK if number else FAINT,
            )
    card.set(xlim=(0, 1), ylim=(0, 1))


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case datetime():
            return value.strftime("%d %b %H:%M")
        case float() | Decimal():
            return f"{value:,.1f}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)


def _lines(rows: Sequence[asyncpg.Record]) -> dict[str, list[tuple[datetime, float]]]:
    """Rows with a time: a line for each value of `metric`, or for each column of numbers."""
    found: dict[str, list[tuple[datetime, float]]] = {}
    for row in rows:
        numbers = {name: value for name, value in row.items() if name not in ("time", "metric") and value is not None}
        for name, value in numbers.items():
            found.setdefault(row.get("metric") or name, []).append((row["time"], float(value)))
    return found


def _draw_lines(axes: Axes, panel: dict[str, Any], lines: dict[str, list[tuple[datetime, float]]]) -> None:
    axes.set_prop_cycle(color=COLOURS)
    for name, points in lines.items():
        times, values = [at for at, _ in points], [value for _, value in points]
        is_told = any(values) or len(lines) < 4  # of many lines, those that are not always zero
        label = name if is_told else f"_{name}"
        axes.plot(times, values, linewidth=1.2, label=label, marker="." if len(points) < 30 else "", markersize=3)
        if len(lines) < 3:
            axes.fill_between(times, values, alpha=0.1)
    highest = max((value for points in lines.values() for _, value in points), default=0)
    axes.set_ylim(0, 1.08 * highest if highest > 0 else 1)
    if not lines:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=FAINT)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eceef0", linewidth=0.7)
    axes.tick_params(labelsize=7, colors=FAINT, length=2)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: _told(value, panel))
    locator = dates.AutoDateLocator(minticks=2, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    times = [at for points in lines.values() for at, _ in points]
    is_long = bool(times) and max(times) - min(times) > timedelta(days=2)
    axes.xaxis.set_major_formatter(dates.DateFormatter("%d %b" if is_long else "%H:%M"))
    if labels := axes.get_legend_handles_labels()[1]:
        column_inches = 0.42 + 0.06 * max(map(len, labels))
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.4 / (axes.get_position().width * axes.figure.get_figwidth()), -0.11),
            ncols=max(1, int(axes.get_position().width * axes.figure.get_figwidth() / column_inches)),
            fontsize=6.5,
            frameon=False,
            handlelength=1,
            columnspacing=1,
            borderaxespad=0.2,
        )


def _told(value: float, panel: dict[str, Any]) -> str:
    """The value in the panel's unit."""
    unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "")
    factor, word = 1.0, {"s": " s", "ms": " ms", "percent": " %"}.get(unit, "")
    if unit == "percentunit":
        factor, word = 100.0, " %"
    elif unit == "s" and value >= 120:
        factor, word = 1 / 60, " min"
    elif unit == "s" and 0 < value < 1:
        factor, word = 1000.0, " ms"
    elif unit == "bytes":
        factor, word = (2.0**-20, " MiB") if value >= 2**20 else (2.0**-10, " KiB")
    shown = value * factor
    return (f"{shown:,.0f}" if abs(shown) >= 1000 else f"{shown:.3g}") + word


if __name__ == "__main__":
    main()
