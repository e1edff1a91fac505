"""Files on a shared file system: the suite on tmpfs and on disk, kill -9, a full disk, a file system that hangs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from kvstore.errors import ConfigError, DeadlineExceeded, NotFound, Unavailable
from kvstore.testing.engines import EngineConformance, content
from kvstore.tiers.base import TierFull
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.posix import PosixEngine

WRITER = Path(__file__).with_name("posix_writer.py")


class PosixConformance(EngineConformance):
    """The suite, with a named pipe in the place of a file as what hangs: opening it waits for a writer."""

    root: Path
    synced = False

    def make_engine(self) -> Engine:
        return PosixEngine(self.root, synced=self.synced, spare=16)

    def another(self) -> Engine:
        return self.make_engine()


class TestOnDisk(PosixConformance):
    synced = True

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.root = tmp_path


class TestOnTmpfs(PosixConformance):
    @pytest.fixture(autouse=True)
    def _folder(self) -> Iterator[None]:
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("no tmpfs at /dev/shm")
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            self.root = Path(folder)
            yield


def path_in(engine: PosixEngine, name: str) -> Path:
    return Path(os.fsdecode(engine._path(name)))


def pipe_at(engine: PosixEngine, name: str) -> Path:
    """A named pipe where an object would be. Opening it to read waits for a writer, as a hung server's file would."""
    path = path_in(engine, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


@contextmanager
def freed(*pipes: Path) -> Iterator[None]:
    """Let whoever waits for these pipes go on at the end, however it comes."""
    try:
        yield
    finally:
        for pipe in pipes:
            os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))


def test_a_hung_read_is_left_and_its_thread_replaced(tmp_path: Path) -> None:
    with closing(PosixEngine(tmp_path, threads=2, spare=2)) as engine:
        engine.put("there", [content(1, 1000)], 10)
        pipes = [pipe_at(engine, f"hangs/{i}") for i in range(4)]
        out = content(2, 10)
        before = bytes(out)
        with freed(*pipes):
            for number in range(3):
                with pytest.raises(DeadlineExceeded, match="did not answer in time"):
                    engine.read_into(f"hangs/{number}", 0, out, 0.1)
                assert engine.hung == number + 1
                engine.read_into("there", 0, content(3, 1000), 10)
            with pytest.raises(DeadlineExceeded):
                engine.heads(["there", "hangs/3"], 10, 0.1)
            assert engine.hung == 4
            with pytest.raises(Unavailable, match="4 calls hang"):
                engine.read_into("there", 0, content(3, 1000), 10)
        wait_until(lambda: engine.hung == 0)
        again = content(4, 1000)
        engine.read_into("there", 0, again, 10)
        assert again == content(1, 1000)
        assert out == before


def test_waiting_calls_get_a_thread_when_all_hang(tmp_path: Path) -> None:
    with closing(PosixEngine(tmp_path, threads=1, spare=1)) as engine:
        engine.put("there", [content(1, 1000)], 10)
        pipe, outcome = pipe_at(engine, "hangs"), list[object]()

        def hang() -> None:
            with pytest.raises(DeadlineExceeded):
                engine.read_into("hangs", 0, content(1, 10), 0.3)

        def wait() -> None:
            engine.read_into("there", 0, content(1, 1000), 30)
            outcome.append("read")

        with freed(pipe):
            threads = [threading.Thread(target=hang), threading.Thread(target=wait)]
            threads[0].start()
            time.sleep(0.05)
            threads[1].start()
            for thread in threads:
                thread.join()
        assert outcome == ["read"]


def test_a_put_that_was_left_is_whole_or_not_there(tmp_path: Path) -> None:
    """Deadlines anywhere in a put; its memory is used for something else as soon as it is left."""
    late = 0
    with closing(PosixEngine(tmp_path)) as engine:
        wholes = [content(seed, 8 << 20) for seed in range(2)]
        kept = [bytes(whole) for whole in wholes]
        for number in range(60):
            source = memoryview(bytearray(kept[number % 2]))
            try:
                engine.put(f"n/{number}", [source], number * 0.0002)
            except DeadlineExceeded:
                late += 1
            source[:] = bytes(len(source))
        wait_until(lambda: engine.hung == 0)
        found = dict(engine.list(""))
        for name in found:
            out = content(0, 8 << 20)
            engine.read_into(name, 0, out, 10)
            assert out == kept[int(name.removeprefix("n/")) % 2], name
    assert late > 5
    assert not list((tmp_path / "~~tmp").iterdir())


