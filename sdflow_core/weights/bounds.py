"""How much one weight file may cost, and how it is refused. Nothing here depends on the kind of file."""

from __future__ import annotations

from sdflow_core.records.errors import ContractError

__all__ = ["Budget", "refused", "shown"]

OPCODES = 500_000  # of pickles; the largest training checkpoints of the known families have about 50,000
TEXT_BYTES = 32 * 2**20  # names, options and the source text that NVIDIA's pickles carry
RAW_BYTES = 16 * 2**20  # byte strings that are no tensor
VALUES = 1_000_000  # of lists that are written a second time, as sets and dicts
EXPANDED = 2**24  # elements of tensors that are larger than what is stored for them (stride 0)
SLACK_BYTES = 64 * 2**20  # tensors may share memory: four times the file, and this


def shown(value: object, most: int = 80) -> str:
    """A value of a file for a message: one line, printable, bounded.

    Example:
        >>> shown("a" * 200, 10), shown("x\\ny")
        ("'aaaaaaaaaa...'", "'x\\\\ny'")
    """
    if isinstance(value, str):
        return ascii(value if len(value) <= most else value[:most] + "...")
    if isinstance(value, bytes):
        return repr(value if len(value) <= most else value[:most] + b"...")
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):  # writing a very long number takes quadratic time
        return repr(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
    return type(value).__name__


def refused(
    where: str, reason: str, *, expected: str | None = None, todo: str | None = None
) -> ContractError:
    """The one way in which a weight file is turned away: the file and the reason are named."""
    return ContractError(
        "a weight file that is refused",
        expected=expected or "tensors and plain values; code in a file is never run",
        found=reason,
        where=where,
        todo=todo,
    )


class Budget:
    """What is left for one file while it is read.

    Args:
        where: Name of the file for messages.
        size: Its bytes.
    """

    def __init__(self, where: str, size: int) -> None:
        self.where = where
        self.opcodes = OPCODES
        self.text = TEXT_BYTES
        self.raw = RAW_BYTES
        self.values = VALUES
        self.expanded = EXPANDED
        self.tensors = 4 * size + SLACK_BYTES
        self.copied = size

    def spend(self, what: str, amount: int) -> None:
        """Take from one of the amounts above.

        Raises:
            ContractError: There is not that much left.
        """
        left: int = getattr(self, what) - amount
        setattr(self, what, left)
        if left < 0:
            raise refused(self.where, f"it declares more {what} than any weight file needs")
