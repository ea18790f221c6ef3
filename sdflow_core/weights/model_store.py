"""Where weights are kept by their digest, which of them belong together, and which licences were accepted."""

from __future__ import annotations

import json
from typing import Any, Literal, cast

from sdflow_core.records.ahead import ahead
from sdflow_core.records.config import Config, Growing
from sdflow_core.records.errors import ContractError, CorruptError, NotFoundError
from sdflow_core.records.journal import Entry, Journal
from sdflow_core.records.keys import canonical_json, sha256_hex
from sdflow_core.records.objects import Store

__all__ = ["NO_MODELS", "Bundle", "Bundles", "Licences", "ModelStore", "edited_attributes"]

# fields of a bundle that name no model
NO_MODELS = ("template_scale", "resolution", "attributes", "framing", "faces")


class ModelStore:
    """Weights and their cards under `models/<digest>/`; the digest is the SHA-256 of the weights' bytes."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, kind: str, tensors_bytes: bytes, card: dict[str, Any]) -> str:
        """Keeps weights with their card. Adding the same bytes again changes nothing: the first card stays.

        Args:
            kind: What kind of model, e.g. "generator".
            tensors_bytes: A safetensors file's bytes.
            card: What is known of it: data, licence, metrics, command, seeds.

        Returns:
            The digest.
        """
        digest = sha256_hex(tensors_bytes)
        full = {**card, "kind": kind, "digest": digest, "size_bytes": len(tensors_bytes)}
        if all(self.store.exists(f"models/{digest}/{name}") for name in ("card.json", "weights.bin")):
            return digest  # before all of it is sent to be refused
        # The card comes last: a model without one does not exist yet.
        self.store.create(f"models/{digest}/weights.bin", tensors_bytes)
        self.store.create(f"models/{digest}/card.json", canonical_json(full))
        return digest

    def weights(self, digest: str) -> bytes:
        """The bytes that were added.

        Raises:
            NotFoundError: No such model.
            CorruptError: They were changed.
        """
        key = f"models/{digest}/weights.bin"
        try:
            data = self.store.read(key)
        except NotFoundError as error:
            raise _unknown(digest, self.store.url(key)) from error
        if sha256_hex(data) != digest:
            where = self.store.url(key)
            raise CorruptError(
                "weights were changed", where=where, todo="remove the folder and add the model again"
            )
        return data

    def card(self, digest: str) -> dict[str, Any]:
        """What is known of a model; `kind`, `digest` and `size_bytes` are always there.

        Raises:
            NotFoundError: No such model.
            CorruptError: The card cannot be read.
        """
        key = f"models/{digest}/card.json"
        try:
            return cast(dict[str, Any], json.loads(self.store.read(key)))
        except NotFoundError as error:
            raise _unknown(digest, self.store.url(key)) from error
        except ValueError as error:
            raise CorruptError(
                "a model card cannot be read", where=self.store.url(key), todo="restore it"
            ) from error

    def list(self) -> list[dict[str, Any]]:
        """Cards of all models, sorted by kind and digest."""
        digests = [
            key.split("/")[1]
            for key in self.store.list("models/")
            if key.endswith("/card.json") and key.count("/") == 2
        ]
        cards = ahead(self.store, self.card, digests)
        return sorted(cards, key=lambda card: (str(card["kind"]), str(card["digest"])))


def _unknown(digest: str, where: str) -> NotFoundError:
    return NotFoundError("there is no such model", found=digest, where=where, todo="see `sdflow models list`")


class Bundle(Growing, Config):
    """Models that fit each other, by digest. A run pins one at its start.

    Attributes:
        generator: W+ -> image.
        encoder: Image -> W+.
        labeller: Image -> attribute scores.
        prior: Samples of W+.
        detector: Faces in a picture.
        identity: Face -> embedding, for gates.
        judge: A second classifier of another design.
        editor: The trained editor; None before training.
        template_scale: Scale of the alignment template that the models were trained with.
        resolution: Side of an aligned image, in pixels.
        attributes: Names, in the order of the labeller's outputs.
        framing: How faces are cut: `five_points` as the compact models learned it, `ffhq` for encoders that
            were trained on FFHQ.
        faces: What becomes of a picture with several faces: `reject` drops it, `largest` takes one,
            `all` every face that fits.
    """

    later = ("framing", "faces")

    generator: str | None = None
    encoder: str | None = None
    labeller: str | None = None
    prior: str | None = None
    detector: str | None = None
    identity: str | None = None
    judge: str | None = None
    editor: str | None = None
    template_scale: float
    resolution: int
    attributes: tuple[str, ...]
    framing: Literal["five_points", "ffhq"] = "five_points"
    faces: Literal["reject", "largest", "all"] = "reject"

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of all fields."""
        return sha256_hex(canonical_json(self.model_dump(mode="json")))

    @property
    def without_editor(self) -> Bundle:
        """The same models but the editor: what makes faces, latents and labels."""
        return self.model_copy(update={"editor": None})


