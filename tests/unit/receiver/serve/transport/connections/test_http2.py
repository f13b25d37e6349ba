"""What a caller may send before anybody reads it: bounded by its connection, whatever the window of a stream."""

import asyncio
import struct

from receiver.serve.transport.connections.http2 import WINDOW_BYTES, Http2Connection
from receiver.serve.transport.connections.listener import Listener
from receiver.serve.transport.connections.stream import Stream
from support.http2 import DATA, GOAWAY, SETTINGS, Heard, frame, hello, open_call

FLOW_CONTROL_ERROR = 3
INITIAL_WINDOW_SIZE = 4


class Wire(asyncio.Transport):
    """A socket's end that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = Heard()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.heard.raw += data

    def close(self) -> None:
        self.heard.is_closed = True

    def is_closing(self) -> bool:
        return self.heard.is_closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def unread(_: Stream) -> None:
    """A call whose body nobody asks for."""
    await asyncio.Event().wait()


async def test_calls_that_nobody_reads_hold_a_window_of_the_connection_and_no_more() -> None:
    """Each of its streams may send a mebibyte; a thousand connections must not hold a gigabyte for that."""
    wire = Wire()
    listener = Listener("grpc", connections_max=1, connect=lambda made: Http2Connection(made, serve=unread))
    connection = Http2Connection(listener, serve=unread)
    connection.connection_made(wire)
    connection.data_received(hello())
    sent, stream = 0, 1
    while not wire.heard.is_closed and sent < 4 * WINDOW_BYTES:
        connection.data_received(open_call(stream) + frame(DATA, bytes(8_192), stream=stream))
        sent, stream = sent + 8_192, stream + 2
        await asyncio.sleep(0.005)
        assert connection.unread_bytes <= WINDOW_BYTES
    connection.connection_lost(None)
    assert sent == WINDOW_BYTES  # the last of it is a byte too much: h2 begins with 65,535
    kinds = {kind: payload for kind, _, _, payload in wire.heard.frames() if kind in (GOAWAY, SETTINGS) and payload}
    assert struct.unpack(">II", kinds[GOAWAY][:8])[1] == FLOW_CONTROL_ERROR
    told = dict(struct.iter_unpack(">HI", kinds[SETTINGS]))
    assert told[INITIAL_WINDOW_SIZE] > WINDOW_BYTES
