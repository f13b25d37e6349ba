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
        """The connection: what turns and memory are shared fairly by."""

    @property
    def headers(self) -> Iterable[tuple[bytes, bytes]]:
        """Names in lower case."""

    def remaining_s(self) -> float | None:
        """Until the client gives up; None when it did not say."""

    async def read(self, arrival: Arrival) -> bytes:
        """The body, decompressed; its bytes are counted by `arrival` as they come.

        Raises:
            NoBody, TooLarge, UnknownEncoding, BadEncoding: see the table of replies.
            SenderStalled: the body is late, and others wait.
        """

    def give_way(self, error: Exception) -> None:
        """End a `read` that waits for the sender, with this error."""
