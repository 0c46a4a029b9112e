"""Key pairs and their files."""

import json
import os
import stat

import pytest
from zmq.utils import z85

from swarmctl.transport import keys
from swarmctl.transport.errors import KeyFileError, KeyFileFault


def test_a_pair_survives_its_file(tmp_path):
    """What was saved is loaded, and only its owner can read it."""
    pair = keys.generate()
    path = tmp_path / "node.key"
    keys.save(pair, path)

    assert keys.load(path) == pair
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_pairs_differ_and_belong_together():
    """Each pair is new, and its public half follows from the secret one."""
    one, two = keys.generate(), keys.generate()

    assert one.secret != two.secret
    assert keys.public_of(one.secret) == one.public


def test_the_secret_is_not_shown():
    """Neither repr nor str shows the secret half."""
    pair = keys.generate()

    assert pair.secret not in repr(pair)
    assert pair.secret not in str(pair)
    assert pair.public in repr(pair)


def test_saving_replaces_and_leaves_no_litter(tmp_path):
    """A second save replaces the file whole; no temporary file stays."""
    path = tmp_path / "node.key"
    keys.save(keys.generate(), path)
    second = keys.generate()
    keys.save(second, path)

    assert keys.load(path) == second
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.key"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    """When the disk refuses, the old key is still there and nothing else."""
    path = tmp_path / "node.key"
    pair = keys.generate()
    keys.save(pair, path)

    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(KeyFileFault, match="No space left"):
            keys.save(keys.generate(), path)

    assert keys.load(path) == pair
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.key"]


def test_a_missing_folder_is_a_clear_error(tmp_path):
    """Saving where there is no folder names the file."""
    with pytest.raises(KeyFileFault, match=r"nowhere/node\.key"):
        keys.save(keys.generate(), tmp_path / "nowhere" / "node.key")


def test_a_missing_file_is_a_clear_error(tmp_path):
    """Loading what is not there names the file."""
    with pytest.raises(KeyFileError, match=r"node\.key: there is no key file"):
        keys.load(tmp_path / "node.key")


def test_a_file_open_to_others_is_refused(tmp_path):
    """A secret that others can read is none; the error says what to do."""
    path = tmp_path / "node.key"
    keys.save(keys.generate(), path)
    path.chmod(0o640)

    with pytest.raises(KeyFileError, match="chmod 600"):
        keys.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b'{"public": 1, "secret": 2}',
        b'{"public": "short", "secret": "short"}',
        b"\xff\xfe",
        b"x" * 100_000,
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content):
    """Whatever the file holds, the error names it."""
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(KeyFileError, match=r"node\.key"):
        keys.load(path)


def test_halves_of_two_pairs_are_refused_without_showing_the_secret(tmp_path):
    """A mixed-up file is found at loading, not at the first handshake."""
    one, two = keys.generate(), keys.generate()
    path = tmp_path / "node.key"
    path.write_text(json.dumps({"public": one.public, "secret": two.secret}))
    path.chmod(0o600)

    with pytest.raises(KeyFileError, match="do not belong together") as caught:
        keys.load(path)

    assert two.secret not in str(caught.value)


def test_z85_is_the_one_of_zeromq():
    """Our quicker encoder gives what pyzmq's gives, for every byte value."""
    for start in range(0, 256, 4):
        key = bytes((start + offset) % 256 for offset in range(32))
        assert keys.encode_z85(key) == z85.encode(key).decode()
