"""The lab's hosts: names and numbers that are taken, and what stands in the way is said."""

import argparse

import pytest

from lab import hosts
from lab.__main__ import host_count, lab_name, parse
from lab.faults import LabFault


def test_names_become_parts_of_namespaces():
    """Letters and digits, and few: a socket's path has 107 characters."""
    assert lab_name("demo") == "demo"
    for bad in ("", "a-b", "../x", "x" * 13, "é"):
        with pytest.raises(argparse.ArgumentTypeError):
            lab_name(bad)


def test_the_number_of_hosts_is_bounded():
    """From one to what the network between them has addresses for."""
    assert host_count("2") == 2
    for bad in ("0", "-1", "201", "two"):
        with pytest.raises(argparse.ArgumentTypeError):
            host_count(bad)


def test_two_hosts_are_the_default():
    """`lab hosts up` makes the demo's."""
    chosen = parse(["hosts", "up"])

    assert (chosen.action, chosen.name, chosen.count) == ("up", "demo", 2)


def test_what_is_missing_is_named(monkeypatch):
    """With the command that brings it; without root, that it needs root."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("lab.procs.which", lambda name: None if name == "ovn-northd" else name)
    with pytest.raises(LabFault, match="ovn-northd missing") as caught:
        hosts.require()
    assert caught.value.hint == "python3 -m lab up --only ovn"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabFault, match="need root"):
        hosts.require()


def test_addresses_and_folders_are_each_hosts_own():
    """Nothing is shared but the lab's name."""
    made = hosts.Hosts("x", 3)

    assert len({host.address for host in made.hosts} | {hosts.CENTRAL_ADDRESS}) == 4
    assert [host.place.namespace for host in made.hosts] == ["swl-x-h1", "swl-x-h2", "swl-x-h3"]
