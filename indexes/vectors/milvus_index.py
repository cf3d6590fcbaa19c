"""One segment's vectors on a Milvus server or in a milvus-lite file, for indexes that exceed one machine.

A segment is one partition of a collection. Milvus holds the vectors under int64 keys and nothing else; passages stay
in Arrow files.

Axes: N vectors in the segment, B queries, k results, d dimensions.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
from numpy.typing import ArrayLike, NDArray

from indexes.errors import DataError, MismatchError, RAGError, ResourceError, UsageError
from indexes.vectors.milvus_kinds import LITE_TYPES, milvus_properties, search_settings
from indexes.vectors.vector_store import (
    SearchResult,
    StoreConfig,
    StoreProperties,
    VectorStore,
    best_first,
    check_k,
    checked_matrix,
    checked_rows,
)

if TYPE_CHECKING:
    from pymilvus import MilvusClient

TOKEN_VARIABLE = "MILVUS_TOKEN"
_KEY, _VECTOR, _METRIC = "id", "vector", "IP"
# Keys are unique in a collection: the number of the segment, then the row in it.
_ROW_BITS = 40
_SEGMENTS = 2 ** (63 - _ROW_BITS)
# Milvus's own limits on the results of a query and on the queries of a request.
_MOST_RESULTS = 16_384
# A server accepts requests of 64 MiB by default; after a failure less of smaller ones is sent again.
_REQUEST_BYTES = 2**23
_REQUEST_RESULTS = 2**18
_PROBES = 1024
_CONNECT_SECONDS = 10.0


class MilvusIndex(VectorStore):
    """Vectors under the rows 0 to N - 1 of one segment, searched by inner product. Make one with `create` or `open`.

    A server (`http://host:19530`, or with a database `http://host:19530/name`) may be used from many processes at
    once, as long as only one of them adds to a segment. A local file (`vectors.db`, a folder of milvus-lite)
    belongs to the first process that opens it until that process closes it or ends; any other gets a
    `ResourceError`. Within a process all segments of one address share a connection, which does not survive a fork:
    open the index in the process that uses it.

    Only "FLAT" (and "GPU_BRUTE_FORCE") compares every vector. "AUTOINDEX" of milvus-lite is exact until `flush`, after
    which a graph is built in the background that finds most of the best; ask for "FLAT" where results must be exact.

    Vectors that `add` has sent are found by every later search (consistency level "Strong"). `flush` seals and indexes
    them, or the server does at a time of its own.
    """

    uses_host_memory = False

    def __init__(
        self, connection: "_Connection", collection: str, segment: int, *, dimension: int, factory: str, timeout: float
    ) -> None:
        """Wrap a partition that exists; use the constructors named above instead."""
        self._connection: _Connection | None = connection
        self._collection = collection
        self._segment = segment
        self._dimension = dimension
        self._factory = factory
        self._timeout = timeout
        self._rows = self._count_rows()

    @classmethod
    def create(
        cls,
        uri: str | Path,
        collection: str,
        segment: int,
        dimension: int,
        *,
        index_type: str = "AUTOINDEX",
        index_parameters: Mapping[str, Any] | None = None,
        token: str | None = None,
        timeout: float = 60.0,
    ) -> "MilvusIndex":
        """Create an empty segment, and the collection with the first one.

        Args:
            uri: `http(s)://host:port`, or the path of a local file that ends in ".db", made if it is not there.
            collection: Letters, digits and underscores. All its segments have one dimension and one kind of index.
            segment: Its number in the collection. Milvus allows 1,023 segments by default.
            dimension: d.
            index_type: "AUTOINDEX", "FLAT", "HNSW", "IVF_FLAT", ... as Milvus names them; "FLAT" for exact results.
            index_parameters: Of the index, such as {"M": 16, "efConstruction": 200}; only the first segment sets them.
            token: "user:password" or an API key; None reads the environment variable MILVUS_TOKEN. Never stored.
            timeout: Seconds that the server may take for one request.

        Raises:
            UsageError: A name or number is not valid, the segment exists already, or the server refuses the index.
            MismatchError: The collection exists with another dimension, metric or kind of index.
            ResourceError: The library is missing, or the server cannot be reached, refuses the token or fails.
        """
        _check_names(collection, segment)
        connection = _connect(uri, token)
        try:
            connection.make_collection(collection, dimension, index_type, dict(index_parameters or {}), timeout)
            with connection.asking(f"make segment {segment} of {collection!r}"):
                if connection.client.has_partition(collection, _partition(segment), timeout=timeout):
                    raise UsageError(
                        f"A new segment needs a number of its own, but segment {segment} of the collection "
                        f"{collection!r} exists. Open it to continue, or drop it."
                    )
                connection.client.create_partition(collection, _partition(segment), timeout=timeout)
                connection.client.load_collection(collection)
            factory = cls.factory_name(index_type)
            return cls(connection, collection, segment, dimension=dimension, factory=factory, timeout=timeout)
        except BaseException:
            connection.release()
            raise

    @classmethod
    def open(
        cls, uri: str | Path, collection: str, segment: int, *, token: str | None = None, timeout: float = 60.0
    ) -> "MilvusIndex":
        """Open a segment that `create` made, to search it or to add to it.

        Args:
            uri: As in `create`.
            collection: As in `create`.
            segment: As in `create`.
            token: As in `create`.
            timeout: As in `create`. Loading the collection into the server's memory may take longer.

        Raises:
            UsageError: A name or number is not valid.
            MismatchError: The file, collection or segment is missing, or it was not made by `create`.
            ResourceError: As in `create`.
        """
        _check_names(collection, segment)
        if _is_file(uri) and not Path(uri).exists():
            raise MismatchError(f"A file of vectors must exist, but {uri} does not. Build the index again.")
        connection = _connect(uri, token)
        try:
            dimension, index_type = connection.describe(collection, timeout)
            with connection.asking(f"open segment {segment} of {collection!r}"):
                if not connection.client.has_partition(collection, _partition(segment), timeout=timeout):
                    raise MismatchError(
                        f"The collection {collection!r} must have segment {segment}, but it does not. Build the index "
                        "again."
                    )
                connection.client.load_collection(collection)
            factory = cls.factory_name(index_type)
            return cls(connection, collection, segment, dimension=dimension, factory=factory, timeout=timeout)
        except BaseException:
            connection.release()
            raise

    @classmethod
    def segments(
        cls, uri: str | Path, collection: str, *, token: str | None = None, timeout: float = 60.0
    ) -> list[int]:
        """The numbers of the segments that a collection has, ascending; none where there is no such collection.

        Args:
            uri: As in `create`.
            collection: As in `create`.
            token: As in `create`.
            timeout: As in `create`.

        Raises:
            UsageError: A name is not valid.
            ResourceError: As in `create`.
        """
        _check_names(collection, 0)
        if _is_file(uri) and not Path(uri).exists():
            return []
        connection = _connect(uri, token)
        try:
            with connection.asking(f"list the segments of {collection!r}"):
                return connection.segments(collection, timeout)
        finally:
            connection.release()

    def __enter__(self) -> "MilvusIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._rows

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        return self._dimension

    @property
    def factory(self) -> str:
        """What kind of index this is, such as "Milvus(HNSW)"."""
        return self._factory

    @property
    def properties(self) -> StoreProperties:
        """What this index type returns and how it searches (`milvus_kinds`)."""
        return milvus_properties(self.index_type)

    @property
    def index_type(self) -> str:
        """As Milvus names it, such as "HNSW"."""
        return _index_type(self._factory)

    def add(self, vectors_nd: ArrayLike) -> None:
        """Append vectors; they get the next rows.

        An interrupted add has stored the first of its vectors, or none: open the segment again and continue after
        `len` of them. Sending the same rows twice is harmless: they replace each other.

        Args:
            vectors_nd: float32 [n, d].

        Raises:
            UsageError: The segment would hold more than 2^40 vectors.
            MismatchError: The vectors have another dimension.
            DataError: A vector is not finite.
            ResourceError: The server cannot be reached or fails.
        """
        matrix_nd = self._matrix(vectors_nd)
        if len(self) + len(matrix_nd) > 2**_ROW_BITS:
            raise UsageError(f"A segment holds at most {2**_ROW_BITS:,} vectors. Put the rest into another one.")
        for batch_nd in _split(matrix_nd, _REQUEST_BYTES // matrix_nd.itemsize // self.dimension):
            first = self._first_key + len(self)
            entities = [{_KEY: first + i, _VECTOR: vector} for i, vector in enumerate(batch_nd)]
            with self._asking("add vectors to") as client:
                client.upsert(
                    self._collection, entities, partition_name=_partition(self._segment), timeout=self._timeout
                )
            self._rows += len(batch_nd)

    def flush(self) -> None:
        """Seal the added vectors, so that they are on disk and get indexed; call it once, after the last `add`.

        The server seals all segments of the collection at once, and by default not twice in ten seconds; this call
        waits for it. If several segments are built at the same time, one call is enough.

        Raises:
            ResourceError: The server cannot be reached or fails.
        """
        with self._asking("seal") as client:
            client.flush(self._collection)

    def search(self, queries_Bd: ArrayLike, k: int, *, parameters: str | None = None) -> SearchResult:
        """The k nearest vectors of each query, best first; equal scores are ordered by row.

        Args:
            queries_Bd: float32 [B, d].
            k: How many results per query, at most 16,384: Milvus gives no more and no further pages.
            parameters: How to search, such as "ef=64" or "nprobe=32", by the names and ranges of the index type
                (`milvus_kinds`); "ef" and other numbers of candidates below k are raised to k. None leaves them
                to the server.

        Returns:
            Scores, float32 [B, k], and rows, int64 [B, k]. Where fewer than k vectors are found, the rest has the row
            -1 and the score -inf. Which of several equal scores are the last results depends on the server.

        Raises:
            UsageError: k is out of range, or a parameter is not of this index type or out of its range.
            MismatchError: The queries have another dimension.
            ResourceError: The server cannot be reached or fails.
        """
        check_k(k, _MOST_RESULTS)
        settings = search_settings(parameters, self.index_type, k, is_lite=self._open_connection.is_lite)
        queries = self._matrix(queries_Bd)
        scores_Bk = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows_Bk = np.full((len(queries), k), -1, dtype=np.int64)
        most = min(_REQUEST_BYTES // queries.itemsize // self.dimension, _REQUEST_RESULTS // k, _MOST_RESULTS)
        query = 0
        for batch_Bd in _split(queries, most):
            for hits in self._hits(batch_Bd, k, settings):
                found = len(hits.ids)
                scores_Bk[query, :found] = hits.distances
                rows_Bk[query, :found] = np.asarray(hits.ids, dtype=np.int64) - self._first_key
                query += 1
        return best_first(scores_Bk, rows_Bk)

    def _hits(self, queries_Bd: NDArray[np.float32], k: int, settings: dict[str, float]) -> Any:
        """Milvus's answer to one request: for each query its keys (`ids`) and scores (`distances`)."""
        # A request with parameters that is refused is most likely refused for them.
        with self._asking("search", refusal=UsageError if settings else ResourceError) as client:
            return client.search(
                self._collection,
                data=list(queries_Bd),
                anns_field=_VECTOR,
                limit=k,
                partition_names=[_partition(self._segment)],
                search_params={"metric_type": _METRIC, "params": settings},
                output_fields=[_KEY],  # without any, milvus-lite sends the vectors as well
                consistency_level="Strong",
                timeout=self._timeout,
            )

    def reconstruct(self, rows: ArrayLike, /) -> NDArray[np.float32]:
        """The vectors in these rows, exactly as they were added.

        Args:
            rows: int64 [n], in any order, also more than once.

        Returns:
            float32 [n, d].

        Raises:
            DataError: A row is not in the segment.
            ResourceError: The server cannot be reached or fails.
        """
        wanted = checked_rows(rows, len(self))
        distinct, where = np.unique(wanted, return_inverse=True)
        vectors_nd = np.empty((len(distinct), self.dimension), dtype=np.float32)
        most = min(_REQUEST_BYTES // vectors_nd.itemsize // self.dimension, _MOST_RESULTS)
        start = 0
        for batch in _split(distinct, most):
            stored = self._get(batch, _VECTOR)
            for row in batch.tolist():
                if row not in stored:
                    raise self._missing(row)
            vectors_nd[start : start + len(batch)] = [stored[row] for row in batch.tolist()]
            start += len(batch)
        return vectors_nd[where]

    def drop(self) -> None:
        """Delete the segment on the server, and the collection with its last segment; then close.

        Raises:
            ResourceError: The server cannot be reached or fails.
        """
        partition = _partition(self._segment)
        connection = self._open_connection
        with self._asking("drop") as client:
            if connection.is_lite:
                client.drop_partition(self._collection, partition, timeout=self._timeout)
            else:
                client.release_partitions(self._collection, partition, timeout=self._timeout)
                client.drop_partition(self._collection, partition, timeout=self._timeout)
            if not connection.segments(self._collection, self._timeout):
                client.drop_collection(self._collection, timeout=self._timeout)
        self.close()

    def close(self) -> None:
        """Release the connection; a second call does nothing. The last segment of a local file closes the file as well.

        This waits until milvus-lite has built the indexes of sealed vectors.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    # -- an index directory --------------------------------------------------------------------------------------

    @classmethod
    def new_options(cls, options: Mapping[str, str]) -> dict[str, str]:
        """The address, and a new collection, so that no two indexes share one.

        Raises:
            UsageError: The options do not name the address.
        """
        if "uri" not in options:
            raise UsageError(
                'Vectors in Milvus need the address of a server or file, but the options have no "uri". Give '
                'milvus="http://host:19530" (--milvus).'
            )
        uri = options["uri"]
        return {"uri": str(Path(uri).resolve()) if "://" not in uri else uri, "collection": f"rag_{uuid4().hex}"}

    @classmethod
    def choose_factory(cls, passages: int, dimension: int, *, memory: int | None) -> tuple[str, str]:
        """AUTOINDEX, with which Milvus chooses an approximate index."""
        return "AUTOINDEX", "Milvus chooses an approximate index; FLAT would search exactly"

    @classmethod
    def factory_name(cls, factory: str) -> str:
        """An index type as the manifest records it: "Milvus(HNSW)"."""
        return f"Milvus({_index_type(factory)})"

    @classmethod
    def build_bytes(cls, config: StoreConfig, n: int) -> int:
        """None: the server holds the vectors."""
        return 0

    @classmethod
    def disk_bytes(cls, config: StoreConfig, n: int) -> int:
        """None: the server keeps the vectors."""
        return 0

    @classmethod
    def write_segment(
        cls, directory: Path, folder: Path, config: StoreConfig, blocks: Iterable[NDArray[np.float32]]
    ) -> None:
        """Send the vectors of a segment that the server does not have yet."""
        uri, collection, number = config.options["uri"], config.options["collection"], int(folder.name)
        if number in cls.segments(uri, collection):
            index = cls.open(uri, collection, number)
        else:
            index = cls.create(uri, collection, number, config.dimension, index_type=_index_type(config.factory))
        with index:
            there = len(index)  # from a build that was interrupted
            for block_nd in blocks:
                if there < len(block_nd):
                    index.add(block_nd[there:])
                there = max(there - len(block_nd), 0)
            index.flush()

    @classmethod
    def open_segments(
        cls, folders: Sequence[Path], config: StoreConfig, *, mmap: bool | None = None
    ) -> list[VectorStore]:
        """Open the partitions of segments; `mmap` has no meaning on a server."""
        return [cls.open(config.options["uri"], config.options["collection"], int(folder.name)) for folder in folders]

    @classmethod
    def keep_only(cls, config: StoreConfig, names: Set[str]) -> None:
        """Drop the partitions of all segments but these; readers of older versions lose the others at once."""
        uri, collection, kept = config.options["uri"], config.options["collection"], set(map(int, names))
        for number in cls.segments(uri, collection):
            if number not in kept:
                cls.open(uri, collection, number).drop()

    @property
    def _first_key(self) -> int:
        return self._segment << _ROW_BITS

    @property
    def _open_connection(self) -> "_Connection":
        if self._connection is None:
            raise UsageError(f"Segment {self._segment} of {self._collection!r} is closed. Open it again to use it.")
        return self._connection

    @contextmanager
    def _asking(self, verb: str, *, refusal: type[RAGError] = ResourceError) -> "Iterator[MilvusClient]":
        connection = self._open_connection
        with connection.asking(f"{verb} segment {self._segment} of {self._collection!r}", refusal=refusal):
            yield connection.client

    def _get(self, rows: NDArray[np.int64], field: str) -> dict[int, Any]:
        """A field of the entities in these rows, by row; missing rows are left out."""
        with self._asking("read") as client:
            entities = client.get(
                self._collection,
                ids=(rows + self._first_key).tolist(),
                output_fields=[field],
                partition_names=[_partition(self._segment)],
                consistency_level="Strong",
                timeout=self._timeout,
            )
        return {entity[_KEY] - self._first_key: entity[field] for entity in entities}

    def _count_rows(self) -> int:
        """N. Rows are stored in order without gaps, so a few probes find the end; Milvus would read all of them."""
        low, high = 0, 2**_ROW_BITS
        while low < high:
            probes = np.arange(low, high, -(-(high - low) // _PROBES), dtype=np.int64)
            stored = self._get(probes, _KEY)
            last = max(stored, default=-1)
            low, high = max(low, last + 1), min([high, *(row for row in probes.tolist() if row > last)])
        return low

    def _missing(self, row: int) -> DataError:
        return DataError(f"The row {row} is not in the index, which holds {len(self)} vectors.")

    def _matrix(self, vectors: ArrayLike) -> NDArray[np.float32]:
        return checked_matrix(vectors, self.dimension)


def _index_type(factory: str) -> str:
    """The index type of a factory string such as "Milvus(HNSW)", or "HNSW" as the caller of `build_index` names it."""
    return factory.removeprefix("Milvus(").removesuffix(")")


class _Connection:
    """The client of this process for an address, closed with its last segment."""

    def __init__(self, address: str, client: "MilvusClient", shut: Callable[[], None]) -> None:
        self.address = address
        self.client = client
        self.users = 0
        self._shut = shut
        with self.asking("say its version"):
            self.is_lite = str(client.get_server_version(timeout=_CONNECT_SECONDS)).startswith("milvus_lite")

    @contextmanager
    def asking(self, doing: str, *, refusal: type[RAGError] = ResourceError) -> Iterator[None]:
        """Translate the library's errors: a refusal into the given type, a missing answer into a ResourceError."""
        grpc, pymilvus = _libraries()
        try:
            yield
        except (grpc.RpcError, pymilvus.MilvusException) as error:
            if _failed_call(error) is not None:
                raise _unreachable(self.address, doing, error) from error
            raise refusal(
                f"Milvus at {self.address} must be able to {doing}, but it reports: {error.message}."
            ) from error

    def segments(self, collection: str, timeout: float) -> list[int]:
        if not self.client.has_collection(collection, timeout=timeout):
            return []
        names = self.client.list_partitions(collection, timeout=timeout)
        return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"segment_(\d+)", name)))

    def describe(self, collection: str, timeout: float) -> tuple[int, str]:
        """The dimension and the kind of index of a collection that `make_collection` made."""
        with self.asking(f"describe the collection {collection!r}"):
            if not self.client.has_collection(collection, timeout=timeout):
                raise MismatchError(
                    f"Milvus at {self.address} must have the collection {collection!r}, but it does not. Build "
                    "the index again, or name the server that it was built on."
                )
            fields = self.client.describe_collection(collection, timeout=timeout)["fields"]
            index = self.client.describe_index(collection, _VECTOR, timeout=timeout) or {}
        dimension = next((int(f["params"].get("dim", 0)) for f in fields if f["name"] == _VECTOR), 0)
        if [f["name"] for f in fields] != [_KEY, _VECTOR] or not dimension or index.get("metric_type") != _METRIC:
            raise MismatchError(
                f"The collection {collection!r} must have the fields {_KEY!r} and {_VECTOR!r} and compare by "
                f"{_METRIC}, but it has {[f['name'] for f in fields]} and compares by {index.get('metric_type')}. "
                "Use a collection of its own for every index."
            )
        return dimension, str(index["index_type"])

    def make_collection(
        self, collection: str, dimension: int, index_type: str, parameters: dict[str, Any], timeout: float
    ) -> None:
        """Create the collection, or check that an existing one matches."""
        if self.is_lite and index_type not in LITE_TYPES:
            raise UsageError(f"milvus-lite needs an index type of {', '.join(LITE_TYPES)}, but got {index_type!r}.")
        with self.asking(f"look for the collection {collection!r}"):
            exists = self.client.has_collection(collection, timeout=timeout)
        if not exists:
            return self._new_collection(collection, dimension, index_type, parameters, timeout)
        found = self.describe(collection, timeout)
        if found != (dimension, index_type):
            raise MismatchError(
                f"The collection {collection!r} holds vectors of {found[0]} dimensions in an index {found[1]!r}, but "
                f"got {dimension} and {index_type!r}. Use the encoder and the index type that it was built with, or "
                "another collection."
            )

    def _new_collection(
        self, collection: str, dimension: int, index_type: str, parameters: dict[str, Any], timeout: float
    ) -> None:
        _, pymilvus = _libraries()
        doing = f"make a collection of {dimension} dimensions with the index {index_type!r} and {parameters}"
        with self.asking(doing, refusal=UsageError):
            schema = pymilvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field(_KEY, pymilvus.DataType.INT64, is_primary=True)
            schema.add_field(_VECTOR, pymilvus.DataType.FLOAT_VECTOR, dim=dimension)
            index = pymilvus.MilvusClient.prepare_index_params()
            # pymilvus puts them beside the index type, where Milvus looks, but milvus-lite looks under "params".
            placed = {"params": parameters} if self.is_lite else parameters
            index.add_index(_VECTOR, index_type=index_type, metric_type=_METRIC, params=placed)
            # One shard keeps the order of the rows, so that an interrupted add leaves no gaps.
            self.client.create_collection(
                collection, schema=schema, num_shards=1, consistency_level="Strong", timeout=timeout
            )
            try:
                # The collection is empty, so there is nothing to wait for.
                self.client.create_index(collection, index, timeout=timeout, sync=False)
            except BaseException:
                self.client.drop_collection(collection, timeout=timeout)
                raise

    def release(self) -> None:
        """Count one user less and close the connection after the last."""
        with _connections_lock:
            self.users -= 1
            if self.users == 0:
                _connections.pop(next(key for key, value in _connections.items() if value is self))
                self._shut()


