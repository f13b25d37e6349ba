"""endpoints of raw paths -> the same, or with `{other}` in the segment that varies. Pure; remembers endpoints.

Without templates of a framework, `/people/anna` and `/people/bob` are two endpoints. For each service a bounded number
of distinct endpoints is learned, as a tree of their segments. When one more arrives, the tree is narrowed: the children
of its widest node count as values, and from then on each of them is stored as `{other}`, known ones too. Endpoints from
templates are not learned. The record holds the result, so a replay does not decide again.
"""

from collections.abc import Iterator

OTHER = "{other}"
COLUMN_CHARS = 255
SERVICES_MAX = 128  # beyond, services are counted together
DEPTH_MAX = 16  # segments; what lies deeper counts as one
BYTES_MAX = 8 * 1024 * 1024
_NODE_BYTES = 320  # in Python, beside its segment's characters
_FREED_SHARE = 4  # narrowing frees a quarter of the bound, so that the next endpoint does not narrow again


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
        """Merge the other node into this one."""
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
        """Replace the children by `{other}` in this node, and in each node below, that has more than `children_max`."""
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
        """Learn an endpoint's segments, and return the segments to store."""
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
        """Narrow the widest nodes until at most `endpoints_max` endpoints are left, or no node has two children."""
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
        self.narrowings = 0  # an answer from before the last narrowing may be out of date

    @property
    def is_on(self) -> bool:
        return self._endpoints_max > 0

    def stored(self, service: str, endpoint: str) -> str:
        """The endpoint to store: unchanged while the service has few. Idempotent."""
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
    """Whether `stored` also holds for every path that differs from `sent` only where `stored` has `{other}`.

    This ends with the next narrowing: until then these segments are children of narrowed nodes, and the others are
    known.
    """
    return stored != sent and OTHER not in sent and sent.count("/") < DEPTH_MAX and len(stored) < COLUMN_CHARS
