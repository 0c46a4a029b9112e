"""What the lab would install, and how it reads apt and os-release."""

from __future__ import annotations

import argparse

import pytest

from lab import fetch, libvirt, packages
from lab.__main__ import parts_of
from lab.config import PARTS


def names(parts, there):
    return [need.package for need in packages.plan(parts, there)]


def test_a_machine_that_has_everything_needs_nothing():
    """Nothing is installed twice, whatever package it came from."""
    assert names(PARTS, lambda _: True) == []


def test_an_empty_machine_gets_each_package_once():
    """A package that two parts want is named once."""
    planned = names(PARTS, lambda _: False)

    assert len(planned) == len(set(planned))
    assert {"docker.io", "libvirt-daemon-system", "qemu-utils", "libvirt-dev"} <= set(planned)


def test_only_what_the_chosen_parts_need_is_planned():
    """`--only docker` brings no QEMU."""
    assert names(["docker"], lambda _: False) == ["docker.io", "iptables"]


def test_etcd_brings_its_server_alone():
    """`--only etcd` installs the program, and nothing that would talk to it."""
    assert names(["etcd"], lambda _: False) == ["etcd-server"]


def test_ovn_brings_what_hosts_need():
    """The switch, OVN's both halves, and the tools beside them."""
    planned = names(["ovn"], lambda _: False)

    assert planned[:3] == ["openvswitch-switch", "ovn-central", "ovn-host"]
    assert {"ethtool", "tcpdump"} <= set(planned)


def test_docker_from_elsewhere_is_kept():
    """Where a dockerd is there, Debian's package would fight with its own."""
    assert "docker.io" not in names(["docker"], lambda thing: thing == "dockerd")


def test_any_alternative_meets_a_need():
    """A machine with libvirt's split daemons needs no libvirtd."""
    assert "libvirt-daemon-system" not in names(["libvirt"], lambda thing: thing == "virtqemud")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dlstatus:1:43.2:Retrieving file 3 of 9", "downloading, 43 %"),
        ("pmstatus:qemu-utils:61.5:Installing qemu-utils (amd64)", "installing qemu-utils, 62 %"),
        ("pmstatus:libc6:amd64:7.1:Unpacking libc6", "installing libc6, 7 %"),
        ("pmconffile:/etc/x:50.0:'a' 'b' 1 0", None),
        ("garbage", None),
        ("", None),
    ],
)
def test_apt_status_lines_become_words(line, words):
    """Real percentages from apt's pipe; anything else says nothing."""
    assert packages.parse_status(line) == words


def test_os_release_is_read_with_and_without_quotes():
    """Both spellings occur."""
    text = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n# no\nID_LIKE='a b'\n"

    release = packages.parse_os_release(text)

    assert release == {"PRETTY_NAME": "Debian GNU/Linux 12", "ID": "debian", "ID_LIKE": "a b"}


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (packages.Distribution("Fedora 40", False, False, True), "Fedora 40 is not Debian"),
        (packages.Distribution("Debian 12", True, True, False), "needs root"),
        (packages.Distribution("Debian 12", True, True, True), None),
    ],
)
def test_the_reason_why_nothing_can_be_installed_is_named(here, words):
    """Another distribution and a missing root each say so; a Debian root may go on."""
    reason = packages.blocker(here)

    assert reason is None if words is None else words in (reason or "")


def test_package_lists_are_stale_when_missing_or_old(tmp_path):
    """No lists at all, or lists of last month, call for an update."""
    assert packages.lists_are_stale(tmp_path)
    (tmp_path / "deb_main_Packages.lz4").touch()
    now = tmp_path.stat().st_mtime

    assert not packages.lists_are_stale(tmp_path, now=now + 60)
    assert packages.lists_are_stale(tmp_path, now=now + 30 * 86400)


def test_a_policy_that_is_there_stays_and_ours_goes(tmp_path):
    """The machine's own policy-rc.d is never replaced; the lab's is gone afterwards."""
    policy = tmp_path / "policy-rc.d"
    with packages.no_daemon_starts(policy):
        assert policy.read_text() == packages.POLICY_TEXT
    assert not policy.exists()

    policy.write_text("#!/bin/sh\nexit 0\n")
    with packages.no_daemon_starts(policy):
        pass

    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_the_real_kernel_package_is_found_behind_the_meta_package():
    """apt-cache names it as the dependency."""
    text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n"

    assert fetch.kernel_package(text) == "linux-image-6.1.0-56-cloud-amd64"
    assert fetch.kernel_package("") is None


def test_virsh_versions_are_read_and_a_library_alone_is_not_a_daemon():
    """The client's library answers without a daemon: that is not running."""
    text = (
        "Compiled against library: libvirt 9.0.0\nUsing library: libvirt 9.0.0\n"
        "Using API: QEMU 9.0.0\nRunning hypervisor: QEMU 7.2.22\n"
    )

    assert libvirt.parse_versions(text) == "9.0.0, QEMU 7.2.22"
    assert libvirt.parse_versions(text.partition("Running")[0]) is None


def test_parts_are_checked_and_ordered():
    """`--only` takes any order and refuses what it does not know."""
    assert parts_of("image, docker") == ("docker", "image")
    for wrong in ("", "dokcer", "docker,podman"):
        with pytest.raises(argparse.ArgumentTypeError, match="choose from docker"):
            parts_of(wrong)