_connections: dict[tuple[str, str], _Connection] = {}
_connections_lock = threading.Lock()


def _connect(uri: str | Path, token: str | None) -> _Connection:
    """The connection to this address, counted with one user more."""
    key = _address(uri, token)
    with _connections_lock:
        if key not in _connections:
            _connections[key] = _open_file(Path(key[0])) if _is_file(key[0]) else _open_server(*key)
        _connections[key].users += 1
        return _connections[key]


def _address(uri: str | Path, token: str | None) -> tuple[str, str]:
    """The address to connect to, and the token for it."""
    if _is_file(uri):
        return str(Path(uri).resolve()), ""
    parts = urlsplit(str(uri))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            'The address of vectors in Milvus must be like "http://host:19530" or the path of a local file that ends '
            f'in ".db", but got {str(uri)!r}.'
        )
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"The address of a Milvus server is stored with the index, so it must not hold a password. Put the token "
            f"into the environment variable {TOKEN_VARIABLE}, as user:password, and only {parts.hostname} into the "
            "address."
        )
    return str(uri), os.environ.get(TOKEN_VARIABLE, "") if token is None else token


def _open_server(uri: str, token: str, shut: Callable[[], None] | None = None) -> _Connection:
    grpc, pymilvus = _libraries()
    # A file is served on this machine, where an http_proxy must not be used.
    options = {} if shut is None else {"grpc.enable_http_proxy": 0}
    try:
        client = pymilvus.MilvusClient(
            uri=uri, token=token, timeout=_CONNECT_SECONDS, dedicated=True, grpc_options=options
        )
    except (grpc.RpcError, pymilvus.MilvusException) as error:
        raise _unreachable(uri, "connect", error) from error

    def close() -> None:
        client.close()
        if shut is not None:
            shut()

    try:
        return _Connection(uri, client, close)
    except BaseException:
        client.close()
        raise


