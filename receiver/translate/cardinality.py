"""endpoints of raw paths -> the same, or with `{other}` in the segment that varies. Pure; remembers endpoints.

A framework that gives no template gives `/people/anna`: each person an endpoint. Of each service a bounded number of
distinct endpoints is learned, as a tree of their segments. One more, and the segments under the widest place of the
tree count as values: there, every segment is `{other}` from then on, those that were learned before too. Endpoints of
templates are not learned. What is decided stands in the record: a replay asks nobody.
"""

from collections.abc import Iterator

OTHER = "{other}"
COLUMN_CHARS = 255
SERVICES_MAX = 128  # beyond, services are counted together
DEPTH_MAX = 16  # segments; what lies deeper counts as one
BYTES_MAX = 8 * 1024 * 1024
_NODE_BYTES = 320  # in Python, beside its segment's characters
_FREED_SHARE = 4  # a quarter of the places is free afterwards, so that the next endpoint is not the next occasion


class _Node:
    """The segments behind a prefix."""

    __slots__ = ("children", "is_end", "varies")

    def __init__(self, *, is_end: bool = False, varies: bool = False) -> None:
        self.children: dict[str, _Node] = {}
        self.is_end = is_end
        self.varies = varies

    def walk(self) -> Iterator["_Node"]:
        yield self
        for child in self.children.values():
            yield from child.walk()

    def take_in(self, other: "_Node") -> None:
        """Be both."""
        self.is_end |= other.is_end
        if other.varies and not self.varies:
            self._vary()
        for segment, child in other.children.items():
            self.child(segment).take_in(child)

    def child(self, segment: str) -> "_Node":
        segment = OTHER if self.varies else segment
        found = self.children.get(segment)
        if found is None:
            found = self.children[segment] = _Node()
        return found

    def narrow(self, children_max: int) -> None:
        """From here on down, vary where there are more children."""
        if len(self.children) > children_max:
            self._vary()
        for child in self.children.values():
            child.narrow(children_max)

    def _vary(self) -> None:
        self.varies = True
        children, self.children = self.children, {}
        for child in children.values():
            self.child(OTHER).take_in(child)


class _Tree:
    """The endpoints of one service."""

    def __init__(self) -> None:
        self.root = _Node()
        self.endpoints = 0
        self.bytes = 0

    def learn(self, segments: list[str]) -> list[str]:
        """The segments as they are stored."""
        node, stored = self.root, []
        for segment in segments:
            name = OTHER if node.varies else segment
            if name not in node.children:
                self.bytes += _NODE_BYTES + 4 * len(name)
            node = node.child(name)
            stored.append(name)
        if not node.is_end:
            node.is_end = True
            self.endpoints += 1
        return stored

    def narrow(self, endpoints_max: int) -> None:
        """Let the widest places vary, until so many endpoints are left, or nothing has two children."""
        while self.endpoints > endpoints_max:
            widest = max(len(node.children) for node in self.root.walk())
            if widest < 2:
                return
            self.root.narrow(max(1, widest - 1))
            self.endpoints = sum(node.is_end for node in self.root.walk())
            names = (name for node in self.root.walk() for name in node.children)
            self.bytes = sum(_NODE_BYTES + 4 * len(name) for name in names)


class Guard:
    """Bounds the distinct endpoints of each service. One a process. 0 endpoints: no bound, nothing is learned."""

    def __init__(self, endpoints_max: int) -> None:
        self._endpoints_max = endpoints_max
        self._trees: dict[str, _Tree] = {}
        self.held_bytes = 0
        self.narrowings = 0  # what was said of an endpoint before the last one may be said no more

    @property
    def is_on(self) -> bool:
        return self._endpoints_max > 0

    def stored(self, service: str, endpoint: str) -> str:
        """The endpoint as it is stored: the same, as long as the service has few. Asking again changes nothing."""
        tree = self._tree_of(service)
        segments = endpoint.split("/", DEPTH_MAX)
        before_bytes = tree.bytes
        stored = tree.learn(segments)
        if tree.endpoints > self._endpoints_max or self.held_bytes + tree.bytes - before_bytes > BYTES_MAX:
            tree.narrow(tree.endpoints - 1 - (tree.endpoints - 1) // _FREED_SHARE)
            self.narrowings += 1
            stored = tree.learn(segments)
        self.held_bytes += tree.bytes - before_bytes
        return endpoint if stored == segments else "/".join(stored)[:COLUMN_CHARS]

    def _tree_of(self, service: str) -> _Tree:
        if service not in self._trees and len(self._trees) >= SERVICES_MAX:
            service = ""
        return self._trees.setdefault(service, _Tree())


def is_pattern(sent: str, stored: str) -> bool:
    """Whether each path that differs from `sent` only where `stored` has `{other}` is stored alike, until the next
    narrowing: those segments stand at places that vary, and the others are known.
    """
    return stored != sent and OTHER not in sent and sent.count("/") < DEPTH_MAX and len(stored) < COLUMN_CHARS
