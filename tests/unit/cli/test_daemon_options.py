"""Options of the daemons, and how they tell their starter how they are."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from swarmctl.cli import daemon_options, dev, logs, process
from swarmctl.proto.errors import Conflict, InvalidSpec, NotFound, StorageFault

FILES = [f"--ovn-{name}=/nowhere" for name in ("private-key", "certificate", "ca-cert")]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7077", "tcp://127.0.0.1:7077"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        ("[::1]:7077", "tcp://[::1]:7077"),
    ],
)
def test_an_address_is_host_and_port(text: str, address: str):
    """The scheme may be left out."""
    assert daemon_options.listen_address(text) == address


@pytest.mark.parametrize("text", ["7077", "host", "host:", ":1", "host:70777", "udp://host:1", ""])
def test_a_bad_address_is_refused_with_an_example(text: str):
    """Port alone, host alone, a port that is none, another scheme."""
    with pytest.raises(InvalidSpec, match="not an address") as refused:
        daemon_options.listen_address(text)

    assert "tcp://127.0.0.1:7077" in refused.value.hint


def test_what_is_listened_on_everywhere_is_advertised_by_an_address():
    """Nobody can connect to 0.0.0.0; an exact address is told as it is."""
    [address] = daemon_options.reachable(["tcp://0.0.0.0:7077"])

    assert not address.startswith("tcp://0.0.0.0")
    assert address.endswith(":7077")
    assert daemon_options.reachable(["tcp://127.0.0.1:7077"]) == ()
    with pytest.raises(InvalidSpec, match="port 0"):
        daemon_options.reachable(["tcp://0.0.0.0:0"])


def test_amounts_have_units_where_people_have_them():
    """Cpus in thousandths, memory in bytes, anything else counted."""
    assert daemon_options.amount("--capacity", "cpus=1.5") == ("cpu_millis", 1500)
    assert daemon_options.amount("--capacity", "memory=2g") == ("memory_bytes", 2 << 30)
    assert daemon_options.amount("--capacity", "gpu=2") == ("gpu", 2)
    for bad in ("gpu", "gpu=x", "=3", "memory=lots"):
        with pytest.raises(InvalidSpec):
            daemon_options.amount("--capacity", bad)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["controller", "--store", "etcd://h1:x,h2"], "is not the address of an etcd"),
        (["controller", "--ovn", "10.0.0.1:6641"], "is not an address of OVN's"),
        (["controller", "--ovn", "unix:/run/ovn.sock,tcp:x"], "none to do without"),
        (["controller", "--ovn-certificate", "x"], "--ovn-private-key, --ovn-ca-cert: key"),
        (["controller", "--ovn", "tcp:db:6641", *FILES], "write --ovn ssl:HOST:PORT"),
        (["controller", "--ovn", "ssl:db:6641", *FILES], "No such file or directory"),
        (["controller", "--store", "postgres:x"], '"postgres:x" is not a store'),
        (["controller", "--listen", "nonsense"], '"nonsense" is not an address'),
        (["agent", "--label", "zone"], "not of the form NAME=VALUE"),
    ],
)
def test_a_daemon_with_wrong_options_does_not_start(swarmctl, arguments: list[str], said: str):
    """Exit code 2, and one clear line."""
    ended = swarmctl(*arguments)

    assert ended.code == 2
    assert said in ended.err


def test_an_unknown_driver_is_refused_before_a_token_is_spent(tmp_path: Path, swarmctl):
    """Nothing is enrolled and no folder is made for an agent that cannot start."""
    ended = swarmctl("agent", "--data", str(tmp_path / "a"), "--drivers", "dockr")

    assert ended.code == 2
    assert "there is no driver dockr" in ended.err
    assert not (tmp_path / "a").exists()


def test_an_agent_that_is_not_enrolled_asks_for_a_token(tmp_path: Path, swarmctl):
    """It says what is missing and what to do."""
    ended = swarmctl("agent", "--data", str(tmp_path / "a"), "--drivers", "sim")

    assert ended.code == 2
    assert "not enrolled yet" in ended.err
    assert "--join" in ended.err


def test_a_starter_reads_the_error_of_its_daemon():
    """What a daemon says when it cannot serve is raised as if it had happened here."""
    read, write = os.pipe()
    notifier = process.Notifier(write)

    assert notifier.failed(StorageFault("the disk is full", "/data", "free some space"))
    assert not notifier.failed(StorageFault("said once"))
    with pytest.raises(StorageFault) as raised:
        dev.read_note(os.read(read, 4096))
    assert (raised.value.where, raised.value.hint) == ("/data", "free some space")
    os.close(read)


def test_a_starter_reads_that_its_daemon_serves():
    """One line of JSON, and then the end."""
    read, write = os.pipe()
    process.Notifier(write).ready({"addresses": ["tcp://127.0.0.1:1"]})

    line = os.read(read, 4096)
    assert json.loads(line) == {"ready": {"addresses": ["tcp://127.0.0.1:1"]}}
    assert dev.read_note(line) == {"addresses": ["tcp://127.0.0.1:1"]}
    assert os.read(read, 1) == b""
    os.close(read)


def test_dev_refuses_a_folder_that_another_has(tmp_path: Path):
    """It says that one runs, and how to stop it."""
    with dev._own(tmp_path), pytest.raises(Conflict) as refused:
        dev._own(tmp_path)

    assert f"runs already (process {os.getpid()})" in refused.value.what
    assert refused.value.hint == f"stop it with: swarmctl dev --stop --data {tmp_path}"


@pytest.mark.parametrize(
    "text",
    ["", "1 dev\n", f"{os.getpid()} dev\n", "nonsense"],
    ids=["empty", "process 1", "ourselves", "nonsense"],
)
def test_dev_stop_trusts_a_lock_that_is_held_and_nothing_else(tmp_path: Path, text: str):
    """A pid left behind may be anybody's by now: nothing is stopped."""
    (tmp_path / "lock").write_text(text)

    with pytest.raises(NotFound, match="no swarmctl dev runs"):
        dev.stop(tmp_path)


