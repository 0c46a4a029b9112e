"""The NoCloud seed of a VM: a small ISO 9660 image labelled ``cidata``.

cloud-init reads ``user-data`` and ``meta-data`` from it.  The host name and the ssh keys of a
spec travel as meta-data, which cloud-init honours whatever kind of user-data there is (a
``#cloud-config``, a script, a MIME archive, none), so nothing has to be merged into the user's
text and that text arrives byte for byte.  Where cloud-init would silently prefer or drop one of
them, the spec is refused instead, see :func:`contents`.

A VM that hosts pods finds beside them what its own agent needs (:mod:`swarmctl.agent.guest`).

The image is written by pycdlib, in this process: no program to install, and a few milliseconds.
"""

import io
from pathlib import Path
from typing import Any, Final

import yaml
from attrs import field, frozen

from swarmctl.agent.guest import SEED_FILE
from swarmctl.proto.errors import EnvironmentFault, InvalidSpec, StorageFault
from swarmctl.spec.models import CloudInit

VOLUME_LABEL: Final = "cidata"
# How user-data may begin; cloud-init ignores anything else with a warning inside the guest.
_BEGINNINGS: Final = (
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#cloud-config-archive",
    "#part-handler",
    "## template: jinja",
    "Content-Type: multipart/",
    "MIME-Version:",
)
# cloud-init bounds nothing, a seed on a disk is no place for gigabytes.
USER_DATA_MAX_BYTES: Final = 4 * 1024 * 1024
# Padding, as the usual programs that write such images do it: some readers look for a file
# system in the first 68 KiB and give up on a device that is smaller.
IMAGE_MIN_BYTES: Final = 256 * 1024
# ISO 9660's own names (8.3) beside those that a guest sees.
_SHORT_NAMES: Final = {
    "user-data": "/USERDATA.;1",
    "meta-data": "/METADATA.;1",
    SEED_FILE: "/SWARMCTL.;1",
}


@frozen
class Seed:
    """The files of a seed; ``guest`` is for the agent in a VM that hosts pods, else empty."""

    user_data: str
    meta_data: str
    guest: str = field(default="", repr=False)


def contents(spec: CloudInit, *, instance_id: str, hostname: str) -> Seed:
    """The files of the seed for one instance; ``hostname`` is its name if the spec has none.

    Raises:
        InvalidSpec: the user-data is not of a kind that cloud-init takes, is not valid YAML, or
            contradicts the spec's host name or keys so that cloud-init would drop one of them.
    """
    user_data = spec.user_data
    _require_known_kind(user_data)
    if user_data.startswith("#cloud-config") and not user_data.startswith("#cloud-config-archive"):
        _require_agreement(spec, _parse(user_data))
    meta: dict[str, Any] = {
        "instance-id": instance_id,
        "local-hostname": spec.hostname or hostname,
    }
    if spec.ssh_authorized_keys:
        meta["public-keys"] = list(spec.ssh_authorized_keys)
    return Seed(
        # cloud-init wants the file even where there is nothing to say.
        user_data=user_data or "#cloud-config\n{}\n",
        meta_data=yaml.safe_dump(meta, sort_keys=False, allow_unicode=True),
    )


def _require_known_kind(user_data: str) -> None:
    if len(user_data.encode()) > USER_DATA_MAX_BYTES:
        raise InvalidSpec(
            f"user_data is larger than {USER_DATA_MAX_BYTES} bytes", "cloud_init.user_data"
        )
    if user_data and not user_data.startswith(_BEGINNINGS):
        beginning = user_data.splitlines()[0][:40]
        raise InvalidSpec(
            f"user_data begins with {beginning!r}, which cloud-init would ignore",
            "cloud_init.user_data",
            "begin it with #cloud-config or #! (or another of cloud-init's headers)",
        )


def _parse(user_data: str) -> dict[str, Any]:
    try:
        parsed = yaml.safe_load(user_data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise InvalidSpec(
            f"user_data is not valid YAML: {problem}", f"cloud_init.user_data{line}"
        ) from error
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise InvalidSpec("user_data has to be a mapping of settings", "cloud_init.user_data")
    return parsed


def _require_agreement(spec: CloudInit, config: dict[str, Any]) -> None:
    own = config.get("hostname")
    if spec.hostname and own is not None and own != spec.hostname:
        raise InvalidSpec(
            f"the host name is {spec.hostname!r} here and {own!r} in user_data",
            "cloud_init.hostname",
            "say it once",
        )
    if not spec.ssh_authorized_keys or "users" not in config:
        return
    users = config["users"]
    # cloud-init gives these keys to the default user, which a list without it does away with.
    entries = users if isinstance(users, list) else [users]
    if not any(_is_default_user(entry) for entry in entries):
        raise InvalidSpec(
            "ssh_authorized_keys are for the image's default user, and `users` in user_data "
            "leaves that one out",
            "cloud_init.ssh_authorized_keys",
            "add `- default` to `users`, or move the keys into one of its entries",
        )


def _is_default_user(entry: Any) -> bool:
    if isinstance(entry, str):
        return "default" in [name.strip() for name in entry.split(",")]
    return isinstance(entry, dict) and (entry.get("name") == "default" or "default" in entry)


def image(seed: Seed) -> bytes:
    """The seed as the bytes of an ISO 9660 image with Joliet and Rock Ridge names.

    Raises:
        EnvironmentFault: the library that writes it is not installed.
    """
    try:
        import pycdlib
    except ImportError as error:
        raise EnvironmentFault(
            "pycdlib is not installed, so no cloud-init seed can be made",
            hint="pip install 'swarmctl[libvirt]'",
        ) from error
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=1, joliet=3, rock_ridge="1.09", vol_ident=VOLUME_LABEL)
    files = {"user-data": seed.user_data, "meta-data": seed.meta_data}
    if seed.guest:
        files[SEED_FILE] = seed.guest
    for name, text in files.items():
        data, short = text.encode(), _SHORT_NAMES[name]
        iso.add_fp(io.BytesIO(data), len(data), short, rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue().ljust(IMAGE_MIN_BYTES, b"\0")


def write(seed: Seed, path: Path) -> None:
    """Put the seed's image at ``path``, whole or not at all. Blocks.

    Raises:
        StorageFault: the disk under it is full or refuses.
    """
    data = image(seed)
    unfinished = path.with_name(path.name + ".new")
    try:
        unfinished.write_bytes(data)
        unfinished.chmod(0o600)  # user-data holds secrets
        unfinished.rename(path)
    except OSError as error:
        raise StorageFault(f"the cloud-init seed: {error.strerror}", str(path)) from error
