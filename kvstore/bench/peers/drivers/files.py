"""Plain files, one per chunk: written under another name and renamed, read with one `preadv` into the target."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .driver import EXISTS, Bytes, Driver
from .loop import main


class Files(Driver):
    """A folder on the local disk (`where` = disk), which the page cache holds, or on tmpfs (`where` = tmpfs)."""

    does = ("get", "put", "exists")

    def open(self) -> None:
        """Make the folder."""
        tmpfs = self.job.options["where"] == "tmpfs"
        self._folder = Path("/dev/shm", self.job.tag) if tmpfs else Path(self.job.folder, "files")
        self._folder.mkdir()
        self.stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        self.mode = "tmpfs" if tmpfs else "page cache"
        self.note = "write, rename; open, preadv, close; no fsync" + ("" if tmpfs else ", nothing read from the disk")

    def store(self, key: str, data: Bytes) -> None:
        """Write and rename, as any cache on files must so that nobody reads half a chunk."""
        path = self._folder / key
        part = f"{path}.part"
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            left = data.data
            while left:
                left = left[os.write(handle, left) :]
        finally:
            os.close(handle)
        os.rename(part, path)

    def load(self, key: str, target: Bytes) -> None:
        """Read into the caller's memory."""
        handle = os.open(self._folder / key, os.O_RDONLY)
        try:
            done = 0
            while done < target.nbytes:
                read = os.preadv(handle, [target.data[done:]], done)
                if not read:
                    raise EOFError(f"{key} has {done} of {target.nbytes} bytes")
                done += read
        finally:
            os.close(handle)

    def forget(self, key: str) -> None:
        """Unlink."""
        os.unlink(self._folder / key)

    def prepare_exists(self) -> None:
        """Name the files."""
        self._names = [f"{self._folder}/k{i}" for i in range(EXISTS)]

    def exists(self) -> int:
        """One `stat` each."""
        return sum(map(os.path.exists, self._names))


if __name__ == "__main__":
    main(Files)
