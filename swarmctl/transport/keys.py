"""CURVE key pairs and the files they live in.

A key pair is two texts of 40 characters in Z85 (32 bytes each).
A file holds one pair as JSON, mode 0600; it is written beside its place and renamed, so that a
crash leaves the old file or the new one, never half of one.
"""

import base64
import json
import os
import stat
import string
import tempfile
from pathlib import Path

import attrs
import zmq

from swarmctl.transport.errors import KeyFileError, KeyFileFault

_ALPHABET = string.digits + string.ascii_letters + ".-:+=^!/*?&<>()[]{}@%$#"
_Z85 = frozenset(_ALPHABET)
# Python's base 85 is Z85 but for the order of its alphabet.
_FROM_B85 = bytes.maketrans(
    (string.digits + string.ascii_uppercase + string.ascii_lowercase).encode()
    + b"!#$%&()*+-;<=>?@^_`{|}~",
    _ALPHABET.encode(),
)
_Z85_LENGTH = 40
# A pair as JSON takes about 130 bytes; a larger file is not ours.
_FILE_MAX_BYTES = 4_096


def is_z85_key(text: object) -> bool:
    """Whether ``text`` has the form of a CURVE key."""
    return isinstance(text, str) and len(text) == _Z85_LENGTH and _Z85.issuperset(text)


def _z85(_instance: object, attribute: "attrs.Attribute[str]", value: object) -> None:
    if not is_z85_key(value):
        # The value itself may be a secret: it is not shown.
        raise KeyFileError(f"the {attribute.name} key is not {_Z85_LENGTH} characters of Z85")


def encode_z85(key: bytes) -> str:
    """The text of a binary key. Several times quicker than pyzmq's, for ten thousand at once."""
    return base64.b85encode(key).translate(_FROM_B85).decode("ascii")


@attrs.frozen
class KeyPair:
    """A CURVE key pair; ``repr`` shows the public half only."""

    public: str = attrs.field(validator=_z85)
    secret: str = attrs.field(validator=_z85, repr=False)


def generate() -> KeyPair:
    """Make a new random key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode("ascii"), secret.decode("ascii"))


def public_of(secret: str) -> str:
    """The public key that belongs to a secret one."""
    return zmq.curve_public(secret.encode("ascii")).decode("ascii")


def save(keypair: KeyPair, path: Path) -> None:
    """Write a key pair to ``path``, mode 0600, atomically and durably.

    Raises:
        KeyFileFault: the file cannot be written.
    """
    text = json.dumps({"public": keypair.public, "secret": keypair.secret}) + "\n"
    try:
        _write_private(path, text.encode("ascii"))
    except OSError as error:
        raise KeyFileFault(
            f"the key file cannot be written: {error.strerror}", str(path)
        ) from error


def _write_private(path: Path, content: bytes) -> None:
    # mkstemp makes the file 0600 from the start: there is no moment in which others can read it.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path) -> KeyPair:
    """Read a key pair.

    Raises:
        KeyFileError: no such file, not a key file, or others may read it.
        KeyFileFault: the file exists and cannot be read.
    """
    pair = _parse(_read_private(path), path)
    if public_of(pair.secret) != pair.public:
        raise KeyFileError(
            "the public and the secret key do not belong together",
            str(path),
            "restore the file from a backup, or remove it and enrol again",
        )
    return pair


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise KeyFileError(
                    f"the key file is open to others (mode {stat.S_IMODE(mode):04o})",
                    str(path),
                    f"chmod 600 {path}",
                )
            return file.read(_FILE_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise KeyFileError("there is no key file", str(path)) from error
    except OSError as error:
        raise KeyFileFault(f"the key file cannot be read: {error.strerror}", str(path)) from error


def _parse(content: bytes, path: Path) -> KeyPair:
    try:
        data = json.loads(content)
        return KeyPair(data["public"], data["secret"])
    except (ValueError, KeyError, TypeError) as error:
        # json's and our own texts are not repeated: they could quote a secret.
        raise KeyFileError("this is not a key file", str(path)) from error
    except KeyFileError as error:
        raise KeyFileError(error.what, str(path)) from error
