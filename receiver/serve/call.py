"""What a transport hands to the export: who calls, what the call shows, and the body when it is asked for."""

from collections.abc import Hashable, Iterable
from typing import Literal, Protocol

from receiver.budget import Arrival

Transport = Literal["grpc", "http"]


class Call(Protocol):
    """One call, however it arrived."""

    @property
    def transport(self) -> Transport: ...

    @property
    def peer(self) -> Hashable:
        """The connection. Turns and memory are shared fairly between connections."""

    @property
    def headers(self) -> Iterable[tuple[bytes, bytes]]:
        """Names in lower case."""

    def remaining_s(self) -> float | None:
        """Seconds until the client's deadline; None when the client sent none."""

    async def read(self, arrival: Arrival) -> bytes:
        """Read the whole body and decompress it. `arrival` counts the bytes as they come.

        Raises:
            NoBody, TooLarge, UnknownEncoding, BadEncoding: see `REPLIES` in receiver/replies.py.
            SenderStalled: the body made no progress while other bodies waited.
        """

    def give_way(self, error: Exception) -> None:
        """End a `read` that waits for the sender, with this error."""
