"""What a refresh must not forget: who opened which gate on which figures, and which datasets are done.

A refresh passes two gates: the canary (old and new models on a sample, before anything is recomputed) and the
editor (old and new editor on people that nobody trained on, before the new one is used). A gate is opened by
the policy or by a person; either way an entry of the journal `refreshes` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, cast

from pydantic import Field

from .config import Config
from .errors import ContractError
from .journal import Entry, Journal
from .keys import canonical_json, sha256_hex
from .store import Store

__all__ = [
    "RefreshPolicy",
    "Refreshes",
    "canary_complaints",
    "editor_complaints",
    "is_paused",
    "pause",
    "refresh_id",
    "resume",
]

_PAUSED = "private/refresh/paused"


class RefreshPolicy(Config):
    """When a refresh may go on without a person. Losses are old minus new.

    Attributes:
        ask: `when_worse` goes on by itself while every bound holds; `always` waits for a person at each gate.
        canary_rows: Faces that old and new models are compared on.
        max_psnr_loss_db: Greatest loss of the mean reconstruction PSNR.
        min_identity: Least median cosine (SFace) of crop and reconstruction.
        max_identity_loss: Greatest loss of that median.
        min_label_agreement: Least share of labels that old and new agree on, read from the crops and from the
            reconstructions.
        min_faces_found: Least share of the sample's faces that the new detector finds again.
        max_latent_drift: Greatest mean distance of old and new code, in units of the codes' spread; None:
            any, for another encoder may well speak another language.
        editor_rows: People that old and new editor are compared on.
        max_accuracy_loss: Greatest loss of the share of edits that the judge sees.
        max_preservation_loss: Greatest loss of the share of other attributes that stay.
        max_edit_identity_loss: Greatest loss of the median cosine of edit and reconstruction.
        training: How the editor is trained; None: as the one that it replaces.
    """

    ask: Literal["when_worse", "always"] = "when_worse"
    canary_rows: int = Field(default=64, ge=2, le=2000)
    max_psnr_loss_db: float = Field(default=0.5, ge=0.0)
    min_identity: float = Field(default=0.2, ge=-1.0, le=1.0)
    max_identity_loss: float = Field(default=0.05, ge=0.0, le=2.0)
    min_label_agreement: float = Field(default=0.9, ge=0.0, le=1.0)
    min_faces_found: float = Field(default=0.98, ge=0.0, le=1.0)
    max_latent_drift: float | None = Field(default=None, gt=0.0)
    editor_rows: int = Field(default=24, ge=2, le=500)
    max_accuracy_loss: float = Field(default=0.05, ge=0.0, le=1.0)
    max_preservation_loss: float = Field(default=0.05, ge=0.0, le=1.0)
    max_edit_identity_loss: float = Field(default=0.05, ge=0.0, le=2.0)
    training: dict[str, Any] | None = None


def canary_complaints(figures: Mapping[str, Any], policy: RefreshPolicy) -> list[str]:
    """Bounds of the policy that the canary's figures break, each in words; nothing when all hold."""
    if not figures:
        return []  # no model that makes rows differs
    old, new = cast("dict[str, float]", figures["old"]), cast("dict[str, float]", figures["new"])
    said = [
        _loss("reconstruction", old["psnr_db"], new["psnr_db"], policy.max_psnr_loss_db, " dB"),
        _least("identity of the reconstruction", new["identity"], policy.min_identity),
        _loss("identity of the reconstruction", old["identity"], new["identity"], policy.max_identity_loss),
        _least("labels that agree on crops", figures["label_agreement"], policy.min_label_agreement),
        _least(
            "labels that agree on reconstructions",
            figures["reconstruction_label_agreement"],
            policy.min_label_agreement,
        ),
        _least("faces found again", figures["faces_found"], policy.min_faces_found),
    ]
    drift, most = figures["latent_drift_mean"], policy.max_latent_drift
    if most is not None and (drift is None or drift > most):
        said.append(
            f"codes moved by {'another shape' if drift is None else f'{drift:.3g}'}, at most {most:g}"
        )
    return [text for text in said if text]


