"""Taking containers of the oci driver away past it, with all that is theirs."""

import shutil
import subprocess
from pathlib import Path

from swarmctl.agent.drivers.oci.layout import Layout


def take_away(layout: Layout, container: str) -> None:
    """One container, whole."""
    place = layout.place(container)
    for command in (
        ["runc", "--root", str(layout.runtime), "delete", "--force", container],
        ["umount", "-l", str(place.rootfs)],
        ["ip", "netns", "delete", place.namespace],
    ):
        subprocess.run(command, check=False, capture_output=True)
    shutil.rmtree(place.folder, ignore_errors=True)


def take_all_away(root: Path) -> None:
    """All that are in a driver's folder."""
    layout = Layout(root)
    if layout.containers.exists():
        for container in layout.containers.iterdir():
            take_away(layout, container.name)
