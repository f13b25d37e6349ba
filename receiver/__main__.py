"""Composition root: settings -> publisher -> service -> server. The only place that constructs."""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import prometheus_client
import structlog
import typer
import uvloop

from receiver import metrics
from receiver.budget import Arrivals, Budget
from receiver.publish.publisher import NEED, Publisher
from receiver.serve.auth import Keys
from receiver.serve.export import Export
from receiver.serve.observer import Observer
from receiver.serve.transport.server import Server, is_loopback
from receiver.serve.turns import Turns
from receiver.serve.workers import Workers, report
from receiver.settings import ReceiverSettings
from receiver.translate.engines.engine import new_engine
from receiver.translate.engines.explain import Explanation, explain_file
from receiver.translate.rules import Rules
from shared import identity, lifecycle, logs, probes
from shared.errors import Permanent, WrongSetting
from shared.output import Version, http_address, lay_out_help, write_out
from shared.settings import described, load

if TYPE_CHECKING:
    from receiver.serve.tracing import Tracing

log = structlog.get_logger("receiver")
app = typer.Typer(no_args_is_help=False, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

ARRIVING_SHARE = 4  # incomplete bodies hold at most a quarter of MAX_INFLIGHT_BYTES


@app.callback(invoke_without_command=True)
def default(context: typer.Context, *, version: Version = False) -> None:  # noqa: ARG001  its callback answers
    """Receive OTLP spans over gRPC and HTTP, and publish product events to Kafka. Without a command: run."""
    if context.invoked_subcommand is None:
        run(workers=None)


@app.command()
def run(
    *,
    workers: Annotated[
        int | None, typer.Option(help="Processes that share the ports. Overrides WORKERS.", min=1, max=128)
    ] = None,
) -> None:
    """Run the service (the default command). Settings come from the environment: see docs/settings.md.

    Example: python -m receiver run --workers 4
    """
    settings = load(ReceiverSettings, **({} if workers is None else {"workers": workers}))
    logs.configure(settings.log_level, process="receiver", log_format=settings.log_format)
    log.info("settings_loaded", **described(settings))
    if not settings.hash_key:
        log.warning("ids_unkeyed", remedy="set ID_HASH_KEY: unkeyed hashes of guessable ids can be enumerated")
    if (settings.keys or settings.api_keys_file) and settings.tls_cert_file is None and not is_loopback(settings.host):
        log.warning("keys_in_the_clear", host=settings.host, remedy="set TLS_CERT_FILE and TLS_KEY_FILE")
    if settings.workers == 1:
        uvloop.run(serve(settings))
    else:
        raise typer.Exit(uvloop.run(supervise(settings)))


@app.command(hidden=True)
def worker() -> None:
    """One of several processes; `run` starts them."""
    settings = load(ReceiverSettings)
    logs.configure(settings.log_level, process="receiver", log_format=settings.log_format)
    uvloop.run(serve(settings, is_worker=True))


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="OTLP requests, as JSON or binary; `-` reads standard input.")],
    *,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what each span of a file would become, and why. Publishes nothing; exits 1 when a span is rejected.

    Example: python -m receiver explain spans.json
    """
    settings = load(ReceiverSettings)
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        spans = explain_file(content, rules_of(settings), spans_max=settings.max_spans_per_request)
    except (OSError, Permanent) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        typer.echo(f"receiver: {file}: {reason}", err=True)
        raise typer.Exit(2) from None
    if json_:
        write_out(json.dumps({"spans": [span.as_json() for span in spans]}, default=str))
    else:
        for number, span in enumerate(spans, 1):
            write_out(_told(number, span))
    raise typer.Exit(int(any(span.outcome == "rejected" for span in spans)))


def _told(number: int, span: Explanation) -> str:
    lines = [f"span {number}: {span.outcome}" + (f", {span.reason}" if span.reason else f" {span.table}")]
    for name, value in span.columns.items():
        source = f"  from {span.sources[name]}" if name in span.sources else ""
        lines.append(f"  {name} = {value}{source}")
    for word, notes in (("dropped", span.dropped), ("redacted", span.redacted), ("cut", span.cut)):
        lines += [f"  {word}: {note['name']} ({note['rule']})" for note in notes]
    return "\n".join(lines)


@app.command()
def health(
    url: Annotated[
        str | None,
        typer.Option(callback=http_address, help="Address of /readyz. Default: this receiver's own metrics port."),
    ] = None,
) -> None:
    """Exit 0 when the running receiver is ready and its port accepts connections, else 1. For container health checks.

    Example: python -m receiver health
    """
    settings = load(ReceiverSettings)
    if url is None and settings.receiver_metrics_port == 0:
        raise WrongSetting("RECEIVER_METRICS_PORT: 0 leaves nothing to ask")
    is_ready, text = probes.ask(url or probes.ready_url(settings.metrics_host, settings.receiver_metrics_port))
    if url is None and is_ready and not probes.is_listening(settings.host, settings.port):
        is_ready, text = False, f"nothing listens on port {settings.port}"
    typer.echo(text)
    raise typer.Exit(0 if is_ready else 1)


async def serve(settings: ReceiverSettings, *, is_worker: bool = False) -> None:
    """Receive until SIGTERM. Stops within 15 s, also without a broker: 7 s for calls, the rest for the producer."""
    stop = lifecycle.stop_event()
    state = probes.Health(NEED)
    budget = Budget(settings.max_inflight_bytes)
    arrivals = Arrivals(budget, max(settings.max_request_bytes, settings.max_inflight_bytes // ARRIVING_SHARE))
    turns = Turns()
    keys = Keys(settings.keys, settings.api_keys_file)
    engine = new_engine(rules_of(settings), setting=settings.engine, spans_max=settings.max_spans_per_request)
    metrics.engine_info.labels(engine.name).set(1)
    publisher = Publisher(settings, engine=engine, budget=budget, health=state)
    tracing = _tracing(settings) if settings.tracing_endpoint else None
    export = Export(
        settings,
        keys=keys,
        arrivals=arrivals,
        budget=budget,
        turns=turns,
        engine=engine,
        publisher=publisher,
        begin=tracing.begin if tracing else Observer,
    )
    server = Server(settings, export=export, arrivals=arrivals, budget=budget, turns=turns, state=state)
    stop_probes = None if is_worker else _probes(settings, state, lambda: prometheus_client.REGISTRY)
    try:
        async with asyncio.TaskGroup() as tasks:  # a task that ends by itself ends the process
            running = [
                tasks.create_task(lifecycle.heartbeat(state.beat), name="heartbeat"),
                tasks.create_task(publisher.run(), name="publisher"),
                tasks.create_task(server.run(), name="server"),
            ]
            if is_worker:
                running.append(tasks.create_task(report(state, stop), name="report"))
            lifecycle.spare_garbage_collector()
            log.info("receiver_started", host=settings.host, port=settings.port, engine=engine.name)
            await stop.wait()
            log.info("receiver_stopping")
            await server.stop()
            for task in running:
                task.cancel()
    finally:
        if tracing is not None:
            tracing.stop()
        if stop_probes is not None:
            stop_probes()
    log.info("receiver_stopped")


async def supervise(settings: ReceiverSettings) -> int:
    """Run the workers until SIGTERM, and return the exit code."""
    stop = lifecycle.stop_event()
    state = probes.Health()
    command = [sys.executable, "-m", "receiver", "worker"]
    workers = Workers(settings, command=command, environment=os.environ, state=state)
    stop_probes = _probes(settings, state, workers.registry)
    try:
        async with lifecycle.background(lifecycle.heartbeat(state.beat), "heartbeat"):
            return await workers.run(stop)
    finally:
        stop_probes()


def rules_of(settings: ReceiverSettings) -> Rules:
    return Rules(
        hashed=identity.Hasher(settings.id_hashing, settings.hash_key),
        deployment_type=settings.deployment_type,
        infer_events=settings.infer_events,
        identity_by_trace=settings.identity_by_trace,
        endpoint_exclude=settings.endpoint_exclude,
        endpoints_per_service=settings.endpoints_per_service,
        metadata_attributes=settings.metadata_attributes,
        span_bytes_max=settings.max_span_bytes,
        span_attributes_max=settings.max_span_attributes,
    )


def _tracing(settings: ReceiverSettings) -> "Tracing":
    try:
        from receiver.serve.tracing import Tracing  # noqa: PLC0415  its libraries are an extra, and wanted by few
    except ImportError as error:
        raise WrongSetting(
            f"TRACING_ENDPOINT: {error.name} is not installed;"
            " pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-grpc"
        ) from error
    return Tracing(settings)


def _probes(
    settings: ReceiverSettings, state: probes.Health, registry: Callable[[], prometheus_client.CollectorRegistry]
) -> Callable[[], None]:
    try:
        return probes.serve(state, host=settings.metrics_host, port=settings.receiver_metrics_port, registry=registry)
    except OSError as error:
        where = f"{settings.metrics_host}:{settings.receiver_metrics_port}"
        raise WrongSetting(f"RECEIVER_METRICS_PORT: {where} cannot be listened on: {error.strerror}") from error


def main() -> None:
    """The console script."""
    try:
        app()
    except WrongSetting as error:
        typer.echo(f"receiver: {error}", err=True)
        sys.exit(2)


lay_out_help(app)

if __name__ == "__main__":
    main()