def editor_complaints(figures: Mapping[str, Any], policy: RefreshPolicy) -> list[str]:
    """Bounds of the policy that the new editor breaks, each in words; nothing without an old editor."""
    if not figures or figures["old"] is None:
        return []
    old, new = cast("dict[str, float]", figures["old"]), cast("dict[str, float]", figures["new"])
    bounds = {
        "judge_accuracy": ("edits that the judge sees", policy.max_accuracy_loss),
        "preservation": ("other attributes that stay", policy.max_preservation_loss),
        "identity": ("identity of the edit", policy.max_edit_identity_loss),
    }
    said = [_loss(words, old[name], new[name], most) for name, (words, most) in bounds.items()]
    return [text for text in said if text]


def _loss(what: str, old: float, new: float, most: float, unit: str = "") -> str:
    # not "old - new > most": a figure that is no number must not pass
    if old - new <= most:
        return ""
    return f"{what}: {old:.3g} -> {new:.3g}{unit}, a loss of at most {most:g}{unit} is allowed"


def _least(what: str, value: float, least: float) -> str:
    return "" if value >= least else f"{what}: {value:.3g}, at least {least:g} is needed"


def refresh_id(dataset: str, old: str, new: str, policy: RefreshPolicy) -> str:
    """The same dataset from the same models to the same, compared on as many rows, is the same refresh."""
    document = [dataset, old, new, policy.canary_rows, policy.editor_rows]
    return sha256_hex(canonical_json(document))[:12]


class Refreshes:
    """The journal of refreshes. Saying a thing twice is saying it once."""

    def __init__(self, store: Store) -> None:
        self.journal = Journal(store, "refreshes")

    def _once(self, kind: str, payload: dict[str, Any], key: tuple[str, ...]) -> Entry:
        def said(entry: Entry) -> bool:
            return entry.kind == kind and all(entry.payload.get(name) == payload[name] for name in key)

        def rebase(new: list[Entry], payload: dict[str, Any]) -> dict[str, Any] | None:
            return None if any(map(said, new)) else payload

        entry = self.journal.append(kind, payload, rebase=rebase, after=0)
        return entry or next(item for item in self.journal.entries() if said(item))

    def open_gate(self, refresh: str, dataset: str, gate: str, figures: str, by: str) -> Entry:
        """Records that a gate is open.

        Args:
            refresh: Id of the refresh.
            dataset: It works on.
            gate: "canary" or "editor".
            figures: SHA-256 of the figures that this is about.
            by: "policy", or the name of the person.
        """
        payload = {"refresh": refresh, "dataset": dataset, "gate": gate, "figures": figures, "by": by}
        return self._once("open", payload, ("refresh", "gate", "figures"))

    def opened(self, refresh: str, gate: str, figures: str) -> Entry | None:
        """The entry that opened this gate on these figures, if any."""
        for entry in self.journal.entries():
            said = entry.payload
            if entry.kind == "open" and [said["refresh"], said["gate"], said["figures"]] == [
                refresh,
                gate,
                figures,
            ]:
                return entry
        return None

    def finish(self, refresh: str, dataset: str, models: str, bundle: str) -> Entry:
        """Records that a dataset is computed by these models.

        Args:
            refresh: Id of the refresh.
            dataset: Its name.
            models: Digest of the bundle without its editor.
            bundle: Digest of the bundle in force afterwards.
        """
        payload = {"refresh": refresh, "dataset": dataset, "models": models, "bundle": bundle}
        return self._once("finish", payload, ("dataset", "models"))

    def finished(self, dataset: str, models: str) -> bool:
        """Whether a refresh brought this dataset to these models (a bundle without its editor, by digest)."""
        return any(
            entry.kind == "finish"
            and (entry.payload["dataset"], entry.payload["models"]) == (dataset, models)
            for entry in self.journal.entries()
        )


def pause(store: Store, dataset: str, by: str) -> None:
    """Asks refreshes of a dataset to stop after the shards that they are at, and not to start.

    Raises:
        ContractError: Nobody says so.
    """
    if not by.strip():
        raise ContractError("a pause needs a name", expected="who says so", todo="pass --by NAME")
    said = {"dataset": dataset, "by": by, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    store.put(f"{_PAUSED}/{dataset}.json", canonical_json(said))


def resume(store: Store, dataset: str) -> bool:
    """Takes a pause back; gives whether there was one."""
    key = f"{_PAUSED}/{dataset}.json"
    there = store.exists(key)
    store.delete(key)
    return there


def is_paused(store: Store, dataset: str) -> bool:
    """Whether a person asked to wait."""
    return store.exists(f"{_PAUSED}/{dataset}.json")
