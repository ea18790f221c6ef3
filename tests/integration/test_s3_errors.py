"""What is wrong with a bucket is said once, soon, in plain words, and without any secret."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from sdflow_core.records.errors import AccessError, ContractError, SDFlowError
from sdflow_core.records.store import open_source, open_store
from tests.s3_answers import Fault, answering
from tests.s3_server import Identity, S3Server, s3_server

pytestmark = pytest.mark.s3
ROOT = Path(__file__).resolve().parents[2]

READER = Identity("reader-key-id", "reader-secret-not-for-logs", ("Read:store", "List:store"))
BLIND = Identity("blind-key-id", "blind-secret-not-for-logs", ("Write:store",))
ELSEWHERE = Identity("else-key-id", "else-secret-not-for-logs", ("Read:faces", "List:faces"))
KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIAANSWERSANSWERS00",
    "AWS_SECRET_ACCESS_KEY": "answers-secret-not-for-logs",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
WRONG = "AKIAWRONGWRONGWRONG0", "wrong-secret-not-for-logs"
SECRETS = (
    *(part for one in (READER, BLIND, ELSEWHERE) for part in (one.key, one.secret)),
    *WRONG,
    "sdflow-test-key",
    "sdflow-test-secret-not-for-logs",
    "AKIAANSWERSANSWERS00",
    "answers-secret-not-for-logs",
    "0123456789abcdef0123456789abcdef",
    "AWS4-HMAC",
    "Signature=",
    "Credential=",
)


@dataclass(frozen=True)
class Wrong:
    """Something wrong.

    Attributes:
        environment: Of the client.
        says: In the message.
        uri: Of the store.
    """

    environment: dict[str, str]
    says: str
    uri: str = "s3://store/never"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3-errors")
    with s3_server(folder, identities=(READER, BLIND, ELSEWHERE)) as made:
        yield made


@pytest.fixture(scope="module")
def wrongs(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Wrong]]:
    admin = server.environment()
    with ExitStack() as stack:

        def answer(code: str, status: int = 403) -> dict[str, str]:
            made = stack.enter_context(answering())
            made.listing = Fault(status, code)
            return made.environment()

        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # takes calls, says nothing
        nobody = _free_port()
        stranger = stack.enter_context(answering())
        stranger.listing = Fault(404, "")
        plain = {k: v for k, v in admin.items() if "KEY" not in k}
        home = str(tmp_path_factory.mktemp("home"))
        yield {
            "wrong key": Wrong({**admin, "AWS_ACCESS_KEY_ID": WRONG[0]}, "does not know this access key"),
            "wrong secret": Wrong({**admin, "AWS_SECRET_ACCESS_KEY": WRONG[1]}, "secret access key is wrong"),
            "no bucket": Wrong(admin, "bucket does not exist", "s3://no-such-bucket/x"),
            "no permission to write": Wrong(server.environment(READER), "no permission to write"),
            "no permission to list": Wrong(server.environment(BLIND), "no permission to list"),
            "no permission at all": Wrong(server.environment(ELSEWHERE), "no permission to"),
            "clock skew": Wrong(answer("RequestTimeTooSkewed"), "clock of this machine is wrong"),
            "expired token": Wrong(answer("ExpiredToken", 400), "credentials .* have expired"),
            "endpoint down": Wrong(
                {**admin, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{nobody}"}, "nothing answers"
            ),
            "no such host": Wrong(
                {**admin, "AWS_ENDPOINT_URL": "http://no-such-host.invalid"}, "nothing answers"
            ),
            "endpoint silent": Wrong(
                {**admin, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"},
                "did not answer in time",
            ),
            "not encrypted": Wrong(
                {**admin, "AWS_ENDPOINT_URL": server.endpoint.replace("http:", "https:")},
                "no secure connection",
            ),
            "no object store": Wrong(stranger.environment(), "no object store of the S3 kind"),
            "no credentials": Wrong({**plain, "HOME": home}, "no credentials"),
            "no profile": Wrong({**plain, "HOME": home, "AWS_PROFILE": "nobody"}, "credentials"),
            "other region": Wrong(answer("AuthorizationHeaderMalformed", 400), "another region"),
            "slow down": Wrong(answer("SlowDown", 503), "too busy"),
        }


NAMES = (
    "wrong key",
    "wrong secret",
    "no bucket",
    "no permission to write",
    "no permission to list",
    "no permission at all",
    "clock skew",
    "expired token",
    "endpoint down",
    "no such host",
    "endpoint silent",
    "not encrypted",
    "no object store",
    "no credentials",
    "no profile",
    "other region",
    "slow down",
)
# The whole command takes seconds; the short form has one case of each way to fail.
SHORT = ("wrong secret", "no permission to write", "endpoint silent", "expired token")


PAGES = {
    "a page": b"<!doctype html><html><body>Sign in</body></html>",
    "another document": b"<?xml version='1.0'?><rss><channel/></rss>",
    "nothing": b"",
}


@pytest.mark.parametrize("page", list(PAGES))
def test_what_answers_anything_is_no_object_store(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(PAGES[page])))
            self.end_headers()
            self.wfile.write(PAGES[page])

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", **KEYS}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(AccessError, match="no object store of the S3 kind"):
            open_store("s3://store/x").read("entries/1.json")
        server.shutdown()


SETTINGS = {
    "AWS_ENDPOINT_URL": ("127.0.0.1:8333", "localhost", "http://", "ftp://h", "http://h:99999", "http://h:0"),
    "AWS_ENDPOINT_URL_S3": ("http://user:hush-hush@h:8333",),
    "AWS_ACCESS_KEY_ID": ("hush-hush\n",),
    "AWS_SECRET_ACCESS_KEY": ("hush-hush\n", "hush hush-hush"),
    "AWS_SESSION_TOKEN": ("hush-hush\r\n",),
    "AWS_CA_BUNDLE": ("/no/such/file.pem",),
    "SDFLOW_S3_CLIENT": ("boto",),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in SETTINGS.items() for v in values])
def test_a_setting_that_cannot_be_right_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known, good in {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", **KEYS}.items():
        monkeypatch.setenv(known, good)
    monkeypatch.setenv(name, value)
    with pytest.raises(ContractError, match=f"the setting {name}") as failed:
        open_store("s3://store/x").read("entries/1.json")
    assert "hush" not in str(failed.value)


def _free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def _clean(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text


def _told(act: Callable[[], Any]) -> str:
    """The message; neither it nor the traceback or anything that hangs on the exception tells a secret."""
    with pytest.raises(SDFlowError) as caught:
        act()
    at: BaseException | None = caught.value
    while at is not None:
        _clean(repr(at) + str(at))
        at = at.__cause__ or at.__context__
    _clean("".join(traceback.format_exception(caught.value)))
    return str(caught.value)


@pytest.fixture
def wrong(request: pytest.FixtureRequest, wrongs: dict[str, Wrong], monkeypatch: pytest.MonkeyPatch) -> Wrong:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    found = wrongs[request.param]
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.mark.parametrize(
    "wrong", [name for name in NAMES if name != "endpoint silent"], indirect=True
)  # that one takes its ten seconds once, below
def test_a_store_says_what_is_wrong(wrong: Wrong) -> None:
    told = _told(lambda: _begun(wrong.uri))
    assert re.search(wrong.says, told) and "What to do" in told


def _begun(uri: str) -> None:
    store = open_store(uri)
    store.check_writable()
    list(store.list())


@pytest.mark.parametrize("wrong", ["no permission at all"], indirect=True)
def test_each_permission_has_its_word(wrong: Wrong) -> None:
    store = open_store(wrong.uri)
    assert "s3:ListBucket" in _told(lambda: list(store.list()))
    assert "s3:GetObject" in _told(lambda: store.read("a"))
    assert "s3:PutObject" in _told(lambda: store.put("a", b""))
    assert "s3:PutObject" in _told(lambda: store.create("a", b""))
    assert "s3:DeleteObject" in _told(lambda: store.delete("a"))
    assert "s3:ListBucket" in _told(lambda: store.stat("a"))
    assert "s3:ListBucket" in _told(lambda: list(open_source(wrong.uri).list()))


def test_what_may_not_be_listed_may_be_written(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment(BLIND).items():
        monkeypatch.setenv(name, value)
    assert open_store("s3://store/letterbox").create("a", b"1")


def command(wrong: Wrong, tmp_path: Path, *words: str) -> tuple[int, str]:
    """Exit code and everything that was said."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "--store", wrong.uri, *words],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(tmp_path / "prefect"),
            **wrong.environment,
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in NAMES]
)
def test_a_command_ends_with_one_message(
    name: str, wrongs: dict[str, Wrong], server: S3Server, tmp_path: Path
) -> None:
    wrong = wrongs[name]
    if wrong.environment.get("HOME"):
        wrong = replace(wrong, environment={**wrong.environment, "HOME": str(tmp_path)})
    (tmp_path / "consent.csv").write_text("source,subject,attributes,expires,evidence\n")
    words = ("ingest", str(tmp_path), "--name", "d", "--consent", str(tmp_path / "consent.csv"))
    code, said = command(wrong, tmp_path, *words)
    assert code == 2
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1 and re.search(wrong.says, lines[0])
    _clean(said)
    # no log, no server's home, no object
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"consent.csv"}
    client: Any = server.client()
    assert not client.list_objects_v2(Bucket="store", Prefix="never").get("Contents")


@pytest.mark.long
@pytest.mark.parametrize("words", [("verify",), ("stale",), ("gc",), ("audit", "ab" * 32), ("why", "x")])
def test_every_command_says_so(words: tuple[str, ...], wrongs: dict[str, Wrong], tmp_path: Path) -> None:
    for name in ("wrong key", "no bucket", "endpoint down"):
        code, said = command(wrongs[name], tmp_path, *words)
        assert code == 2 and wrongs[name].says in said
        _clean(said)
