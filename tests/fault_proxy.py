"""A proxy before an S3 server that breaks a share of the requests: the same ones for the same seed.

It passes bytes through unchanged, so that signatures stay valid (they cover the Host header, and the server
believes the one that the client sent). What befalls a request is decided by seed, method, path and how often
this path was asked for, never by the clock: names made by chance (runs, shards) count as one name.

    with fault_proxy(server, seed=1) as proxy:
        proxy.fail("PUT", "/journal/", nth=3, kind="lost")
        ...  # a client under `proxy.environment()`
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Literal, get_args
from urllib.parse import urlsplit

from tests.s3_server import Identity, S3Server

Kind = Literal["reset", "lost", "slowdown", "error", "truncated", "delay"]
"""What may befall a request.

reset: the connection is reset before the server has heard of the request. lost: the server has answered, and
the answer is lost with the connection; of a write: it happened. slowdown: 503. error: 500. truncated: half of
what the answer promises, then the end of the connection. delay: it takes longer.
"""
KINDS: tuple[Kind, ...] = get_args(Kind)
WRITES = ("PUT", "POST", "DELETE")
_CHANCE_NAME = re.compile(r"(?<![0-9a-z])(?!\d{10}(?![0-9a-f]))[0-9a-f]{8,}(?![0-9a-z])")
_BLOCK_BYTES = 65536
_TEXTS = {
    "SlowDown": (503, "Service Unavailable", "Please reduce your request rate."),
    "InternalError": (500, "Internal Server Error", "We encountered an internal error. Please try again."),
    "ServiceUnavailable": (503, "Service Unavailable", "Service is unable to handle request."),
    "QuotaExceeded": (403, "Forbidden", "The quota of this bucket is exceeded."),
    "InsufficientStorage": (507, "Insufficient Storage", "The server has no space left."),
}


@dataclass(frozen=True)
class Fault:
    """One request that something befell.

    Attributes:
        method: Of the request.
        name: Its path and query, with names made by chance as `*`.
        nth: How often this method and name had been asked for, with this one.
        kind: What happened.
    """

    method: str
    name: str
    nth: int
    kind: str


@dataclass
class _Rule:
    method: str
    contains: str
    nth: int
    kind: Kind
    seen: int = 0


@dataclass(frozen=True)
class _Head:
    """First line and headers of a message, with the very bytes."""

    raw: bytes
    first: list[str]
    headers: dict[str, str]

    @property
    def length(self) -> int | None:
        """Promised bytes of the body; None where it is chunked, or nothing is promised."""
        return (
            None
            if self.chunked or "content-length" not in self.headers
            else int(self.headers["content-length"])
        )

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def last(self) -> bool:
        """Whether the connection ends with this message."""
        return "close" in self.headers.get("connection", "").lower()


class FaultProxy:
    """Listens on a port of its own; one thread a connection.

    Args:
        server: Where requests go.
        seed: Which requests are struck, and by what.
        share: How many of all requests, in [0, 1].
        kinds: What may befall them.
        delay_seconds: The shortest and the longest delay.
    """

    def __init__(
        self,
        server: S3Server,
        *,
        seed: int = 0,
        share: float = 0.05,
        kinds: Sequence[Kind] = KINDS,
        delay_seconds: tuple[float, float] = (0.2, 2.0),
    ) -> None:
        self.seed, self.share, self.kinds = seed, share, tuple(kinds)
        self.delay_seconds = delay_seconds
        self.enabled = True  # chance; chosen requests and refusals have their own ways to end
        self.counts: Counter[tuple[str, str]] = (
            Counter()
        )  # (method, what happened: a kind, "passed" or a code)
        self.faults: list[Fault] = []
        self._server = server
        where = urlsplit(server.endpoint)
        self._upstream = (str(where.hostname), int(where.port or 80))
        self._asked: Counter[tuple[str, str]] = Counter()
        self._rules: list[_Rule] = []
        self._refuse_writes = self._refuse_all = ""
        self._room = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"  # for `AWS_ENDPOINT_URL`
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()

    # -- for tests

    def environment(self, identity: Identity | None = None) -> dict[str, str]:
        """What a client needs to reach the server through the proxy."""
        return {**self._server.environment(identity), "AWS_ENDPOINT_URL": self.endpoint}

    def fail(self, method: str, contains: str, *, nth: int = 1, kind: Kind = "error") -> None:
        """Strikes the nth request from now on whose method is this and whose path contains this."""
        with self._lock:
            self._rules.append(_Rule(method, contains, nth, kind))

    def refuse_writes(self, code: str = "QuotaExceeded", *, after: int = 0) -> None:
        """Refuses all that would add something, with this S3 error; removals pass. "": not any more.

        Args:
            code: Of the error.
            after: So many writes still find room.
        """
        with self._lock:
            self._refuse_writes, self._room = code, after

    def refuse_all(self, code: str = "ServiceUnavailable") -> None:
        """Answers every request with this S3 error. "": not any more."""
        self._refuse_all = code

    @property
    def struck(self) -> int:
        """How many requests something befell."""
        return sum(count for (_, what), count in self.counts.items() if what != "passed")

    def clear(self) -> None:
        """Starts again to count: the same requests are struck as in the beginning."""
        with self._lock:
            self.counts.clear()
            self.faults.clear()
            self._asked.clear()

    def close(self) -> None:
        """Ends all connections."""
        self._stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            left = list(self._open)
        for one in left:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it

    # -- what befalls a request

    def _verdict(self, method: str, target: str) -> tuple[str, float]:
        """What happens, and for how many seconds."""
        name = _CHANCE_NAME.sub("*", target)
        with self._lock:
            self._asked[method, name] += 1
            nth = self._asked[method, name]
            what, part = self._chosen(method, target) or self._by_chance(method, name, nth)
            if what != "passed":
                self.faults.append(Fault(method, name, nth, what))
            self.counts[method, what] += 1
        low, high = self.delay_seconds
        return what, low + part * (high - low)

    def _chosen(self, method: str, target: str) -> tuple[str, float] | None:
        if self._refuse_all:
            return self._refuse_all, 0.0
        if self._refuse_writes and method in ("PUT", "POST"):
            self._room -= 1
            if self._room < 0:
                return self._refuse_writes, 0.0
        for rule in self._rules:
            if rule.method == method and rule.contains in target:
                rule.seen += 1
                if rule.seen == rule.nth:
                    self._rules.remove(rule)
                    return rule.kind, 0.0
        return None

    def _by_chance(self, method: str, name: str, nth: int) -> tuple[str, float]:
        said = hashlib.sha256(f"{self.seed}\n{method}\n{name}\n{nth}".encode()).digest()
        strike, which, part = (int.from_bytes(said[i : i + 8], "big") / 2**64 for i in (0, 8, 16))
        possible = [kind for kind in self.kinds if kind != "truncated" or method == "GET"]
        if not (self.enabled and possible and strike < self.share):
            return "passed", 0.0
        return possible[int(which * len(possible))], part

    # -- connections

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server: socket.socket | None = None
        with self._lock:
            self._open.add(client)
        try:
            with client.makefile("rb") as asked:
                while (head := _read_head(asked)) is not None:
                    if head.headers.get("expect", "").lower() == "100-continue":
                        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    body = b"".join(_body(asked, head))
                    method, target = head.first[0], head.first[1]
                    what, seconds = self._verdict(method, target)
                    if what == "reset":
                        return _reset(client)
                    if what in ("slowdown", "error") or what in _TEXTS:
                        code = {"slowdown": "SlowDown", "error": "InternalError"}.get(what, what)
                        client.sendall(_refusal(code, method, target))
                        continue
                    if what == "delay":
                        self._stopped.wait(seconds)
                    if server is None:
                        server = socket.create_connection(self._upstream, timeout=120)
                        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        answered = server.makefile("rb")
                    server.sendall(head.raw + body)
                    if not _answer(client, answered, method, what) or head.last:
                        return None
        except OSError:
            _reset(client)  # one side is gone: the other one must not wait
        finally:
            with self._lock:
                self._open.discard(client)
            if server is not None:
                answered.close()
                server.close()
            client.close()
        return None


def _answer(client: socket.socket, answered: BinaryIO, method: str, what: str) -> bool:
    """Passes one answer on, or what is left of it; False: the connection is at its end."""
    head = _read_head(answered)
    while head is not None and head.first[1].startswith("1"):
        head = _read_head(answered)  # 100 Continue: the client has had one from us
    if head is None:
        raise ConnectionError("the server hung up")
    empty = method == "HEAD" or head.first[1] in ("204", "304")
    parts = iter(()) if empty else _body(answered, head, until_end=True)
    if what == "lost":
        for _ in parts:
            pass
        _reset(client)
        return False
    if what == "truncated" and not empty:
        data = b"".join(parts)
        client.sendall(head.raw + data[: len(data) // 2])
        if not data:
            _reset(client)
        return False
    client.sendall(head.raw)
    for part in parts:
        client.sendall(part)
    return not (head.last or (not empty and head.length is None and not head.chunked))


def _read_head(stream: BinaryIO) -> _Head | None:
    """None: the other side has nothing more to say."""
    lines: list[bytes] = []
    while (line := stream.readline(_BLOCK_BYTES)) not in (b"\r\n", b"\n"):
        if not line.endswith(b"\n"):
            return None
        lines.append(line)
        if len(lines) > 200:
            return None
    if not lines:
        return _read_head(stream)  # an empty line between two messages
    first = lines[0].decode("latin-1").split(" ", 2)
    named = (text.decode("latin-1").partition(":") for text in lines[1:])
    return _Head(
        b"".join([*lines, line]), first, {name.strip().lower(): value.strip() for name, _, value in named}
    )


def _body(stream: BinaryIO, head: _Head, *, until_end: bool = False) -> Generator[bytes]:
    """The very bytes that follow a head."""
    if head.chunked:
        while True:
            line = stream.readline(_BLOCK_BYTES)
            yield line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            yield from _exactly(stream, size + 2)
        while (line := stream.readline(_BLOCK_BYTES)) not in (b"\r\n", b"\n"):
            if not line:
                raise ConnectionError("the trailer ends too early")
            yield line
        yield line
    elif head.length is not None:
        yield from _exactly(stream, head.length)
    elif until_end:
        while part := stream.read(_BLOCK_BYTES):
            yield part


def _exactly(stream: BinaryIO, size: int) -> Generator[bytes]:
    while size > 0:
        part = stream.read(min(size, _BLOCK_BYTES))
        if not part:
            raise ConnectionError("a body ends too early")
        size -= len(part)
        yield part


def _refusal(code: str, method: str, target: str) -> bytes:
    status, phrase, text = _TEXTS[code]
    resource = target.partition("?")[0].replace("&", "&amp;").replace("<", "&lt;")
    document = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{text}</Message>'
        f"<Resource>{resource}</Resource><RequestId>0</RequestId></Error>"
    ).encode()
    body = b"" if method == "HEAD" else document
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _reset(one: socket.socket) -> None:
    """RST instead of FIN: the other side sees `Connection reset by peer`."""
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # `close` alone would leave the connection open as long as a file made of the socket is
    descriptor = one.detach()
    if descriptor >= 0:
        socket.close(descriptor)


@contextmanager
def fault_proxy(
    server: S3Server,
    *,
    seed: int = 0,
    share: float = 0.05,
    kinds: Sequence[Kind] = KINDS,
    delay_seconds: tuple[float, float] = (0.2, 2.0),
) -> Generator[FaultProxy]:
    """A proxy while the block runs."""
    proxy = FaultProxy(server, seed=seed, share=share, kinds=kinds, delay_seconds=delay_seconds)
    try:
        yield proxy
    finally:
        proxy.close()
