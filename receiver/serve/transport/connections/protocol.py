"""HTTP/2 frames -> events, and replies -> frames, by the library h2, with a fast path for the commonest of both.

On every path h2 keeps the state of connection, streams and windows. The fast paths only spare it what it would parse
or encode anew each time: DATA without padding, and a reply whose header blocks are always the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import h2.connection
import h2.exceptions
import h2.stream
import hpack
import hyperframe.frame

from receiver.serve.transport.connections.frames import HEAD_BYTES, Head, Unread, frame

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, CONTINUATION = 0, 1, 3, 4, 7, 9
END_STREAM, END_HEADERS, PADDED = 1, 4, 8

# h2 4.4 formats every frame, with its bytes in hex, for a log that nobody reads: a twentieth of the receiver's CPU.
h2.connection.repr = type  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class WholeReply:
    """Headers, a message and trailers that are the same for every call."""

    headers: Sequence[tuple[bytes, bytes]]
    message: bytes
    trailers: Sequence[tuple[bytes, bytes]]
    head_block: bytes
    tail_block: bytes

    @classmethod
    def of(
        cls,
        headers: Sequence[tuple[bytes, bytes]],
        message: bytes,
        trailers: Sequence[tuple[bytes, bytes]],
    ) -> Self:
        return cls(headers, message, trailers, _block(headers), _block(trailers))

    def frames(self, stream: int) -> bytes:
        return b"".join(
            (
                frame(HEADERS, self.head_block, flags=END_HEADERS, stream=stream),
                frame(DATA, self.message, stream=stream),
                frame(HEADERS, self.tail_block, flags=END_HEADERS | END_STREAM, stream=stream),
            )
        )


def _block(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """HPACK that reads and changes no dynamic table, so that it is right at any moment of any connection."""
    block: bytes = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*header) for header in headers])
    return block


class Protocol(h2.connection.H2Connection):
    """h2's connection, which takes and gives whole frames."""

    MAX_CLOSED_STREAMS = 1_000  # remembered, so that frames that come late are no offence; h2's own is 65,536

    def take_frame(self, head: Head, unread: Unread) -> list[Any]:
        """The events of the next frame, of which `unread` holds all.

        Raises:
            h2.exceptions.ProtocolError: the connection has to end; GOAWAY is ready to be sent.
        """
        is_plain = head.kind == DATA and head.stream and not head.flags & PADDED
        if not is_plain or self.incoming_buffer._headers_buffer:  # noqa: SLF001  DATA within headers is an error
            return self.receive_data(unread.take(HEAD_BYTES + head.size))
        data = hyperframe.frame.DataFrame(head.stream, unread.take(head.size, behind=HEAD_BYTES))
        data.body_len = head.size
        if head.flags & END_STREAM:
            data.flags.add("END_STREAM")
        try:
            return self._receive_frame(data)
        except h2.exceptions.ProtocolError as error:  # as in receive_data
            self._terminate_connection(error.error_code)
            raise

    def send_whole(self, number: int, reply: WholeReply) -> bool:
        """Send all of a reply and end its stream. False, and nothing is sent, where that needs h2's own path.

        Raises:
            h2.exceptions.ProtocolError: the stream is gone.
        """
        stream = self._get_stream_by_id(number)
        size = len(reply.message)
        # A caller that made its table smaller has to be told so at the start of the next block.
        if size > self.local_flow_control_window(number) or self.encoder.table_size_changes:
            return False
        self.state_machine.process_input(h2.connection.ConnectionInputs.SEND_HEADERS)
        stream.state_machine.process_input(h2.stream.StreamInputs.SEND_HEADERS)
        stream.state_machine.process_input(h2.stream.StreamInputs.SEND_END_STREAM)
        self.outbound_flow_control_window -= size
        stream.outbound_flow_control_window -= size
        self._data_to_send += reply.frames(number)
        return True
