"""The fast paths of HTTP/2 say and keep what h2 does without them."""

from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest

from receiver.serve.transport.connections.frames import HEAD_BYTES, Unread, frame
from receiver.serve.transport.connections.protocol import DATA, END_STREAM, HEADERS, PADDED, Protocol, WholeReply

REQUEST = [(":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "x")]
REPLY = WholeReply.of(
    [(b":status", b"200"), (b"content-type", b"application/grpc")], b"\0\0\0\0\0", [(b"grpc-status", b"0")]
)


class Pair:
    """A client of h2, and our side of its connection."""

    def __init__(self) -> None:
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.server = Protocol(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.server.initiate_connection()
        self.client.initiate_connection()
        self.server.receive_data(self.client.data_to_send()[: len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")])
        self.told: list[Any] = []

    def ask(self, stream: int, body: bytes = b"body", *, ends: bool = True) -> list[Any]:
        self.client.send_headers(stream, REQUEST)
        self.client.send_data(stream, body, end_stream=ends)
        return self.take(self.client.data_to_send())

    def take(self, raw: bytes) -> list[Any]:
        """What our side makes of these bytes, frame by frame."""
        unread, events = Unread(), []
        unread.add(raw)
        while (head := unread.head()) is not None:
            events += self.server.take_frame(head, unread)
        return events

    def heard(self) -> list[tuple[str, Any]]:
        """What the client gets: kinds of events, with headers or bytes."""
        events = self.client.receive_data(self.server.data_to_send())
        return [
            (type(event).__name__, getattr(event, "headers", getattr(event, "data", None)))
            for event in events
            if not isinstance(event, (h2.events.RemoteSettingsChanged, h2.events.SettingsAcknowledged))
        ]


def sent_by_h2(pair: Pair, stream: int) -> None:
    pair.server.send_headers(stream, REPLY.headers)
    pair.server.send_data(stream, REPLY.message)
    pair.server.send_headers(stream, REPLY.trailers, end_stream=True)


def test_a_whole_reply_reads_as_the_one_of_h2_and_leaves_the_same_state() -> None:
    """Also between replies of h2's own, whose header tables it must not disturb."""
    fast, own = Pair(), Pair()
    for stream in (1, 3, 5, 7):
        fast.ask(stream)
        own.ask(stream)
        if stream == 5:
            sent_by_h2(fast, stream)
        else:
            assert fast.server.send_whole(stream, REPLY)
        sent_by_h2(own, stream)
        heard = fast.heard()
        assert heard == own.heard()
        assert [kind for kind, _ in heard] == ["ResponseReceived", "DataReceived", "TrailersReceived", "StreamEnded"]
    assert fast.server.open_inbound_streams == own.server.open_inbound_streams == 0
    assert fast.server.outbound_flow_control_window == own.server.outbound_flow_control_window


def test_a_smaller_header_table_is_acknowledged_before_a_whole_reply() -> None:
    """A header block must begin with the new size, or the caller ends the connection (RFC 7541, section 4.2)."""
    pair = Pair()
    pair.ask(1)
    pair.client.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    pair.take(pair.client.data_to_send())
    assert not pair.server.send_whole(1, REPLY)
    sent_by_h2(pair, 1)
    pair.ask(3)
    assert pair.server.send_whole(3, REPLY)
    assert [kind for kind, _ in pair.heard()].count("StreamEnded") == 2


def test_a_closed_window_leaves_a_whole_reply_to_the_slow_path() -> None:
    """A caller that gives no window gets no byte of a body."""
    pair = Pair()
    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
    pair.ask(1)
    pair.server.data_to_send()
    assert not pair.server.send_whole(1, REPLY)
    assert pair.server.data_to_send() == b""


def test_a_whole_reply_before_the_end_of_the_body_leaves_the_stream_half_closed() -> None:
    """The rest of the body is then told to stop."""
    pair = Pair()
    pair.ask(1, ends=False)
    assert pair.server.send_whole(1, REPLY)
    pair.server.reset_stream(1)
    assert [kind for kind, _ in pair.heard()][-2:] == ["StreamEnded", "StreamReset"]


def test_a_reply_to_a_stream_that_was_reset_is_a_protocol_error() -> None:
    """The connection takes that as: nobody listens any more."""
    pair = Pair()
    pair.ask(1)
    pair.client.reset_stream(1)
    pair.take(pair.client.data_to_send())
    with pytest.raises(h2.exceptions.ProtocolError):
        pair.server.send_whole(1, REPLY)


@pytest.mark.parametrize("ends", [True, False])
def test_plain_data_gives_the_events_and_windows_of_h2(*, ends: bool) -> None:
    """Windows that drift apart would stall a connection after some gigabytes."""
    fast, own = Pair(), Pair()
    for pair in (fast, own):
        pair.client.send_headers(1, REQUEST)
        pair.take(pair.client.data_to_send())
    raw = frame(DATA, b"x" * 5_000, flags=END_STREAM if ends else 0, stream=1)
    events, by_h2 = fast.take(raw), own.server.receive_data(raw)
    kinds, kinds_by_h2 = ([type(event).__name__ for event in found] for found in (events, by_h2))
    assert kinds == kinds_by_h2
    assert events[0].data == by_h2[0].data == b"x" * 5_000
    assert events[0].flow_controlled_length == by_h2[0].flow_controlled_length == 5_000
    for pair in (fast, own):
        assert pair.server.inbound_flow_control_window == 65_535 - 5_000


@pytest.mark.parametrize(
    "raw",
    [
        frame(DATA, b"x", stream=0),
        frame(DATA, b"x", stream=99),
        frame(DATA, b"\x05x", flags=PADDED, stream=1),
        frame(HEADERS, b"", stream=5) + frame(DATA, b"x", stream=1),
        frame(DATA, b"x", flags=END_STREAM, stream=1) + frame(DATA, b"x", stream=1),
        frame(DATA, b"x" * 60_000, stream=1) + frame(DATA, b"x" * 60_000, stream=1),
    ],
    ids=["no stream", "a stream never opened", "more padding than frame", "within headers", "behind its end", "window"],
)
def test_data_that_breaks_the_protocol_is_refused_as_by_h2(raw: bytes) -> None:
    """The fast path must let through nothing that h2 would not."""
    verdicts = []
    for is_fast in (True, False):
        pair = Pair()
        pair.client.send_headers(1, REQUEST)
        pair.take(pair.client.data_to_send())
        pair.server.max_inbound_frame_size = 64 * 1024
        pair.server.data_to_send()
        try:
            events = pair.take(raw) if is_fast else pair.server.receive_data(raw)
            verdict = [type(event).__name__ for event in events]
        except h2.exceptions.ProtocolError as error:
            verdict = [type(error).__name__]
        verdicts.append((verdict, pair.server.data_to_send()))
    assert verdicts[0] == verdicts[1]
    assert verdicts[0][1]  # GOAWAY, or RST_STREAM: never silence


def test_a_frame_takes_its_bytes_and_no_more() -> None:
    """The rest stays for the next."""
    pair = Pair()
    pair.client.send_headers(1, REQUEST)
    pair.take(pair.client.data_to_send())
    unread = Unread()
    unread.add(frame(DATA, b"one", stream=1) + frame(DATA, b"two", stream=1)[: HEAD_BYTES + 1])
    head = unread.head()
    assert head is not None
    assert pair.server.take_frame(head, unread)[0].data == b"one"
    assert len(unread) == HEAD_BYTES + 1
