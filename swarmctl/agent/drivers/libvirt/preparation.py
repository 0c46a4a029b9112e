"""The files of an instance: checked, made, and told to the domain XML.

:meth:`Workshop.prepare` does the slow part (the disk, the seed) and finds all that is wrong with
a spec before anything is defined.  :meth:`Workshop.machine` only looks, so that ``create`` after
``prepare`` costs nothing beside libvirt's own work.
All methods block; the driver calls them in threads.
"""

import shutil
from pathlib import Path
from typing import Any, Final

from attrs import evolve, frozen

from swarmctl.agent.drivers.api import Launch, Owner, resource_name
from swarmctl.agent.drivers.libvirt import access, disks, seed
from swarmctl.agent.drivers.libvirt.domain_xml import (
    DEFAULT_MEMORY_BYTES,
    Disk,
    Machine,
)
from swarmctl.agent.drivers.libvirt.host import Facts, Host
from swarmctl.agent.drivers.libvirt.identity import Places
from swarmctl.agent.guest import GuestSeed
from swarmctl.proto import incarnation as incarnations
from swarmctl.proto.errors import InternalError, InvalidSpec, LaunchFailed, StorageFault
from swarmctl.spec import wire
from swarmctl.spec.models import CloudInit, VmSpec

FIRMWARES: Final = ("bios", "uefi")
# Others may pass through, so that QEMU's own user gets to its files, and see nothing.
_FOLDER_MODE: Final = 0o711
_FILE_MODE: Final = 0o600
# What a node in a VM is labelled with, so that pods can be sent there: the VM's service.
VM_LABEL: Final = "vm"


@frozen
class Files:
    """The files that one instance runs from."""

    kernel: Path | None
    initrd: Path | None
    image: disks.Image | None
    overlay: Path | None
    seed_image: Path | None

    @property
    def own(self) -> tuple[Path, ...]:
        """Those that this agent made."""
        return tuple(path for path in (self.overlay, self.seed_image) if path is not None)

    @property
    def foreign(self) -> tuple[Path, ...]:
        """Those that it only reads."""
        image = self.image.path if self.image is not None else None
        return tuple(path for path in (self.kernel, self.initrd, image) if path is not None)


