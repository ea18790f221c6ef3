"""An endpoint that answers as S3 does, with scripted faults: what no real server can be made to say.

It checks no signature and keeps objects in memory. Everything that a real server can show is tested there.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LISTING = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


@dataclass(frozen=True)
class Fault:
    """What becomes of one request.

    Attributes:
        status: Answered; 0: the connection is closed without an answer.
        code: Of S3.
        done: The request is carried out all the same: its acknowledgement is lost.
        cut: Only half of the body is sent.
    """

    status: int = 0
    code: str = ""
    done: bool = False
    cut: bool = False


@dataclass
class Answers:
    """The endpoint's memory and script.

    Attributes:
        faults: For the next requests that are no listing, in order; the last stays if `for_ever`.
        listing: What every listing is answered with; None: an empty bucket.
        for_ever: Whether the last fault goes on.
        requests: Methods of all requests that were no listing.
    """

    endpoint: str = ""
    faults: list[Fault] = field(default_factory=list)
    listing: Fault | None = None
    for_ever: bool = False
    requests: list[str] = field(default_factory=list)
    listings: int = 0
    objects: dict[str, bytes] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def environment(self) -> dict[str, str]:
        """What a client needs to know."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "AKIAANSWERSANSWERS00",
            "AWS_SECRET_ACCESS_KEY": "answers-secret-not-for-logs",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def next(self) -> Fault | None:
        """The fault of the next request."""
        with self.lock:
            if not self.faults:
                return None
            return self.faults[0] if self.for_ever and len(self.faults) == 1 else self.faults.pop(0)


def _handler(answers: Answers) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        part = token = ""

        def do_GET(self) -> None:
            key = unquote(urlsplit(self.path).path)
            if key.count("/") < 2 or key.endswith("/"):
                with answers.lock:
                    answers.listings += 1
                fault = answers.listing
                if fault is None:
                    self._send(200, LISTING)
                elif fault.status:
                    self._send(fault.status, _error(fault.code))
                else:
                    self.close_connection = True
                return
            self._answer(key, b"")

        def do_HEAD(self) -> None:
            self._answer(unquote(urlsplit(self.path).path), b"")

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(unquote(urlsplit(self.path).path), body)

        do_DELETE = do_HEAD

        def _answer(self, key: str, body: bytes) -> None:
            with answers.lock:
                answers.requests.append(self.command)
            fault = answers.next()
            if fault is None or fault.done or fault.cut:
                status, sent = self._do(key, body)
            else:
                status, sent = fault.status, _error(fault.code)
            if fault is None:
                self._send(status, sent)
            elif fault.cut:
                self._send(status, sent, len(sent) // 2)
            elif fault.status:
                self._send(fault.status, _error(fault.code))
            else:
                self.close_connection = True

        def _do(self, key: str, body: bytes) -> tuple[int, bytes]:
            with answers.lock:
                if self.command == "PUT":
                    if self.headers.get("If-None-Match") == "*" and key in answers.objects:
                        return 412, _error("PreconditionFailed")
                    answers.objects[key] = body
                    answers.tokens[key] = self.headers.get("x-amz-meta-sdflow-write") or ""
                    return 200, b""
                if self.command == "DELETE":
                    answers.objects.pop(key, None)
                    return 204, b""
                found = answers.objects.get(key)
            self.token = answers.tokens.get(key, "")
            if found is None:
                return 404, _error("NoSuchKey")
            asked = self.headers.get("Range")
            if asked is None:
                return 200, found
            first, last = asked.removeprefix("bytes=").split("-")
            start = int(first) if first else max(len(found) - int(last), 0)
            end = min(int(last) + 1, len(found)) if first else len(found)
            self.part = f"bytes {start}-{end - 1}/{len(found)}"
            return 206, found[start:end]

        def _send(self, status: int, body: bytes, length: int | None = None) -> None:
            self.send_response(status)
            tag = hashlib.md5(body, usedforsecurity=False).hexdigest()
            self.send_header("ETag", f'"{tag}"')
            self.send_header("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT")
            if self.token:
                self.send_header("x-amz-meta-sdflow-write", self.token)
            if status == 206:
                self.send_header("Content-Range", self.part)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/xml")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if length is None else body[:length])
            if length is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _error(code: str) -> bytes:
    # as AWS answers, with the very things that must never be shown
    return (
        f"<Error><Code>{code}</Code><Message>In words of AWS.</Message>"
        "<AWSAccessKeyId>AKIAANSWERSANSWERS00</AWSAccessKeyId>"
        "<StringToSign>AWS4-HMAC-SHA256 shown</StringToSign>"
        "<SignatureProvided>0123456789abcdef0123456789abcdef</SignatureProvided></Error>"
    ).encode()


@contextmanager
def answering() -> Generator[Answers]:
    """An endpoint of its own while the block runs."""
    answers = Answers()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(answers))
    answers.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
