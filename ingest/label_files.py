"""Files of labels: CSV, Parquet, JSON lines, and the explanations that Neuronpedia exports."""

from __future__ import annotations

import csv
import glob
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from scopelake.errors import CorpusSourceError, InvalidArgumentError, LabelSourceError
from scopelake.ingest.compressed import COMPRESSED_SUFFIXES, opened, without_compression
from scopelake.names import is_text

FEATURE_COLUMNS: Final = ("feature", "index")
LABEL_COLUMNS: Final = ("label", "description")
"""Where a feature and its label are looked for, in turn."""

LABEL_SUFFIXES: Final = (".csv", ".jsonl", ".ndjson", ".parquet")

_NEURONPEDIA: Final = frozenset({"modelId", "layer", "index", "description"})
"""Keys that a row of Neuronpedia's exports has, and only such a row."""

_LAYER: Final = re.compile(r"(\d{1,9})-")
"""How Neuronpedia names sources: ``12-gemmascope-res-16k``."""

_COLUMNS: Final = (
    *FEATURE_COLUMNS, *LABEL_COLUMNS, "sae", "source", "modelId", "layer", "typeName",
    "explanationModelName",
)  # fmt: skip
"""All that is read of a Parquet file: exports also have embeddings."""

_WHOLE: Final = re.compile(r"-?\d{1,18}")
"""What 64 bits hold: Python refuses to read numbers of thousands of digits."""
_BATCH: Final = 10_000

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """The model and layer that an explanation of Neuronpedia's is of."""

    model: str
    source: str
    """Its name of the coder, such as ``12-gemmascope-res-16k``."""
    layer: int


@dataclass(frozen=True)
class Labelled:
    """A label as a file gives it."""

    where: str
    """File and line, for messages."""
    feature: int
    """As the file counts: of Neuronpedia's in its layer."""
    label: str
    source: str
    """Who gave it, by default the name of the file."""
    sae: str | None = None
    """The coder that the row names."""
    origin: Origin | None = None


def find_label_files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files that are named: files, folders of such files, or patterns.

    Raises:
        LabelSourceError: there is none, or one is of another kind.
        InvalidArgumentError: it is no path and no list of paths.
    """
    named = [source] if isinstance(source, (str, Path)) else source
    if not isinstance(named, Sequence) or not all(isinstance(one, (str, Path)) for one in named):
        raise InvalidArgumentError(
            f"labels in {source!r} were asked for; it is of type {type(source).__name__}; give a "
            "path, or a list of paths"
        )
    found = [path for one in named for path in _found(Path(one))]
    if not found:
        raise LabelSourceError(
            f"labels in {source!r} were asked for; no files are named; name one at least"
        )
    return list(dict.fromkeys(found))


def _found(path: Path) -> list[Path]:
    if path.is_file():
        if not _is_known(path):
            raise LabelSourceError(
                f"labels in {path} were asked for; its suffix is {path.suffix or 'none'!r}; give "
                f"one of {', '.join(LABEL_SUFFIXES)}, also with {', '.join(COMPRESSED_SUFFIXES)}"
            )
        return [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and _is_known(p))
    else:
        files = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        files = [p for p in files if _is_known(p)]
    if not files:
        what = "a folder without" if path.is_dir() else "no folder, and it matches no"
        raise LabelSourceError(
            f"labels in {path} were asked for; it is no file, {what} files of "
            f"{', '.join(LABEL_SUFFIXES)}; check the path"
        )
    return files


def _is_known(path: Path) -> bool:
    return without_compression(path).suffix.lower() in LABEL_SUFFIXES


def read_labels(paths: Sequence[Path]) -> Iterator[Labelled]:
    """Yield the labels of files, in order.

    Raises:
        LabelSourceError: a file cannot be read, holds none, or has a row without feature or label.
    """
    for path in paths:
        n = 0
        for where, row in _rows(path):
            yield _labelled(row, where, without_compression(path).stem)
            n += 1
        if not n:
            raise LabelSourceError(
                f"labels in {path} were asked for; it has none; leave it out, or fill it"
            )


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield where each row of a file is, and the row."""
    suffix = without_compression(path).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(path)
            return
        with opened(path, str(path)) as stream:
            text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
            yield from _csv_rows(path, text) if suffix == ".csv" else _json_rows(path, text)
    except CorpusSourceError as error:
        raise LabelSourceError(str(error)) from error
    except (UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise LabelSourceError(
            f"labels in {path} were asked for; it cannot be read "
            f"({' '.join(str(error).split())}); make it again as UTF-8 {suffix.lstrip('.')}"
        ) from error


def _csv_rows(path: Path, text: io.TextIOWrapper) -> Iterator[tuple[str, Row]]:
    reader = csv.DictReader(text, strict=True)
    _check_once(str(path), reader.fieldnames or ())
    for row in reader:
        where = f"{path} line {reader.line_num}"
        if None in row:
            raise LabelSourceError(
                f"{where} was to be read; it has more fields than the header; quote labels with "
                "commas in them"
            )
        yield where, row


def _json_rows(path: Path, text: io.TextIOWrapper) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line, object_pairs_hook=partial(_object, where))
        except ValueError as error:
            raise LabelSourceError(
                f"{where} was to be read; it is no JSON ({error}); mend it"
            ) from error
        if not isinstance(row, dict):
            raise LabelSourceError(
                f"{where} was to be read; it is no object but of type {type(row).__name__}; give "
                "an object a line"
            )
        yield where, row


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_once(where, [name for name, _ in pairs])
    return dict(pairs)


