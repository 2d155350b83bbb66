"""Every error that scopelake raises on purpose, as one tree.

    ScopelakeError
    |-- InvalidArgumentError          (ValueError)   an argument outside its domain
    |   `-- TooLittleMemoryError      what is asked does not fit into the memory given
    |-- LakeError
    |   |-- LakeNotFoundError         (FileNotFoundError)
    |   |-- NotALakeError
    |   |-- LakeExistsError           (FileExistsError)
    |   |-- LakeBusyError             other writers came first again and again
    |   |-- LostShardError            shards of an ingest are nowhere, or in part
    |   |-- DamagedFileError          a file is missing or not what was written
    |   |-- FormatVersionError        a lake of another format version
    |   |-- ObjectStoreError          (OSError)      an object store does not do as asked
    |   `-- SnapshotNotFoundError     (LookupError)
    |-- CorpusError
    |   |-- CorpusSourceError         unreadable, empty or malformed corpus file
    |   |-- CorpusExistsError
    |   `-- CorpusNotFoundError       (LookupError)
    |-- ModelError                    a model or tokenizer that cannot be used
    |-- HubError                      the hub did not give what was asked for
    |   `-- HubUnreachableError       it did not answer at all
    |-- CoderError
    |   |-- CoderFileError            missing or malformed coder files
    |   `-- CoderMismatchError        a coder that does not fit the model or site
    |-- LabelSourceError              unreadable, empty or malformed file of labels
    |-- ClusterError                  a dask cluster is lost, or has no worker
    |-- QueryError                    a statement that is refused or fails
    |   |-- SaeNotFoundError          (LookupError)
    |   |-- AmbiguousSaeError
    |   |-- LayerNotFoundError        (LookupError)
    |   |-- FeatureNotFoundError      (LookupError)
    |   |-- NotIngestedError          the SAE was not run there, or not yet
    |   `-- ContextNotFoundError      (LookupError)
    `-- MissingDependencyError        (ImportError)

A message is one line and says what was asked, what was found, and what to do.
"""

from __future__ import annotations


class ScopelakeError(Exception):
    """Base of all errors that scopelake raises on purpose."""


class InvalidArgumentError(ScopelakeError, ValueError):
    """An argument lies outside its domain."""


class TooLittleMemoryError(InvalidArgumentError):
    """What is to be done does not fit into the memory that was given."""


class LakeError(ScopelakeError):
    """The lake itself cannot be used as asked."""


class LakeNotFoundError(LakeError, FileNotFoundError):
    """There is nothing at the lake's path."""


class NotALakeError(LakeError):
    """The folder is not a lake."""


class LakeExistsError(LakeError, FileExistsError):
    """A lake, or other files, are already there."""


class LakeBusyError(LakeError):
    """Other writers came first again and again."""


class WriterLostError(LakeError):
    """A process that wrote files ended before it had."""


class LostShardError(LakeError):
    """Shards of an ingest, or parts, are neither in the lake nor known to have failed."""


class DamagedFileError(LakeError):
    """A file of the lake is missing, or its bytes are not those that were written."""


class FormatVersionError(LakeError):
    """The lake was written in a format that this version does not read."""


class ObjectStoreError(LakeError, OSError):
    """An object store does not answer, or refuses."""


class SnapshotNotFoundError(LakeError, LookupError):
    """The lake has no such snapshot."""


class CorpusError(ScopelakeError):
    """A corpus cannot be used as asked."""


class CorpusSourceError(CorpusError):
    """A corpus file is missing, unreadable, empty or malformed."""


class CorpusExistsError(CorpusError):
    """A corpus of that name is there already."""


class CorpusNotFoundError(CorpusError, LookupError):
    """The lake has no such corpus."""


class ModelError(ScopelakeError):
    """A model or tokenizer cannot be used as asked."""


class HubError(ScopelakeError):
    """The Hugging Face hub did not give what was asked for."""


class HubUnreachableError(HubError):
    """The hub did not answer, and what was asked for is not in its local cache."""


class CoderError(ScopelakeError):
    """A coder cannot be used as asked."""


class CoderFileError(CoderError):
    """A coder's files are missing or malformed."""


class CoderMismatchError(CoderError):
    """A coder does not fit the model or the site."""


class LabelSourceError(ScopelakeError):
    """A file of labels is missing, unreadable, empty or malformed."""


class ClusterError(ScopelakeError):
    """A dask cluster cannot be used, or was lost on the way."""


class QueryError(ScopelakeError):
    """A statement was refused or failed."""


class SaeNotFoundError(QueryError, LookupError):
    """The lake holds no codes of such an SAE."""


class AmbiguousSaeError(QueryError):
    """More than one SAE fits what was asked."""


class LayerNotFoundError(QueryError, LookupError):
    """The lake holds no codes of that layer."""


class FeatureNotFoundError(QueryError, LookupError):
    """The SAE has no such feature."""


class NotIngestedError(QueryError):
    """The SAE was not run on the corpus, or its ingest has not come so far."""


class ContextNotFoundError(QueryError, LookupError):
    """The corpus has no such context or position."""


class MissingDependencyError(ScopelakeError, ImportError):
    """An optional package is needed and not installed."""


class DamageWarning(UserWarning):
    """A lake was changed although something that it names is lost; `verify` says what."""


class PartialWarning(UserWarning):
    """An answer is of firings of which not all were kept."""


class ShardWarning(UserWarning):
    """Shards of an ingest failed every time and were set aside; the others are in the lake."""


class EncoderWarning(UserWarning):
    """Encoding, or putting firings in order, is slower than it could be here."""


class CoderWarning(UserWarning):
    """A coder loads, but is not what Gemma Scope 2 publishes or does not come as it should."""
