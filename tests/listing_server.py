"""An S3 endpoint that only lists: as many keys as one likes, made when a page is asked for.

Every prefix of its buckets holds the keys `<prefix>0000000000.jpg` and so on; those that begin with `few`
hold two pages at most. Bucket `plain` has no versions, bucket `versioned` has one of each key.

`python -m tests.listing_server KEYS` prints its address and serves until its input ends. `GET /pages` tells
how many pages were asked for.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

PAGE_KEYS = 1000
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
_SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_ABOUT = (
    "<LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;{0:032x}&quot;</ETag><Size>{1}</Size>"
    "<StorageClass>STANDARD</StorageClass>"
)


class _Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    keys = 0
    pages = 0
    lock = threading.Lock()

    def do_HEAD(self) -> None:
        bucket, _, key = urlsplit(self.path).path.strip("/").partition("/")
        self._answer(200 if bucket and not key else 404)

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        said = {name: values[0] for name, values in parse_qs(asked.query, keep_blank_values=True).items()}
        bucket, _, key = asked.path.strip("/").partition("/")
        if asked.path == "/pages":
            self._answer(200, str(_Pages.pages))
        elif key:
            self._answer(404, f"{_HEAD}<Error><Code>NoSuchKey</Code></Error>")
        elif "location" in said:
            self._answer(200, f"{_HEAD}<LocationConstraint {_SPACE}/>")
        elif "versioning" in said:
            status = "<Status>Enabled</Status>" if bucket == "versioned" else ""
            self._answer(200, f"{_HEAD}<VersioningConfiguration {_SPACE}>{status}</VersioningConfiguration>")
        else:
            self._answer(200, self._page(bucket, said, "versions" in said))

    def _page(self, bucket: str, said: dict[str, str], versions: bool) -> str:
        with _Pages.lock:
            _Pages.pages += 1
        prefix = said.get("prefix", "")
        if prefix and not prefix.endswith("/"):
            prefix += "/"  # keys lie below: `faces` finds what `faces/` finds
        size = min(int(said.get("max-keys") or PAGE_KEYS), PAGE_KEYS)
        after = said.get("key-marker") if versions else said.get("start-after")
        start = int(said.get("continuation-token") or 0)
        if not start and after:
            start = int(after.rpartition("/")[2].removesuffix(".jpg")) + 1
        keys = min(self.keys, 2 * PAGE_KEYS) if prefix.startswith("few") else self.keys
        end = min(start + size, keys)
        kind = "Version" if versions else "Contents"
        more = "<IsLatest>true</IsLatest><VersionId>v{0}</VersionId>" if versions else ""
        line = f"<{kind}><Key>{{2}}{{0:010d}}.jpg</Key>{_ABOUT}{more}</{kind}>"
        where = quote(prefix) if said.get("encoding-type") == "url" else prefix
        lines = "".join(line.format(n, 1000 + n % 7, where) for n in range(start, end))
        cut = end < keys
        parts = [
            f"<Name>{bucket}</Name><Prefix>{where}</Prefix><MaxKeys>{size}</MaxKeys>",
            "<EncodingType>url</EncodingType>" if said.get("encoding-type") == "url" else "",
            f"<IsTruncated>{str(cut).lower()}</IsTruncated>",
        ]
        if versions:
            last = f"{where}{end - 1:010d}.jpg"
            next_ = (
                f"<NextKeyMarker>{last}</NextKeyMarker><NextVersionIdMarker>v{end - 1}</NextVersionIdMarker>"
            )
            name = "ListVersionsResult"
        else:
            next_ = f"<NextContinuationToken>{end}</NextContinuationToken>"
            parts.append(f"<KeyCount>{end - start}</KeyCount>")
            name = "ListBucketResult"
        return f"{_HEAD}<{name} {_SPACE}>{''.join(parts)}{next_ if cut else ''}{lines}</{name}>"

    def _answer(self, status: int, text: str = "") -> None:
        data = text.encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/xml\r\nContent-Length: {len(data)}\r\n\r\n"
        self.wfile.write(head.encode() + data)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class Listing:
    """A running endpoint."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def pages(self) -> int:
        """How many pages were asked for."""
        with urllib.request.urlopen(f"{self.endpoint}/pages", timeout=30) as answer:
            return int(answer.read())


@contextmanager
def listing_server(keys: int) -> Generator[Listing]:
    """An endpoint in a process of its own: what it needs is not the client's."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.listing_server", str(keys)],
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Listing(process.stdout.readline().strip())
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def main() -> None:
    """Serve until the input ends."""
    _Pages.keys = int(sys.argv[1])
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