def _check_once(where: str, names: Sequence[str]) -> None:
    """Refuse names that come twice: which of the two is meant, nobody can say."""
    repeated = [name for name, n in Counter(names).items() if n > 1]
    if repeated:
        raise LabelSourceError(
            f"{where} was to be read; it has {', '.join(map(repr, repeated))} more than once; "
            "give each column a name of its own"
        )


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    if path.suffix.lower() in COMPRESSED_SUFFIXES:
        raise LabelSourceError(
            f"labels in {path} were asked for; a Parquet file is compressed inside; unpack it"
        )
    number = 0
    with pq.ParquetFile(path) as file:
        _check_once(str(path), file.schema_arrow.names)
        names = [n for n in file.schema_arrow.names if n in _COLUMNS]
        others = [n for n in file.schema_arrow.names if n not in _COLUMNS]
        for batch in file.iter_batches(_BATCH, columns=names):
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", {**row, **dict.fromkeys(others)}


def _labelled(row: Row, where: str, stem: str) -> Labelled:
    is_theirs = row.keys() >= _NEURONPEDIA
    feature = _key(row, FEATURE_COLUMNS if not is_theirs else ("index",), where)
    label = _key(row, LABEL_COLUMNS if not is_theirs else ("description",), where)
    text = row[label]
    if not isinstance(text, str) or not text.strip() or not is_text(text):
        raise LabelSourceError(
            f"{where} was to be read; its {label!r} is {_shown(text)}, which is no label; give "
            "text, or leave the row out"
        )
    origin = _origin(row, where) if is_theirs else None
    source = _their_source(row) if is_theirs else _optional(row, "source", where) or stem
    sae = None if is_theirs else _optional(row, "sae", where)
    return Labelled(where, _number(row[feature], feature, where), text, source, sae, origin)


def _key(row: Row, names: Sequence[str], where: str) -> str:
    """Return which of `names` a row has."""
    for name in names:
        if name in row:
            return name
    raise LabelSourceError(
        f"{where} was to be read; it has {', '.join(map(str, row)) or 'no columns'}, but no "
        f"{' or '.join(map(repr, names))}; a row needs a feature and a label: name its columns so"
    )


def _number(value: object, name: str, where: str) -> int:
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise LabelSourceError(
        f"{where} was to be read; its {name!r} is {_shown(value)}, which is no feature; give a "
        "whole number"
    )


def _optional(row: Row, name: str, where: str) -> str | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not is_text(value):
        raise LabelSourceError(
            f"{where} was to be read; its {name!r} is {_shown(value)}, which is no text; give text"
        )
    return value


def _origin(row: Row, where: str) -> Origin:
    model, source = row["modelId"], row["layer"]
    found = _LAYER.match(source) if isinstance(source, str) else None
    if not isinstance(model, str) or found is None:
        raise LabelSourceError(
            f"{where} was to be read; its 'modelId' is {_shown(model)} and its 'layer' "
            f"{_shown(source)}; Neuronpedia's explanations name a model and a source such as "
            "'12-gemmascope-res-16k'; give those, or columns feature and label"
        )
    return Origin(model, source, int(found[1]))


def _their_source(row: Row) -> str:
    parts = (row.get("typeName"), row.get("explanationModelName"))
    return "/".join(["neuronpedia", *(part for part in parts if isinstance(part, str) and part)])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