def _open_file(path: Path) -> _Connection:
    _libraries()
    try:
        from milvus_lite.exceptions import DataDirLockedError
        from milvus_lite.server_manager import server_manager_instance
    except ImportError as error:
        raise _no_library("milvus-lite") from error
    if not path.parent.is_dir():
        raise UsageError(f"A file of vectors must lie in a folder that exists, but {path.parent} does not. Make it.")
    if path.is_file():
        raise MismatchError(
            f"{path} must be a database of milvus-lite 3, which is a folder, but it is a file. Build the index again."
        )
    with _logged_errors("milvus_lite.server_manager") as errors:
        address = server_manager_instance.start_and_get_uri(str(path))
    if address is not None:
        return _open_server(address, "", lambda: server_manager_instance.release_server(str(path)))
    reason = errors[0] if errors else "no reason given"
    if isinstance(reason, DataDirLockedError):
        raise ResourceError(
            f"{path} can be open in one process only, but another one has it. Close that one, or run a Milvus server "
            "and name its address."
        )
    raise ResourceError(f"milvus-lite must be able to open {path}, but it reports: {reason}.")


@contextmanager
def _logged_errors(logger: str) -> Iterator[list[BaseException]]:
    """Collect the exceptions that a library logs instead of raising them."""
    errors: list[BaseException] = []

    def keep(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            errors.append(error)
        return error is None

    logging.getLogger(logger).addFilter(keep)
    try:
        yield errors
    finally:
        logging.getLogger(logger).removeFilter(keep)


def _libraries() -> tuple[Any, Any]:
    """The modules grpc and pymilvus, which take a second to import and are only needed by an index on Milvus."""
    try:
        import grpc
        import pymilvus
    except ImportError as error:
        raise _no_library("pymilvus") from error
    # It also logs every error that it raises, with a traceback.
    logging.getLogger("pymilvus.decorators").setLevel(logging.CRITICAL)
    return grpc, pymilvus


def _no_library(name: str) -> ResourceError:
    return ResourceError(f"Vectors in Milvus need the library {name}, which is missing: pip install dro-rag[milvus].")


def _unreachable(address: str, doing: str, error: Exception) -> ResourceError:
    call = _failed_call(error)
    status = "no answer in time" if call is None else call.code().name
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ResourceError(
            f"The Milvus server at {address} must accept the token to {doing}, but it refuses it. Put another one, as "
            f"user:password or an API key, into the environment variable {TOKEN_VARIABLE}."
        )
    return ResourceError(
        f"The Milvus server at {address} must answer to {doing}, but it does not ({status}). Check the address, and "
        "that the server runs."
    )


def _failed_call(error: Exception) -> Any:
    """The gRPC call that failed, where that is the reason; pymilvus raises it, or its own error because of it."""
    grpc, _ = _libraries()
    # Its wrappers re-raise an error as its own cause, so the call may be in the context only.
    chain = (error, error.__cause__, error.__context__)
    return next((link for link in chain if isinstance(link, grpc.RpcError) and isinstance(link, grpc.Call)), None)


def _check_names(collection: str, segment: int) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", collection):
        raise UsageError(
            "The name of a collection must be letters, digits and underscores, at most 255 and no digit first, but "
            f"got {collection!r}."
        )
    if not 0 <= segment < _SEGMENTS:
        raise UsageError(f"The number of a segment must be from 0 to {_SEGMENTS - 1:,}, but got {segment}.")


def _is_file(uri: str | Path) -> bool:
    return "://" not in str(uri) and str(uri).endswith(".db")


def _partition(segment: int) -> str:
    return f"segment_{segment}"


def _split(array: NDArray[Any], most: int) -> Iterator[NDArray[Any]]:
    """Blocks of an array in order, of at most `most` rows and at least one."""
    for start in range(0, len(array), max(1, most)):
        yield array[start : start + max(1, most)]
