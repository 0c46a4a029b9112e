"""``vm:`` of a stack file, and the checks it shares with ``run --vm``."""

from collections.abc import Callable
from typing import Final

from attrs import evolve

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.attachments import Plugging
from swarmctl.spec.models import CloudInit, DiskSpec, Resources, VmSpec
from swarmctl.spec.reading import Field
from swarmctl.spec.sizes import parse_size

FIRMWARES: Final = ("bios", "uefi")

# A VM cannot run in "no memory": what one has that says nothing, enough for a small Linux.
CPU_MILLIS_DEFAULT: Final = 1_000
MEMORY_BYTES_DEFAULT: Final = 512 * 1024 * 1024
# libvirt's NoCloud seed is a small disk; clouds bound user data far lower (16 KiB to 64 KiB).
USER_DATA_MAX_CHARS: Final = 128 * 1024

_KEY_TYPES: Final = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")


def with_defaults(resources: Resources) -> Resources:
    """``resources`` with a cpu and memory when there are none: a VM has both."""
    return evolve(
        resources,
        cpu_millis=resources.cpu_millis or CPU_MILLIS_DEFAULT,
        memory_bytes=resources.memory_bytes or MEMORY_BYTES_DEFAULT,
    )


def check_ssh_key(text: str) -> str:
    """``text`` when it looks like a line of ``authorized_keys``.

    Raises:
        InvalidSpec: it does not (the key itself is not shown).
    """
    line = text.strip()
    if "PRIVATE KEY" in line:
        raise InvalidSpec("this is a private key", hint="give the public one, from the .pub file")
    if "\n" in line or not line.startswith(_KEY_TYPES) or len(line.split()) < 2:
        raise InvalidSpec(
            "this is not an ssh public key", hint='one line such as "ssh-ed25519 AAAA… name"'
        )
    return line


def check_user_data(text: str) -> str:
    """``text`` when cloud-init would read it as user data.

    Raises:
        InvalidSpec: cloud-init would ignore it, or it is too long.
    """
    if len(text) > USER_DATA_MAX_CHARS:
        raise InvalidSpec(f"user data of over {USER_DATA_MAX_CHARS} characters is too long")
    if text.strip() and not text.startswith(("#", "Content-Type:", "MIME-Version:")):
        raise InvalidSpec(
            "cloud-init does not know this kind of user data",
            hint='begin with "#cloud-config" or "#!/bin/sh"',
        )
    return text


def check_vm(vm: VmSpec) -> None:
    """Refuse a VM that cannot boot.

    Raises:
        InvalidSpec: saying what is missing.
    """
    if vm.disk is None and not vm.kernel:
        raise InvalidSpec("a VM needs a disk or a kernel", hint="such as disk: debian-12.qcow2")
    for name in ("initrd", "cmdline"):
        if getattr(vm, name) and not vm.kernel:
            raise InvalidSpec(f"{name} needs a kernel", hint="a disk brings its own")
    if vm.firmware not in FIRMWARES:
        raise InvalidSpec(f'"{vm.firmware}" is not a firmware', hint="use bios or uefi")


def read_vm(field: Field, plugging: Plugging, resolve: Callable[[str], str]) -> VmSpec:
    """The VM that ``vm:`` describes.

    Args:
        field: the ``vm`` field.
        plugging: what its ports are plugged into.
        resolve: makes the paths of files (``./disk.qcow2``) absolute.

    Raises:
        InvalidSpec: a part of it is not valid.
    """
    fields = field.fields(
        ("disk", "kernel", "initrd", "cmdline", "firmware", "cloud_init", "trunk")
    )
    trunk = fields["trunk"].boolean() if "trunk" in fields else False
    if trunk and not plugging.uses:
        fields["trunk"].warn(
            "it has no effect: the VM is on no tenant network, so its port carries no others",
            "plug it into a network of the file with networks:",
        )
    vm = VmSpec(
        disk=_read_disk(fields["disk"], resolve) if "disk" in fields else None,
        kernel=fields["kernel"].parse(resolve) if "kernel" in fields else "",
        initrd=fields["initrd"].parse(resolve) if "initrd" in fields else "",
        cmdline=fields["cmdline"].text() if "cmdline" in fields else "",
        firmware=fields["firmware"].choice(FIRMWARES) if "firmware" in fields else "bios",
        cloud_init=_read_cloud_init(fields["cloud_init"]) if "cloud_init" in fields else None,
        trunk=trunk,
        network=plugging.own,
    )
    try:
        check_vm(vm)
    except InvalidSpec as error:
        raise field.fail(error.what, error.hint) from error
    return vm


def _read_disk(field: Field, resolve: Callable[[str], str]) -> DiskSpec:
    if field.is_scalar:
        return DiskSpec(field.parse(resolve))
    fields = field.fields(("image", "size", "persistent"))
    if "image" not in fields:
        raise field.fail("a disk needs an image", "such as image: debian-12.qcow2")
    return DiskSpec(
        image=fields["image"].parse(resolve),
        size_bytes=fields["size"].parse(parse_size) if "size" in fields else 0,
        persistent=fields["persistent"].boolean() if "persistent" in fields else False,
    )


def _read_cloud_init(field: Field) -> CloudInit:
    fields = field.fields(("user_data", "hostname", "ssh_authorized_keys"))
    keys: tuple[str, ...] = ()
    if "ssh_authorized_keys" in fields:
        listed = fields["ssh_authorized_keys"]
        items = [listed] if listed.is_scalar else listed.elements()
        keys = tuple(item.parse(check_ssh_key) for item in items)
    user_data = ""
    if "user_data" in fields:
        if not fields["user_data"].is_scalar:
            raise fields["user_data"].mismatch("text", 'write it as a block, after "user_data: |"')
        user_data = fields["user_data"].parse(check_user_data)
    return CloudInit(
        user_data=user_data,
        hostname=fields["hostname"].text() if "hostname" in fields else "",
        ssh_authorized_keys=keys,
    )
