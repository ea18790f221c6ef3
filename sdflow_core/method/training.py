"""Training of an editor; resumable bit for bit on CPU.

The budget is a number of steps and never a time: the same inputs and configuration give the same editor,
interrupted or not. Bit equality is promised on one machine with one thread count and PyTorch version.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sdflow_core.method.code_source import CodeSource, TensorSource
from sdflow_core.method.code_survey import survey
from sdflow_core.method.joint_training import JointTrainer
from sdflow_core.method.map_training import Witness
from sdflow_core.method.paper import PaperFlowConfig
from sdflow_core.method.parallel import ALONE, Group
from sdflow_core.method.principal_training import PrincipalTrainer
from sdflow_core.method.published_training import PublishedTrainer
from sdflow_core.method.trained import Progress, TrainedEditor, Trainer, TrainingCheckpoint
from sdflow_core.method.training_checks import (
    check_batch,
    check_classes,
    check_codes,
    check_images,
    check_scores,
    no_spread,
)
from sdflow_core.method.training_config import (
    EarlyStopping,
    TrainingConfig,
    joint_training,
    paper_training,
)
from sdflow_core.records.errors import ContractError

__all__ = [
    "EarlyStopping",
    "Progress",
    "TrainedEditor",
    "TrainingCheckpoint",
    "TrainingConfig",
    "joint_training",
    "paper_training",
    "train_editor",
    "train_on_source",
]

_FORMAT = 2


def train_editor(
    codes: Tensor,
    images: Tensor | None,
    scores: Tensor,
    generator: nn.Module,
    labeller: nn.Module,
    config: TrainingConfig,
    checkpoint: TrainingCheckpoint | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    witness: Witness | None = None,
) -> TrainedEditor:
    """Learn the decomposition of w+ into z and s, and how to edit.

    Args:
        codes: w+ [N, L, D] float.
        images: What the codes were made from or render to, [N, 3, H, W] uint8 RGB; None renders them from
            the codes on the way. A principal flow is not taught by pictures; its edit map has the witness.
        scores: Labeller's scores [N, A] in [0, 1], attributes in the labeller's order.
        generator: With `synthesize(w_plus)`. Differentiated through, never changed.
        labeller: With `attributes` and `logits(images)`; start and architecture of the semantic encoder,
            never changed.
        config: See `TrainingConfig`.
        checkpoint: Read at the start, written every `checkpoint_every` steps and at the end; None keeps
            nothing.
        progress: Called after each step with (steps done, steps in all, loss terms).
        device: Where to compute; the published training computes on the CPU. Random numbers are always drawn
            there.
        witness: What the edit map learns from beside codes and scores; None: from these alone.

    Returns:
        The trained editor.

    Raises:
        ContractError: Inputs that do not fit together or say nothing (the row or field is named), a
            checkpoint of another training, or a loss that is not finite (the last good checkpoint stays).
    """
    names = _names(labeller)
    check_codes(codes)
    check_scores(scores, len(codes), names)
    check_images(images, len(codes))
    check_batch(len(codes), config.batch)
    check_classes((scores > 0.5).sum(0), len(codes), names)
    if config.principal:
        source = TensorSource(codes, scores)
        return train_on_source(source, labeller, config, checkpoint, progress, device, witness)
    tensors = [codes, scores, *([images] if images is not None else [])]
    identity = _identity(config, tensors, (generator, labeller))
    was_trainable = [(p, p.requires_grad) for p in generator.parameters()]
    generator.to(device).eval().requires_grad_(False)
    try:
        if isinstance(config.flow, PaperFlowConfig):
            trainer: Trainer = PublishedTrainer(codes, images, scores, generator, labeller, config)
        else:
            trainer = JointTrainer(codes, images, scores, generator, labeller, config, device)
        return _run(trainer, identity, checkpoint, progress)
    finally:
        for parameter, flag in was_trainable:
            parameter.requires_grad_(flag)


def train_on_source(
    source: CodeSource,
    labeller: nn.Module,
    config: TrainingConfig,
    checkpoint: TrainingCheckpoint | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    witness: Witness | None = None,
    group: Group = ALONE,
) -> TrainedEditor:
    """Train a principal flow, and its edit map, on codes that need not fit into memory.

    Args:
        source: Codes and scores, N rows.
        labeller: Becomes the semantic encoder; its `attributes` name the scores.
        config: With a principal flow.
        checkpoint: As in `train_editor`; used by the first process alone.
        progress: As in `train_editor`.
        device: Where to compute.
        witness: As in `train_editor`.
        group: The processes that train together.

    Returns:
        The trained editor; of several processes only the first has an edit map.

    Raises:
        ContractError: As `train_editor`.
    """
    names = _names(labeller)
    if not config.principal or source.attributes != len(names):
        raise ContractError(
            "training from a source of codes",
            expected=f"a principal flow, and scores of {', '.join(names)}",
            found=f"flow of kind {config.flow.kind}, {source.attributes} scores a row",
        )
    check_batch(source.rows, config.batch)
    found = survey(source, names=names) if group.leads else None
    identity = ""
    if found is not None:
        if not bool(found.std.any()):
            raise no_spread(found.count)
        check_classes(found.present, found.count, names)
        seen = [] if witness is None else [torch.tensor(witness.knows_people)]
        identity = _identity(config, seen, (labeller,), found.digest)
    trainer = PrincipalTrainer(source, found, labeller, witness, config, device, group)
    return _run(trainer, identity, checkpoint, progress, group)


def _run(
    trainer: Trainer,
    identity: str,
    checkpoint: TrainingCheckpoint | None,
    progress: Progress | None,
    group: Group = ALONE,
) -> TrainedEditor:
    saved = group.told(checkpoint.load() if checkpoint is not None and group.leads else None)
    if saved is not None:
        trainer.restore(_opened(saved, group.told(identity.encode()) or b""))
    else:
        trainer.begin()
    while trainer.step < trainer.total:
        losses = trainer.advance()
        if checkpoint is not None and group.leads and trainer.due:
            checkpoint.save(_closed(trainer.document(), identity))
        if progress is not None and group.leads:
            progress(trainer.step, trainer.total, losses)
    return trainer.result()


def _closed(document: dict[str, Any], identity: str) -> bytes:
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "identity": identity, **document}, buffer)
    return buffer.getvalue()


def _opened(data: bytes, identity: bytes) -> dict[str, Any]:
    todo = "delete this checkpoint to train from the start"
    try:
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found = (saved["format"], saved["identity"])
    except Exception as error:  # torch.load raises many kinds for damaged bytes
        raise ContractError("unreadable training checkpoint", found=str(error)[:200], todo=todo) from error
    expected = (_FORMAT, identity.decode())
    if found != expected:
        raise ContractError("checkpoint of another training", expected=expected, found=found, todo=todo)
    return saved


def _names(labeller: nn.Module) -> tuple[str, ...]:
    return tuple(getattr(labeller, "attributes", ()))


def _identity(
    config: TrainingConfig, tensors: Iterable[Tensor], networks: Iterable[nn.Module], more: str = ""
) -> str:
    """Hash of all that determines the result: a checkpoint is never continued with anything else."""
    document = config.model_dump(mode="json", exclude={"checkpoint_every"})  # does not change the editor
    networks = list(networks)
    names = [_names(network) for network in networks]
    digest = hashlib.sha256(json.dumps([document, names, more], sort_keys=True).encode())
    weights = [value for net in networks for _, value in sorted(net.state_dict().items())]
    for tensor in [*tensors, *weights]:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
