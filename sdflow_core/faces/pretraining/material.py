"""What a pretraining is given: the files of a source, and a label CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdflow_core.records.errors import ContractError, NotFoundError
from sdflow_core.records.sources import SourceFolder, SourceItem, open_source
from sdflow_core.records.store import Store

File = tuple[str, Callable[[], bytes]]


def open_material(source: str, labels: str, store: Store | None = None) -> tuple[list[File], bytes]:
    """List the files of a source and read its labels.

    Args:
        source: Folder or prefix of pictures.
        labels: Address of the label CSV. It may lie among the pictures, and is none of them then.
        store: For addresses inside it.

    Returns:
        Files as (name, function that reads the bytes), sorted by name, and the bytes of the label CSV.

    Raises:
        ContractError: The labels are no single file, or the source is one.
        NotFoundError: There is no such source, or no such file of labels.
    """
    table = open_source(labels, store)
    try:
        listed = list(table.list())
    except NotFoundError:
        raise NotFoundError(
            "there is no such label CSV", where=labels, todo="check the address of the labels"
        ) from None
    if len(listed) != 1 or listed[0].name.endswith("/"):
        raise ContractError("the label CSV is no file", expected="the address of one CSV file", found=labels)
    folder = open_source(source, store)
    found = list(folder.list())
    if len(found) == 1 and (found[0].uri == folder.uri or Path(folder.uri).is_file()):
        raise ContractError(
            "the source is a file",
            expected="a folder of face pictures: a folder a person, or flat",
            where=source,
            todo="name the folder that the pictures lie in",
        )
    items = [item for item in found if item.uri != listed[0].uri]
    return [(item.name, _reader(folder, item)) for item in items], table.read(listed[0])


def _reader(folder: SourceFolder, item: SourceItem) -> Callable[[], bytes]:
    return lambda: folder.read(item)
