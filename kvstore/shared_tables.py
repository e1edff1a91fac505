"""What clients on the host may see of the index in memory that they share with the server: one table per namespace.

A table holds the chunks of which every part is there in an exact copy, for specs without sliding windows. It is
made when it is first asked for, so that a store that nobody shares pays nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from kvstore import _native
from kvstore.catalog import Catalog, Namespace, Scope
from kvstore.errors import Closed, StorageError
from kvstore.namespace import namespace_digest

ROWS_AT_ONCE = 512  # entered under the lock, some 0.1 ms


class SharedTables:
    """The tables of a store, by namespace. `lock` is the store's.

    `extents_epoch` grows whenever an extent comes or goes.
    """

    def __init__(
        self,
        index: _native.Index,
        catalog: Catalog,
        lock: _native.Mutex,
        max_chunks: int,
        extents_epoch: Callable[[], int],
    ) -> None:
        self._index, self._catalog, self._lock = index, catalog, lock
        self._extents_epoch = extents_epoch
        self._max_chunks = max_chunks
        self._tables: dict[bytes, _native.SharedTable] = {}
        self._attached: set[int] = set()
        self._making = threading.Lock()
        self._closed = False
        self._withheld: frozenset[str] = frozenset()

    def share(self, namespace: Namespace) -> tuple[int, int]:
        """A descriptor of a namespace's table (the caller closes it), and its length; takes the lock.

        `StorageError` where there is no memory for it.
        """
        with self._making:
            if self._closed:
                raise Closed("the store is closed")
            table = self._tables.get(namespace.digest)
            if table is None:
                table = self._make(namespace)
            try:
                return os.dup(table.fileno()), table.nbytes
            except OSError as error:
                raise StorageError(f"no descriptor for the shared index: {error.strerror}") from error

    def table(self, namespace: Namespace) -> _native.SharedTable | None:
        """A namespace's table, if it was ever asked for."""
        return self._tables.get(namespace.digest)

    def attach(self, scope: Scope) -> None:
        """Keep a scope's chunks in its namespace's table, if there is one. Needs the lock."""
        table = self._tables.get(scope.namespace.digest)
        if table is not None and not scope.windowed and scope.number not in self._attached:
            self._index.publish_to(scope.number, table, scope.spec.digest, len(scope.parts))
            self._attached.add(scope.number)

    def beat(self) -> None:
        """Tell readers that this process is alive; they ask otherwise when they have not heard of it for 2 s.

        Where extents have come or gone since, they ask once and learn which.
        """
        for table in list(self._tables.values()):
            table.beat()
            table.set_extents(self._extents_epoch())

    def withhold(self, namespaces: frozenset[str]) -> None:
        """Have readers of these namespaces, and of no others, ask for everything instead of reading the table."""
        with self._making:
            if self._closed:
                return
            self._withheld = namespaces
            withheld = {namespace_digest(name) for name in namespaces}
            for digest, table in self._tables.items():
                (table.withhold if digest in withheld else table.open)()

    def close(self) -> None:
        """Tell readers that the tables say nothing any more. A second call does nothing."""
        with self._making:
            self._closed = True
            for table in self._tables.values():
                table.close()

    def _make(self, namespace: Namespace) -> _native.SharedTable:
        try:
            table = _native.SharedTable(self._max_chunks)
        except OSError as error:
            raise StorageError(f"no memory for a shared index of {self._max_chunks} chunks: {error}") from error
        with self._lock:
            self._tables[namespace.digest] = table
            for scope in self._catalog.scopes:
                if scope.namespace is namespace:
                    self.attach(scope)
        row = 0
        while row >= 0:
            with self._lock:
                row = self._index.publish_rows(row, ROWS_AT_ONCE)
        table.beat()
        table.set_extents(self._extents_epoch())
        if namespace.name not in self._withheld:
            table.open()
        return table
