"""Where state goes, and which addresses are taken: one folder a store, and no credentials in any of them."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

import cli.main as command
from cli.server import made, state_folder
from sdflow_core.records.addresses import checked_address, plain_address
from sdflow_core.records.errors import ContractError, NotFoundError
from sdflow_core.records.policy import load_policy
from sdflow_core.records.store import open_store

SECRET = "s3://AKIAEXAMPLE:very-secret@bucket/prefix"
POLICY = """
[[datasets]]
dataset = "team"
source = "photos"
consent = "../consent.csv"
requests = [{smiling = 0.8}]
allowed = {smiling = {}}
"""


def test_every_store_has_a_state_folder_of_its_own_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "SDFLOW_STATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    one = state_folder("s3://bucket/a")
    assert one.parent == tmp_path / "xdg" / "sdflow" and one.name.startswith("bucket-a-")
    assert one == state_folder("s3://bucket/a/") == state_folder("s3a://bucket/a")
    monkeypatch.chdir(tmp_path)
    assert state_folder("s3://bucket/a") == one
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:8333")
    folders = {
        one,
        state_folder("s3://bucket/a"),
        state_folder("s3://bucket-a"),
        state_folder("gs://bucket/a"),
    }
    assert len(folders) == 4
    assert state_folder("store") == state_folder(f"file://{tmp_path}/store") == tmp_path / "store" / "state"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert state_folder("s3://bucket/a").parent == tmp_path / "home/.local/state/sdflow"
    monkeypatch.setenv("SDFLOW_STATE", str(tmp_path / "mine"))
    assert {state_folder(uri).parent for uri in ("s3://bucket/a", "store")} == {tmp_path / "mine"}


def test_a_state_folder_is_for_its_owner_or_says_what_to_do(tmp_path: Path) -> None:
    folder = made(tmp_path / "sdflow" / "store-1" / "up")
    assert all(one.stat().st_mode & 0o077 == 0 for one in (folder, folder.parent, folder.parent.parent))
    (tmp_path / "file").touch()
    with pytest.raises(ContractError, match="SDFLOW_STATE"):
        made(tmp_path / "file" / "up")


def test_one_place_has_one_spelling() -> None:
    assert plain_address("s3a://bucket//a/") == plain_address("s3://bucket/a") == "s3://bucket/a"
    with pytest.raises(ContractError, match="name no place"):
        plain_address("s3://bucket/a/../b")


def test_credentials_in_an_address_are_refused_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ContractError) as refused:
        checked_address(SECRET, "store")
    assert "secret" not in str(refused.value)
    assert checked_address("s3://bucket/ann@home.jpg", "source") and checked_address("/a@b://c", "source")
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.replace('"photos"', f'"{SECRET}"'))
    for words in (
        ["--store", SECRET, "doctor"],
        ["nightly", str(policy)],
        ["ingest", SECRET, "--name", "x", "--consent", "c.csv"],
        ["ingest", "photos", "--name", "x", "--consent", SECRET],
    ):
        assert command.app([*words, "--json"]) == 2
        out, err = capsys.readouterr()
        assert "holds credentials" in json.loads(out.splitlines()[-1])["error"]["message"]
        assert "secret" not in out + err


def test_a_policy_may_lie_in_a_bucket_and_names_what_lies_beside_it() -> None:
    folder = f"memory://{uuid.uuid4().hex}/night"
    open_store(folder).create("p/policy.toml", POLICY.encode())
    (part,) = load_policy(f"{folder}/p/policy.toml").datasets
    assert (part.source, part.consent) == (f"{folder}/p/photos", f"{folder}/consent.csv")
    with pytest.raises(NotFoundError, match="no such policy"):
        load_policy(f"{folder}/p/other.toml")
