"""Hugging Face data sets as corpora: in memory, saved to a folder, or streamed from the hub.

A saved one is Arrow files and read as such; only the hub needs the package ``datasets``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from scopelake.errors import CorpusSourceError, InvalidArgumentError, MissingDependencyError
from scopelake.ingest.corpus_files import read_batches
from scopelake.ingest.documents import Document
from scopelake.ingest.records import Reading, to_document

HUB: Final = "hf://"
_SPEC: Final = re.compile(
    r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?::(?P<config>[\w.-]+))?"
    r"(?:/(?P<split>[\w.\[\]:%+-]+))?"
)
_STATE, _SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class RowsOfDataset:
    """The rows of a data set object; they are iterated, never all in memory."""

    rows: Iterable[Any]
    name: str
    """Begins the ids of rows that have none."""

    @property
    def where(self) -> str:
        """What it is, for messages."""
        return f"data set {self.name}"

    def documents(self, reading: Reading) -> Iterator[Document]:
        """Yield the document of each row.

        Raises:
            CorpusSourceError: a row is malformed, or there is none.
        """
        row = -1
        for row, record in enumerate(self.rows):
            yield to_document(record, f"{self.where} row {row}", f"{self.name}:{row}", reading)
        if row < 0:
            raise CorpusSourceError(f"{self.where} was asked for; it has no rows; leave it out")


@dataclass(frozen=True)
class SavedDataset:
    """A data set in a folder, as its ``save_to_disk`` leaves it."""

    folder: Path

    @property
    def where(self) -> str:
        """Its folder."""
        return str(self.folder)

    def documents(self, reading: Reading) -> Iterator[Document]:
        """Yield the document of each row.

        Raises:
            CorpusSourceError: a file is missing or damaged, a row malformed, or there is none.
        """
        return read_batches(self._batches(), self.where, self.folder.name, reading)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            state = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
            names = [file["filename"] for file in state["_data_files"]]
            for name in names:
                with pa.OSFile(str(self.folder / name)) as file, pa.ipc.open_stream(file) as stream:
                    for batch in stream:
                        # A batch of the writer's may be large: its rows come a few at a time.
                        yield from pa.Table.from_batches([batch]).to_batches(max_chunksize=1024)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise CorpusSourceError(
                f"{self.where} was asked for; it is no whole data set "
                f"({type(error).__name__}: {' '.join(str(error).split())}); save it again"
            ) from error


def is_dataset(source: object) -> bool:
    """Whether an object is a data set: it says its columns."""
    return hasattr(source, "column_names") and hasattr(source, "__iter__")


def from_object(dataset: Any) -> RowsOfDataset:  # noqa: ANN401
    """Return the rows of a ``Dataset`` or ``IterableDataset``.

    Raises:
        InvalidArgumentError: it is several, one a split.
    """
    if isinstance(dataset, Mapping):
        raise InvalidArgumentError(
            f"a data set of splits {', '.join(map(str, dataset))} was given; a corpus is made of "
            "one; give one of them, such as dataset['train']"
        )
    names = [getattr(dataset, "info", None), dataset]
    found = (str(getattr(one, what, "") or "") for one, what in
             zip(names, ("dataset_name", "split"), strict=True))  # fmt: skip
    return RowsOfDataset(dataset, "-".join(filter(None, found)) or "rows")


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a saved data set, or several of them as splits."""
    return any((folder / name).is_file() for name in (_STATE, _SPLITS))


def from_folder(folder: Path) -> SavedDataset:
    """Return the data set that was saved to a folder.

    Raises:
        CorpusSourceError: it is several, one a split.
    """
    if (folder / _SPLITS).is_file():
        splits = ", ".join(sorted(str(p.parent) for p in folder.glob(f"*/{_STATE}"))) or "none"
        raise CorpusSourceError(
            f"{folder} was asked for; it is a data set of several splits ({splits}), and a corpus "
            "is made of one; name the folder of one of them"
        )
    return SavedDataset(folder)


def from_hub(spec: str) -> RowsOfDataset:
    """Return the rows of a split of a data set of the hub, streamed.

    Args:
        spec: ``hf://<org>/<name>[@revision][:config][/split]``; the split is train by default.

    Raises:
        InvalidArgumentError: the spec is none.
        MissingDependencyError: without the package ``datasets``.
        CorpusSourceError: the hub has no such data set, or does not answer.
    """
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise InvalidArgumentError(
            f"{spec} was asked for; a data set of the hub is "
            f"{HUB}<org>/<name>[@revision][:config][/split]; write it so"
        )
    if find_spec("datasets") is None:
        raise MissingDependencyError(
            f"{spec} was asked for; the package datasets, which streams it, is not installed; run "
            "pip install 'scopelake[datasets]'"
        )
    import datasets  # slow to import, and needed for this alone

    split = found["split"] or "train"
    try:
        rows = datasets.load_dataset(
            found["repo"], found["config"], split=split, revision=found["revision"], streaming=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CorpusSourceError(
            f"{spec} was asked for; the hub does not give it ({' '.join(str(error).split())}); "
            "check the name, configuration and split, and HF_TOKEN if it is gated"
        ) from error
    return RowsOfDataset(rows, f"{found['repo'].partition('/')[2]}-{split}")
