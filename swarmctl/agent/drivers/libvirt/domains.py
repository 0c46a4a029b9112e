"""Single calls on one domain that do not mind if it is gone, off or changing already.

They block, and pass all other errors of libvirt on.
"""

from typing import Any

from swarmctl.agent.drivers.libvirt.connection import is_broken, load


def find(conn: Any, uuid: str) -> Any:
    """The domain, or None."""
    libvirt = load()
    try:
        return conn.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def is_active(conn: Any, uuid: str) -> bool:
    """Whether the domain is there and has a QEMU process."""
    libvirt = load()
    domain = find(conn, uuid)
    try:
        return domain is not None and bool(domain.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise


def press_power_button(conn: Any, uuid: str) -> bool:
    """Press it; False if the domain is off or gone.

    One that cannot be pressed (its QEMU hangs, say) counts as pressed: the guest does not react.
    """
    libvirt = load()
    domain = find(conn, uuid)
    if domain is None or not domain.isActive():
        return False
    try:
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError as error:
        if is_broken(error):
            raise
        return not _is_off_or_gone(error)
    return True


def destroy(conn: Any, uuid: str) -> None:
    """End it by force, with SIGKILL where QEMU does not listen; returns once it is off."""
    libvirt = load()
    domain = find(conn, uuid)
    if domain is None:
        return
    try:
        if domain.isActive():
            domain.destroy()
    except libvirt.libvirtError as error:
        if not _is_off_or_gone(error):
            raise


def ping_guest(conn: Any, uuid: str, timeout_s: int) -> None:
    """Returns when the QEMU guest agent in it answers; libvirt's error says why it does not."""
    import libvirt_qemu

    domain = conn.lookupByUUIDString(uuid)
    libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', timeout_s, 0)


def undefine(conn: Any, uuid: str) -> None:
    """Forget it, with its firmware variables, saved state and snapshots."""
    libvirt = load()
    domain = find(conn, uuid)
    if domain is None:
        return
    try:
        domain.undefineFlags(
            libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
            | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        )
    except libvirt.libvirtError as error:
        # "cannot undefine transient domain": another remove was first, and this one is ending.
        if not _is_off_or_gone(error):
            raise


def _is_off_or_gone(error: Any) -> bool:
    libvirt = load()
    code = error.get_error_code()
    return code in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
