"""A TCP proxy before an S3 server that counts requests by method and by what they are about, and bytes.

It sees the bytes of every client alike, whichever library sends them, and changes none of them: signatures
stay valid, because clients sign the proxy's own address and the server checks what it is told.
"""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

# First that fits. What a key is about follows from the store's layout (docs/architecture.md).
_KINDS = (
    ("journal", r"private/datasets/.+/journal/|heads/"),
    ("shards", r"private/datasets/.+/shards/"),
    ("crops", r"private/crops/"),
    ("edits", r"private/edits/"),
    ("sheets", r"private/edit_runs/.+\.png$"),
    ("edit_runs", r"private/edit_runs/"),
    ("plans", r"private/plans/"),
    ("reports", r"private/reports/"),
    ("lineage", r"lineage/"),
    ("signs", r"open/|leases/|tmp/"),
    ("recipes", r"recipes/"),
    ("models", r"models/"),
    ("decisions", r"decisions/"),
    ("releases", r"releases/|released/"),
    ("private", r"private/"),
)
_BLOCK = 1 << 16


def kind_of(key: str) -> str:
    """What an object of a store is about, by its key relative to the store."""
    return next((kind for kind, pattern in _KINDS if re.match(pattern, key)), "other")


@dataclass
class Counts:
    """What went through since the last `take`.

    Attributes:
        requests: (kind, method) -> how many; LIST is a method of its own.
        up_bytes: Bodies and heads that clients sent.
        down_bytes: What the server answered.
    """

    requests: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    up_bytes: int = 0
    down_bytes: int = 0


class CountingProxy:
    """Listens on a free port of this machine while it is entered.

    Args:
        endpoint: Address of the server, `http://host:port`.
        store: `bucket/prefix` of the store; every other bucket is a source.
    """

    def __init__(self, endpoint: str, store: str) -> None:
        parts = urlsplit(endpoint)
        self._server = (str(parts.hostname), int(parts.port or 80))
        self.store = store.strip("/") + "/"
        self._lock = threading.Lock()
        self._counts = Counts()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> CountingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def take(self) -> Counts:
        """What was counted since the last call."""
        with self._lock:
            taken, self._counts = self._counts, Counts()
        return taken

    # -- inside

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(server, client), daemon=True).start()

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(_BLOCK):
                with self._lock:
                    self._counts.down_bytes += len(data)
                client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_WR)

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError, ValueError):
            reader = client.makefile("rb")
            while head := _head(reader):
                self._count(head.split(b"\r\n", 1)[0])
                self._send(server, head)
                lengths = re.findall(rb"(?im)^content-length:\s*(\d+)", head)
                if lengths:
                    self._copy(reader, server, int(lengths[0]))
                elif re.search(rb"(?im)^transfer-encoding:.*chunked", head):
                    self._chunks(reader, server)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _send(self, server: socket.socket, data: bytes) -> None:
        with self._lock:
            self._counts.up_bytes += len(data)
        server.sendall(data)

    def _copy(self, reader: object, server: socket.socket, left: int) -> None:
        while left:
            data = reader.read(min(left, _BLOCK))  # type: ignore[attr-defined]
            if not data:
                raise OSError("cut off")
            self._send(server, data)
            left -= len(data)

    def _chunks(self, reader: object, server: socket.socket) -> None:
        while True:
            line: bytes = reader.readline()  # type: ignore[attr-defined]
            self._send(server, line)
            size = int(line.split(b";")[0], 16)
            self._copy(reader, server, size + 2)
            if not size:
                return

    def _count(self, line: bytes) -> None:
        method, target, _ = line.decode("latin-1").split(" ", 2)
        address = urlsplit(target)
        path = unquote(address.path).lstrip("/")
        bucket, _, key = path.partition("/")
        if method == "GET" and (not key or "list-type=" in address.query):
            method = "LIST"
            prefix = re.search(r"(?:^|&)prefix=([^&]*)", address.query)
            path = f"{bucket}/{unquote(prefix[1])}" if prefix else f"{bucket}/"
        inside = path.startswith(self.store)
        kind = kind_of(path.removeprefix(self.store)) if inside else "source"
        with self._lock:
            self._counts.requests[kind, method] += 1


def _head(reader: object) -> bytes:
    lines: list[bytes] = []
    while line := reader.readline():  # type: ignore[attr-defined]
        lines.append(line)
        if line in (b"\r\n", b"\n"):
            return b"".join(lines)
    return b""
