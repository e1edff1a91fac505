"""`python -m kvstore.bench.peers.install [FOLDER]`: an environment for each system that needs one of its own.

Exact versions are in the `requirements-*.txt` beside this file, so that a table can be made again. They ship with
the package: whoever has kvstore can run the comparison. Debian packages are installed where apt-get and the right
to use it are at hand, and named otherwise. What is there already is left alone; what fails is told and skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from kvstore.bench.peers.systems import default_envs

HERE = Path(__file__).parent
# One list of pip arguments per step. LMCache names CUDA packages that it does not need here, hence --no-deps.
ENVIRONMENTS: dict[str, list[list[str]]] = {
    "redis": [["requirements-redis.txt"]],
    "mooncake": [["requirements-mooncake.txt"]],
    "lmcache": [["requirements-torch.txt"], ["--no-deps", "requirements-lmcache.txt"]],
}
# The program or library that shows whether a Debian package is there.
PACKAGES = {"redis-server": "redis-server", "libibverbs1": "libibverbs.so.1"}
READY = ".ready"


def install(folder: Path) -> list[str]:
    """Make what is missing under `folder`; a line for each thing that could not be made."""
    troubles = _packages()
    for name, steps in ENVIRONMENTS.items():
        made = folder / name
        wanted = "\n".join((HERE / step[-1]).read_text(encoding="utf-8") for step in steps)
        ready = made / READY
        if ready.exists() and ready.read_text(encoding="utf-8") == wanted:
            continue
        print(f"installing {name} into {made}", file=sys.stderr, flush=True)
        if _venv(made) and all(_pip(made, step) for step in steps):
            ready.write_text(wanted, encoding="utf-8")
        else:
            shutil.rmtree(made, ignore_errors=True)
            troubles.append(f"{name} could not be installed; its systems will be skipped")
    return troubles


def _venv(made: Path) -> bool:
    try:
        venv.EnvBuilder(with_pip=True, clear=True).create(made)
    except (subprocess.CalledProcessError, OSError) as error:  # a Python without ensurepip, a folder not ours
        print(error, file=sys.stderr)
        return False
    return True


def _pip(made: Path, step: list[str]) -> bool:
    *flags, file = step
    command = [str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return subprocess.run([*command, *flags, "--requirement", str(HERE / file)], check=False).returncode == 0


def _packages() -> list[str]:
    missing = [package for package, sign in PACKAGES.items() if not _there(sign)]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=60"]
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run([*apt, "update"], env=quiet, check=False)
        subprocess.run(
            [*apt, "install", "--yes", "--no-install-recommends", *missing], env=quiet, check=False, stdout=2
        )
        missing = [package for package in missing if not _there(PACKAGES[package])]
    return [f"{package} is missing: apt-get install {package}" for package in missing]


def _there(sign: str) -> bool:
    if ".so." not in sign:
        return shutil.which(sign) is not None
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False)
    return sign in listed.stdout


def main() -> None:
    """Install; the benchmark itself says what it had to skip, so trouble here is not an error."""
    for trouble in install(Path(sys.argv[1]) if len(sys.argv) > 1 else default_envs()):
        print(trouble, file=sys.stderr)


if __name__ == "__main__":
    main()
