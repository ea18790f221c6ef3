"""The errors of SDFlow: one base, one leaf for each way that a caller may react.

`TransientError` is retried. `ContractError` never is. `CapacityError` asks for a smaller batch.
`QualityGateError`, `ApprovalError` and `PolicyError` wait for a person. A bad *item* is no error: it becomes
a row with a reason.
"""

from __future__ import annotations

__all__ = [
    "AccessError",
    "ApprovalError",
    "CapacityError",
    "ContractError",
    "CorruptError",
    "NotFoundError",
    "PolicyError",
    "QualityGateError",
    "SDFlowError",
    "TransientError",
    "UnavailableError",
]


class SDFlowError(Exception):
    """Base of all errors that SDFlow raises on purpose.

    Args:
        what: What went wrong, in words.
        expected: What would have been right.
        found: What was there instead.
        where: The file, key, line or step.
        todo: What the reader can do about it.

    Example:
        >>> print(ContractError("the width is odd", expected="an even number", found=3, todo="pad the image"))
        the width is odd. Expected: an even number. Found: 3. What to do: pad the image.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: object = None,
        found: object = None,
        where: object = None,
        todo: str | None = None,
    ) -> None:
        super().__init__(what, expected, found, where, todo)
        self.what = what
        self.expected = expected
        self.found = found
        self.where = where
        self.todo = todo

    def __str__(self) -> str:
        parts = [self.what]
        for label, value in (
            ("Expected", self.expected),
            ("Found", self.found),
            ("Where", self.where),
            ("What to do", self.todo),
        ):
            if value is not None:
                parts.append(f"{label}: {value}")
        return " ".join(part if part.endswith((".", "!", "?")) else part + "." for part in parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders; the default reduce would pass five positional arguments.
        return _rebuild, (type(self), self.what, self.expected, self.found, self.where, self.todo)


def _rebuild(
    kind: type[SDFlowError], what: str, expected: object, found: object, where: object, todo: str | None
) -> SDFlowError:
    return kind(what, expected=expected, found=found, where=where, todo=todo)


class TransientError(SDFlowError):
    """It may work in a moment: network, a busy server. Retried."""


class ContractError(SDFlowError):
    """What was asked or found does not fit; doing it again changes nothing. Never retried."""


class UnavailableError(TransientError):
    """The store as a whole does not answer. It says nothing about one item, and must not become its row."""


class AccessError(ContractError):
    """Credentials, clock, bucket or endpoint are wrong. It says nothing about one item, and must not become
    its row."""


class CapacityError(SDFlowError):
    """Too much at once for this device: halve the batch."""


class QualityGateError(SDFlowError):
    """An output is not good enough to go on without a person."""


class ApprovalError(SDFlowError):
    """A decision is missing, or was made about something else."""


class PolicyError(SDFlowError):
    """Consent or policy does not allow it."""


class NotFoundError(ContractError):
    """The thing that was named is not there."""


class CorruptError(ContractError):
    """A record is not what was written: changed, missing or inserted."""