def test_kill_9_between_write_and_link(tmp_path: Path) -> None:
    with closing(PosixEngine(tmp_path)) as engine:
        child = subprocess.Popen([sys.executable, str(WRITER), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        with child.stdout:
            acknowledged = int(child.stdout.readline())
            while acknowledged < 20:
                acknowledged = int(child.stdout.readline())
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            said = child.stdout.read().split()
            acknowledged = int(said[-1]) if said else acknowledged
        found = dict(engine.list(""))
        assert acknowledged + 1 <= len(found) <= acknowledged + 2
        for name, nbytes in found.items():
            number = int(name.removeprefix("n/"))
            whole = content(number, 200_000)
            assert nbytes == 200_000
            out = content(0, 200_000)
            engine.read_into(name, 0, out, 10)
            assert out == whole


def test_what_a_killed_writer_left_is_swept_when_it_is_old(tmp_path: Path) -> None:
    with closing(PosixEngine(tmp_path)) as engine:
        old, new = tmp_path / "~~tmp" / "other-1-0", tmp_path / "~~tmp" / "other-1-1"
        old.write_bytes(b"half")
        new.write_bytes(b"half")
        hours_ago = time.time() - 7200
        os.utime(old, (hours_ago, hours_ago))
        assert list(engine.list("")) == []
        with closing(PosixEngine(tmp_path)) as again:
            assert again.swept == 1
        assert not old.exists()
        assert new.exists()


def test_a_writer_whose_file_was_swept_says_so(tmp_path: Path) -> None:
    with closing(PosixEngine(tmp_path)) as engine:
        (tmp_path / "~~tmp").rmdir()
        with pytest.raises(Unavailable, match="is it mounted"):
            engine.put("a", [content(1, 10)], 10)
        assert not list(tmp_path.iterdir())


def test_a_full_file_system(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "tiny", "1m") as folder, closing(PosixEngine(folder)) as engine:
        assert engine.put("fits", [content(1, 400_000)], 10)
        with pytest.raises(TierFull, match=os.strerror(errno.ENOSPC)):
            engine.put("does-not", [content(2, 900_000)], 10)
        assert not list((folder / "~~tmp").iterdir())
        assert list(engine.list("")) == [("fits", 400_000)]
        engine.delete(["fits"], 10)
        assert engine.put("does-now", [content(2, 900_000)], 10)


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_folders_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder: mount"):
        PosixEngine(tmp_path / "absent")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="is no folder"):
        PosixEngine(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be used"):
        PosixEngine(Path("/proc/self"))


def test_a_root_that_hangs_is_refused_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mock: nothing here can make a folder itself hang."""
    release = threading.Event()
    monkeypatch.setattr(PosixEngine, "_open", lambda self: release.wait(30))
    with pytest.raises(Unavailable, match=r"did not answer within 0\.1 s"):
        PosixEngine(tmp_path, start_timeout_s=0.1)
    release.set()


def test_a_file_that_vanishes_is_a_miss(tmp_path: Path) -> None:
    with closing(PosixEngine(tmp_path)) as engine:
        engine.put("a", [content(1, 10)], 10)
        path_in(engine, "a").unlink()
        with pytest.raises(NotFound, match="reading a"):
            engine.read_into("a", 0, content(1, 10), 10)


def test_an_unreadable_file_is_an_error_and_no_miss(tmp_path: Path) -> None:
    with closing(PosixEngine(tmp_path)) as engine:
        engine.put("a", [content(1, 10)], 10)
        path_in(engine, "a").unlink()
        path_in(engine, "a").mkdir()
        with pytest.raises(OSError, match=os.strerror(errno.EISDIR)):
            engine.heads(["a"], 10, 10)


def wait_until(said: object) -> None:
    assert callable(said)
    deadline = time.monotonic() + 20
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.01)
