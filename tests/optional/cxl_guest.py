"""Runs test_cxl_hardware.py in a QEMU guest with two NUMA nodes without processors and two DAX devices.

    python tests/optional/cxl_guest.py [FOLDER [kvm]]

Needs qemu-system-x86_64, ndctl, cpio and kmod of Debian, and fetches its kernel and a static busybox as packages
into FOLDER (a temporary one). The guest sees this machine's files, read-only, and runs the tests with this Python.
The nodes are guest memory, the devices NVDIMMs over files: what they show is that the interfaces are used right.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "nfit", "nd_pmem", "dax_pmem", "device_dax")
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for each in {modules}; do modprobe $each || echo "no module $each"; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=1048576,cache=loose host /host
mount --rbind /proc /host/proc; mount --rbind /sys /host/sys; mount --rbind /dev /host/dev
mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm; mount -t tmpfs tmp /host/tmp
ip link set lo up
chroot /host /bin/sh -c '
    for each in namespace0.0 namespace1.0; do
        ndctl create-namespace --force --mode=devdax --reconfig=$each >/dev/null
    done
    cd {root}; export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PYTHONDONTWRITEBYTECODE=1
    export KVSTORE_TEST_DAX=/dev/dax0.0:/dev/dax1.0
    {python} -m pytest -p no:cacheprovider -q -s --timeout 600 tests/optional/test_cxl_hardware.py
    echo "guest ended: $?"'
poweroff -f
"""


def fetch(folder: Path) -> Path:
    """Debian's kernel and busybox, unpacked; the kernel's image."""
    told = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=True)
    kernel = next(line.split()[1] for line in told.stdout.splitlines() if "Depends: linux-image" in line)
    subprocess.run(["apt-get", "download", kernel, "busybox-static"], cwd=folder, check=True, capture_output=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder / "files"], check=True)
    return next((folder / "files" / "boot").glob("vmlinuz-*"))


def make_initrd(folder: Path, release: str) -> Path:
    """A file system of busybox and the modules that are needed until the host's files are there."""
    tree, files = folder / "initrd", folder / "files"
    for name in ("bin", "proc", "sys", "dev", "host"):
        (tree / name).mkdir(parents=True)
    shutil.copy(next(files.rglob("bin/busybox")), tree / "bin" / "busybox")
    shutil.copytree(files / "lib" / "modules" / release, tree / "lib" / "modules" / release)
    subprocess.run(["depmod", "-b", tree, release], check=True)
    init = tree / "init"
    init.write_text(INIT.format(modules=" ".join(MODULES), root=ROOT, python=sys.executable))
    init.chmod(0o755)
    image = folder / "initrd.img"
    command = f"cd {tree} && find . | cpio --quiet -o -H newc | gzip -1 > {image}"
    subprocess.run(command, shell=True, check=True)
    return image


def start(folder: Path, kernel: Path, initrd: Path, accelerator: str = "tcg") -> int:
    """Run the guest; the exit status of its tests."""
    command = [
        "qemu-system-x86_64", "-accel", accelerator, "-machine", "q35,nvdimm=on", "-cpu", "max", "-smp", "2",
        "-m", "2560M,slots=4,maxmem=8G", "-nographic", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd),
        "-append", "console=ttyS0 loglevel=4 panic=-1",
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
    ]  # fmt: skip
    for node, size, cpus in ((0, "1536M", ",cpus=0-1"), (1, "512M", ""), (2, "512M", "")):
        command += ["-object", f"memory-backend-ram,id=m{node},size={size}"]
        command += ["-numa", f"node,nodeid={node},memdev=m{node}{cpus}"]
    for number in range(2):
        path = folder / f"nvdimm-{number}"
        with path.open("wb") as file:
            file.truncate(256 << 20)
        command += ["-object", f"memory-backend-file,id=p{number},share=on,mem-path={path},size=256M,align=128M"]
        command += ["-device", f"nvdimm,id=n{number},memdev=p{number}"]
    status = 1
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
    ) as qemu:
        assert qemu.stdout is not None
        for line in qemu.stdout:
            print(line, end="", flush=True)
            if "guest ended: " in line:
                status = int(line.split("guest ended: ")[1].split()[0])
    return status


def main() -> int:
    """Everything, in a folder."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="kvstore-cxl-guest-"))
    folder.mkdir(parents=True, exist_ok=True)
    for program in ("qemu-system-x86_64", "ndctl", "cpio", "depmod"):
        if shutil.which(program, path=os.environ["PATH"] + ":/sbin:/usr/sbin") is None:
            print(f"needs {program}: apt-get install qemu-system-x86 ndctl cpio kmod")
            return 2
    kernel = fetch(folder)
    initrd = make_initrd(folder, kernel.name.removeprefix("vmlinuz-"))
    return start(folder, kernel, initrd, sys.argv[2] if len(sys.argv) > 2 else "tcg")


if __name__ == "__main__":
    sys.exit(main())