def test_dev_stop_of_a_folder_that_never_was(tmp_path: Path):
    """Nothing is made on the way."""
    with pytest.raises(NotFound):
        dev.stop(tmp_path / "none")

    assert not (tmp_path / "none").exists()


def test_a_large_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One generation is kept, so that the disk does not fill."""
    monkeypatch.setattr(dev, "_LOG_MAX_BYTES", 10)
    path = tmp_path / "agent.log"
    for text in (b"first and long\n", b"second\n"):
        with dev.open_log(path) as log:
            log.write(text)

    assert path.read_bytes() == b"second\n"
    assert (tmp_path / "agent.log.1").read_bytes() == b"first and long\n"


def test_secrets_do_not_reach_the_log():
    """A join token is cut down wherever it turns up; a secret key is left out."""
    event = {"event": "joining with swarmctl-join-abc_DEF-1", "secret_key": "x", "node": "n1"}

    assert logs.without_secrets(None, "info", event) == {
        "event": "joining with swarmctl-join-(hidden)",
        "secret_key": "(hidden)",
        "node": "n1",
    }


def test_a_dev_that_fails_leaves_the_context_as_it_was(tmp_path: Path, config: Path):
    """The cluster that commands go to is still the one from before."""
    config.mkdir()
    (config / "current").write_text("lab\n")
    options = ["--data", str(tmp_path / "d"), "--drivers", "dockr", "--listen", "127.0.0.1:0"]
    ended = subprocess.run(
        [*process.own_command(), "dev", "--detach", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 2
    assert "there is no driver dockr" in ended.stderr
    assert sorted(path.name for path in config.iterdir()) == ["current"]
    assert (config / "current").read_text() == "lab\n"
