"""The lab's own file formats: initramfs, image tar, boot sectors, firewall plans."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import tarfile

import pytest
import yaml

from lab import cpio, debian, firewall, guest, kvm, testbox, testdisk


def test_a_cpio_archive_is_what_the_cpio_format_says(tmp_path):
    """Headers, names and padding are read back by walking the archive."""
    archive = cpio.Archive()
    archive.file("etc/a/hello", b"hello", 0o755)
    archive.symlink("bin/sh", "/bin/busybox")

    found = dict(walk_cpio(archive.finish()))

    assert found == {
        "etc": (0o040755, b""),
        "etc/a": (0o040755, b""),
        "etc/a/hello": (0o100755, b"hello"),
        "bin": (0o040755, b""),
        "bin/sh": (0o120777, b"/bin/busybox"),
        "TRAILER!!!": (0, b""),
    }


def walk_cpio(data):
    offset = 0
    while offset < len(data):
        assert data[offset : offset + 6] == b"070701"
        fields = [int(data[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        name_end = offset + 110 + fields[11]
        name = data[offset + 110 : name_end - 1].decode()
        start = (name_end + 3) // 4 * 4
        yield name, (fields[1], data[start : start + fields[6]])
        offset = (start + fields[6] + 3) // 4 * 4


def test_the_initramfs_lists_its_modules_in_loading_order():
    """/init loads what the list names, in that order, and is executable."""
    data = guest.build_initrd(b"BB", ["bin/sh"], [("virtio", b"1"), ("virtio_pci", b"2")])

    found = dict(walk_cpio(gzip.decompress(data)))

    assert found["lib/modules/order"][1] == b"virtio\nvirtio_pci\n"
    assert found["init"][0] == 0o100755
    assert data == guest.build_initrd(b"BB", ["bin/sh"], [("virtio", b"1"), ("virtio_pci", b"2")])


@pytest.mark.parametrize("name", ["init", "etc/acpi/PWRF/00000080", "etc/udhcpc.script"])
def test_the_guest_scripts_are_valid_shell(name):
    """A shell parses each without complaint."""
    done = subprocess.run(
        ["sh", "-n"], input=guest.FILES[name][0], text=True, capture_output=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_modules_come_after_what_they_depend_on():
    """Dependencies are found through dependencies, each once."""
    depends = {"net": ["failover", "virtio"], "failover": ["core"], "virtio": [], "core": []}

    assert guest.load_order(["net", "virtio"], depends) == ["core", "failover", "virtio", "net"]


def test_a_module_names_its_dependencies():
    """The .modinfo section is read straight from the file."""
    content = b"\x7fELF..\0license=GPL\0depends=virtio-ring,virtio\0name=x\0"

    assert guest.module_depends(content) == ["virtio_ring", "virtio"]
    assert guest.module_depends(b"\0depends=\0") == []
    assert guest.module_name("virtio-rng.ko.xz") == "virtio_rng"


def test_the_image_is_the_same_bytes_for_the_same_busybox():
    """So its digest tells whether Docker has it already."""
    applets = ["bin/sh", "usr/sbin/httpd"]

    first, second = testbox.build(b"BB", applets), testbox.build(b"BB", applets)

    assert first == second
    assert testbox.digest(first) != testbox.digest(testbox.build(b"BC", applets))
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert tar.getmember("usr/sbin/httpd").linkname == "/bin/busybox"
        assert tar.getmember("tmp").mode == 0o1777


def test_the_kvm_probe_is_one_bootable_sector():
    """512 bytes with the boot signature, the exit value in its code."""
    sector = kvm.boot_sector()

    assert len(sector) == 512
    assert sector[510:] == b"\x55\xaa"
    assert bytes([0xB0, kvm.DEBUG_EXIT_VALUE, 0xE6, kvm.DEBUG_EXIT_PORT]) in sector


def test_the_partition_table_names_one_bootable_partition():
    """It begins at 1 MiB and fills the disk."""
    table = testdisk.partition_table(b"\x90" * 440)

    assert len(table) == 512
    assert table[446] == 0x80
    start, size = (int.from_bytes(table[i : i + 4], "little") for i in (454, 458))
    assert (start * 512, (start + size) * 512) == (1 << 20, testdisk.DISK_MIB << 20)


RULES = """-P INPUT ACCEPT
-P FORWARD DROP
-N DOCKER
-N DOCKER-USER
-N MINE
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth1 -j MINE
-A DOCKER-USER -j RETURN""".splitlines()


def test_only_dockers_rules_are_taken_out_of_the_firewall():
    """References go before chains; another's chain and rule stay."""
    assert firewall.forward_policy(RULES) == "DROP"
    assert firewall.removals(RULES) == [
        ["-D", "FORWARD", "-j", "DOCKER-USER"],
        ["-D", "FORWARD", "-o", "docker0", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED",
         "-j", "ACCEPT"],
        ["-F", "DOCKER"],
        ["-F", "DOCKER-USER"],
        ["-X", "DOCKER"],
        ["-X", "DOCKER-USER"],
    ]  # fmt: skip


def test_a_debian_disk_begins_with_grub_before_its_partition():
    """GRUB's first sector, the partition's place in it, and the core from the second sector on."""
    made = debian.boot_sectors(b"\xeb\x63" + bytes(510), b"\x52core" + bytes(1000), 4096)

    assert made[:2] == b"\xeb\x63"
    assert made[446] == 0x80, "bootable"
    assert (made[450], struct.unpack_from("<II", made, 454)) == (0x83, (2048, 4096))
    assert made[510:517] == b"\x55\xaa\x52core"


def test_a_debian_guest_is_told_to_start_the_agent_by_user_data_alone():
    """By the unit that the documentation gives, from the seed disk."""
    said = yaml.safe_load(debian.user_data())

    assert debian.user_data().startswith("#cloud-config\n")
    (unit,) = said["write_files"]
    assert "swarmctl agent --seed /dev/disk/by-label/cidata" in unit["content"]
    assert said["runcmd"][0][-1] == unit["path"].rpartition("/")[2]