class Workshop:
    """Makes and finds the files of one owner's instances."""

    def __init__(self, owner: Owner, places: Places, images: Path | None, host: Host) -> None:
        self._owner = owner
        self._places = places
        self._images = disks.ImageCheck(images)
        self._host = host

    def prepare(self, conn: Any, launch: Launch) -> list[str]:
        """Check the spec and make the files; what a person may want to know. Repeatable.

        Raises:
            UserError: the spec cannot work; nothing was made that ``remove`` would not remove.
            EnvironmentFault: a program is missing, or the disk refuses.
        """
        facts = self._host.facts(conn)
        vm = self._checked(launch, facts)
        if not launch.attachments:
            self._host.network(conn, vm.network)
        files = self.files(launch)
        contents = self._seed_contents(launch, vm)
        try:
            self._make(launch, vm, files, contents)
        except OSError as error:
            place = str(self._places.instance(launch.incarnation))
            raise StorageFault(f"the instance's files: {error.strerror}", place) from error
        account = self._account(launch, facts, files)
        if account is not None:
            for path in files.own:
                access.hand_over(account, path)
        return self._notes(launch, facts, files)

    def machine(self, conn: Any, launch: Launch) -> Machine:
        """What the domain XML needs to know of this host and of the instance's files.

        Raises:
            UserError, EnvironmentFault: as :meth:`prepare`, which is called if it was not.
        """
        facts = self._host.facts(conn)
        vm = self._checked(launch, facts)
        files = self.files(launch)
        if not all(path.exists() for path in files.own) or not self._is_made(launch):
            self.prepare(conn, launch)
        account = self._account(launch, facts, files)
        made: list[Disk] = []
        if files.overlay is not None:
            made.append(Disk(files.overlay, "qcow2"))
        if files.seed_image is not None:
            made.append(Disk(files.seed_image, "raw", read_only=True))
        return Machine(
            domain_type=facts.domain_type,
            console_log=self._places.console_log(launch.incarnation),
            kernel=files.kernel,
            initrd=files.initrd,
            disks=tuple(made),
            network="" if launch.attachments else self._host.network(conn, vm.network),
            run_as=account.label if account is not None else "",
            limit_cpu=facts.can_limit_cpu,
        )

    def files(self, launch: Launch) -> Files:
        """Where the instance's files are or will be; those that the spec names are checked."""
        vm = launch.template.vm
        assert vm is not None, "this driver starts VMs"
        return Files(
            kernel=self._images.file(vm.kernel, "kernel") if vm.kernel else None,
            initrd=self._images.file(vm.initrd, "initrd") if vm.initrd else None,
            image=self._images.image(vm.disk.image) if vm.disk is not None else None,
            overlay=self._overlay(launch) if vm.disk is not None else None,
            seed_image=self._places.seed(launch.incarnation) if vm.cloud_init or vm.trunk else None,
        )

    def discard(self, incarnation: int) -> None:
        """Remove an incarnation's folder; a persistent disk is not in it, and stays."""
        folder = self._places.instance(incarnation)
        while folder.exists():
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                continue  # another call removes it at the same time, and may be ahead
            except OSError as error:
                raise StorageFault(
                    f"the instance's files cannot be removed: {error.strerror}", str(folder)
                ) from error

    def _is_made(self, launch: Launch) -> bool:
        return self._places.console_log(launch.incarnation).exists()

    def _overlay(self, launch: Launch) -> Path:
        vm = launch.template.vm
        if vm is not None and vm.disk is not None and vm.disk.persistent:
            return self._places.persistent_disk(launch.tenant, launch.service, launch.slot)
        return self._places.overlay(launch.incarnation)

    def _checked(self, launch: Launch, facts: Facts) -> VmSpec:
        vm = launch.template.vm
        if vm is None:
            raise InternalError("the libvirt driver was given a container", launch.instance)
        if vm.disk is None and not vm.kernel:
            raise InvalidSpec(
                "a VM needs a disk image or a kernel", "vm", "set `disk:` or `kernel:`"
            )
        if vm.initrd and not vm.kernel:
            raise InvalidSpec("an initrd needs a kernel", "vm.initrd", "set `kernel:` as well")
        if vm.cmdline and not vm.kernel:
            raise InvalidSpec("a cmdline needs a kernel", "vm.cmdline", "set `kernel:` as well")
        if vm.firmware not in FIRMWARES:
            hint = f"use one of {', '.join(FIRMWARES)}"
            raise InvalidSpec(f"unknown firmware {vm.firmware!r}", "vm.firmware", hint)
        if vm.firmware == "uefi" and not facts.has_uefi:
            raise InvalidSpec(
                "this node has no UEFI firmware for VMs",
                "vm.firmware",
                "install ovmf on the node, or use bios",
            )
        if vm.trunk and not launch.attachments:
            raise InvalidSpec(
                "a VM that is on no tenant network has no trunk port",
                "vm.trunk",
                "give the service a tenant network, or leave it out",
            )
        return vm

    def _seed_contents(self, launch: Launch, vm: VmSpec) -> seed.Seed | None:
        if vm.cloud_init is None and not vm.trunk:
            return None
        if vm.trunk and not launch.token:
            if self._places.seed(launch.incarnation).exists():
                return None  # It is as it was when the VM was first started.
            raise LaunchFailed(
                "the token for the agent in this VM has not come yet",
                launch.instance,
                "it comes with the next assignment, from a controller of this release",
            )
        made = seed.contents(
            vm.cloud_init or CloudInit(),
            instance_id=resource_name(self._owner, launch),
            hostname=launch.hostname,
        )
        return evolve(made, guest=guest_seed(launch).to_json()) if vm.trunk else made

    def _make(self, launch: Launch, vm: VmSpec, files: Files, contents: seed.Seed | None) -> None:
        folder = self._places.instance(launch.incarnation)
        _passable(folder)
        if files.overlay is not None and files.image is not None and vm.disk is not None:
            _passable(files.overlay.parent)
            disks.make_overlay(files.image, vm.disk, files.overlay)
            files.overlay.chmod(_FILE_MODE)
        if files.seed_image is not None and contents is not None:
            seed.write(contents, files.seed_image)
        _keep(wire.encode_template(launch.template), self._places.template(launch.incarnation))
        # Ours from the start, so that an agent that is not root can read it.
        self._places.console_log(launch.incarnation).touch(mode=_FILE_MODE)

    def _account(self, launch: Launch, facts: Facts, files: Files) -> access.Account | None:
        """Who QEMU runs as: its own user if that can reach everything, else the agent's."""
        if facts.account is None:
            return None
        barred = self._barred(facts.account, launch, files)
        return facts.account if barred is None else access.own_account()

    def _barred(self, account: access.Account, launch: Launch, files: Files) -> Path | None:
        folders = {self._places.instance(launch.incarnation), *(own.parent for own in files.own)}
        if not access.can_hand_over():
            return self._places.instance(launch.incarnation)
        for folder in sorted(folders):
            blocked = access.impassable(account, folder)
            if blocked is not None:
                return blocked
        return access.unreadable(account, files.foreign)

    def _notes(self, launch: Launch, facts: Facts, files: Files) -> list[str]:
        notes = []
        if not launch.template.resources.memory_bytes:
            notes.append(f"memory: {DEFAULT_MEMORY_BYTES >> 20} MiB, since none is reserved")
        if launch.template.resources.cpu_millis % 1000 and not facts.can_limit_cpu:
            notes.append("cpus: rounded up to whole ones, this host cannot limit a share of one")
        if facts.account is not None:
            barred = self._barred(facts.account, launch, files)
            if barred is not None:
                uid = access.own_account().uid
                notes.append(f"QEMU runs as uid {uid}: its own user cannot reach {barred}")
        return notes


def guest_seed(launch: Launch) -> GuestSeed:
    """What the agent in a VM that hosts pods is told."""
    trunk = launch.attachments[0]
    return GuestSeed(
        # Another incarnation's node may still be registered.
        node=f"{launch.instance}-{incarnations.label(launch.incarnation)}",
        vm=trunk.port,
        mac=trunk.mac,
        mtu=trunk.mtu,
        addresses=trunk.addresses,
        token=launch.token,
        labels={VM_LABEL: launch.service},
    )


def _keep(data: bytes, path: Path) -> None:
    """Put ``data`` at ``path``, whole or not at all, for the agent alone."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.touch(mode=_FILE_MODE)  # user-data holds secrets
    unfinished.write_bytes(data)
    unfinished.rename(path)


def _passable(folder: Path) -> None:
    """Make a folder of ours, and those missing above it, so that others can pass through."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(_FOLDER_MODE)
