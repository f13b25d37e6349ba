"""A TCP proxy in front of Postgres or Kafka that cuts, stalls, and swallows the answer to a COMMIT."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

CHUNK_BYTES = 65_536
COMMIT = b"COMMIT"


class Proxy:
    """Passes bytes to and fro, until told otherwise."""

    def __init__(self, url: str) -> None:
        """`url` is the server's own; of its parts host and port count, and the login for `url`."""
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 5432)
        self._parts = parts
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._is_swallowing = False
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.swallowed = 0

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The database's address through the proxy."""
        login = self._parts.netloc.rpartition("@")[0]
        return urlunsplit(self._parts._replace(netloc=f"{login}@127.0.0.1:{self.port}"))

    @property
    def connections(self) -> int:
        return len(self._writers) // 2

    @property
    def is_flowing(self) -> bool:
        return self._flowing.is_set()

    def lead_to(self, url: str) -> None:
        """From now on to another server; connections to the old one are closed."""
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 5432)
        self.cut()

    def cut(self) -> None:
        """Close every connection at once."""
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Pass nothing on, and keep all connections open."""
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def swallow_next_commit(self) -> None:
        """The next COMMIT happens, but nobody hears of it: its connection is cut instead of answered."""
        self._is_swallowing = True

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator["Proxy"]:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        try:
            yield self
        finally:
            self._server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, server = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, server}
        is_committing = asyncio.Event()
        try:
            await asyncio.gather(
                self._pump(reader, server, is_committing, is_request=True),
                self._pump(upstream, writer, is_committing, is_request=False),
            )
        finally:
            for end in (writer, server):
                self._writers.discard(end)
                end.transport.abort()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        is_committing: asyncio.Event,
        *,
        is_request: bool,
    ) -> None:
        with suppress(OSError):
            while chunk := await source.read(CHUNK_BYTES):
                await self._flowing.wait()
                if is_request and self._is_swallowing and COMMIT in chunk:
                    self._is_swallowing = False
                    is_committing.set()
                elif not is_request and is_committing.is_set():  # the server has answered: it has committed
                    self.swallowed += 1
                    break
                sink.write(chunk)
                await sink.drain()
        sink.transport.abort()