def edited_attributes(store: Store, bundle: Bundle) -> tuple[str, ...]:
    """What may be asked of a bundle: what its editor was trained for; without one, what its labeller knows.

    Raises:
        NotFoundError: The editor is not in this store.
    """
    if bundle.editor is None:
        return bundle.attributes
    return tuple(ModelStore(store).card(bundle.editor).get("attributes") or bundle.attributes)


class Bundles:
    """The journal of promotions: one entry promotes, one more takes it back."""

    def __init__(self, store: Store) -> None:
        self.journal = Journal(store, "models/bundles")

    def promote(self, bundle: Bundle, by: str, note: str) -> Entry:
        """Makes a bundle the current one. Promoting the current one again adds nothing.

        Args:
            bundle: The models.
            by: Who says so.
            note: Why.

        Raises:
            ContractError: Another promotion came in between.
        """
        history = list(self.journal.entries())
        promoted = _stack(history)
        if promoted and promoted[-1] == bundle:
            return history[-1]
        payload = {"bundle": bundle.model_dump(mode="json"), "digest": bundle.digest, "by": by, "note": note}
        return self._append("promote", payload, len(history))

    def complete(self, bundle: Bundle, by: str, note: str) -> Entry:
        """Gives the current bundle another editor, in its place: a rollback afterwards goes back behind both.

        Args:
            bundle: The current one, but for the editor. Completing it again adds nothing.
            by: Who says so.
            note: Why.

        Raises:
            ContractError: The current bundle is another one, or another promotion came in between.
        """
        history = list(self.journal.entries())
        promoted = _stack(history)
        if promoted and promoted[-1] == bundle:
            return history[-1]
        if not promoted or promoted[-1].without_editor != bundle.without_editor:
            raise ContractError(
                "another bundle is in force than the one that this editor was made for",
                expected=promoted[-1].without_editor.digest if promoted else "a promoted bundle",
                found=bundle.without_editor.digest,
                todo="look at `sdflow models list` and decide again",
            )
        payload = {"bundle": bundle.model_dump(mode="json"), "digest": bundle.digest, "by": by, "note": note}
        return self._append("complete", payload, len(history))

    def rollback(self, by: str, note: str) -> Entry:
        """Goes back to the bundle promoted before the current one. Doing it twice goes back two steps.

        Raises:
            ContractError: There is none to go back to, or another promotion came in between.
        """
        history = list(self.journal.entries())
        promoted = _stack(history)
        if len(promoted) < 2:
            raise ContractError("there is no earlier bundle to go back to", found=f"{len(promoted)} promoted")
        back = promoted[-2]
        payload = {"bundle": back.model_dump(mode="json"), "digest": back.digest, "by": by, "note": note}
        return self._append("rollback", payload, len(history))

    def _append(self, kind: str, payload: dict[str, Any], after: int) -> Entry:
        entry = self.journal.append(kind, payload, rebase=_conflict, after=after)
        assert entry is not None  # _conflict never returns None
        return entry

    def current(self) -> Bundle | None:
        """The bundle in force, or None before the first promotion."""
        promoted = _stack(list(self.journal.entries()))
        return promoted[-1] if promoted else None

    def standing(self) -> list[Bundle]:
        """Promotions that are not taken back, oldest first; the last one is in force."""
        return _stack(list(self.journal.entries()))

    def history(self) -> list[Entry]:
        """All promotions, completions and rollbacks, oldest first."""
        return list(self.journal.entries())


def _conflict(new: list[Entry], payload: dict[str, Any]) -> dict[str, Any] | None:
    raise ContractError(
        "another bundle was promoted at the same time",
        found=new[-1].payload.get("digest"),
        todo="look at `sdflow models list` and decide again",
    )


def _stack(entries: list[Entry]) -> list[Bundle]:
    """Promotions that are not taken back, oldest first."""
    promoted: list[Bundle] = []
    for entry in entries:
        if entry.kind == "rollback":
            promoted.pop()
        elif entry.kind == "complete":
            promoted[-1] = Bundle.model_validate(entry.payload["bundle"])
        else:
            promoted.append(Bundle.model_validate(entry.payload["bundle"]))
    return promoted


class Licences:
    """The journal of accepted licences."""

    def __init__(self, store: Store) -> None:
        self.journal = Journal(store, "models/licences")

    def accept(self, licence_id: str, by: str, note: str) -> Entry:
        """Records that somebody accepts a licence for this store; once is enough."""

        def once(new: list[Entry], payload: dict[str, Any]) -> dict[str, Any] | None:
            return None if any(entry.payload.get("licence") == licence_id for entry in new) else payload

        payload = {"licence": licence_id, "by": by, "note": note}
        self.journal.append("accept", payload, rebase=once, after=0)
        return next(entry for entry in self.journal.entries() if entry.payload.get("licence") == licence_id)

    def all(self) -> set[str]:
        """Licences that were accepted for this store."""
        return {str(entry.payload.get("licence")) for entry in self.journal.entries()}

    def accepted(self, licence_id: str) -> bool:
        """Whether this licence was accepted for this store."""
        return licence_id in self.all()
