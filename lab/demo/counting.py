"""What Docker and libvirt themselves say about a cluster's containers and VMs."""

from __future__ import annotations

import http.client
import json
import subprocess
import urllib.parse
import xml.etree.ElementTree as ET
from typing import Any

from lab import docker, procs
from lab.config import LIBVIRT_URI, Paths
from lab.faults import LabFault

LABEL = "swarmctl.cluster"
NAMESPACE = "urn:swarmctl:instance:1"
VIRSH_S = 60.0  # an undefine may wait for a domain that is being destroyed
REMOVE_S = 60.0


def containers(paths: Paths, cluster_id: str, *, running: bool) -> set[str]:
    """The ids of the cluster's containers, only the running ones if so asked.

    Raises:
        LabFault: Docker does not answer.
    """
    wanted: dict[str, list[str]] = {"label": [f"{LABEL}={cluster_id}"]}
    if running:
        wanted["status"] = ["running"]
    query = urllib.parse.urlencode({"all": "1", "filters": json.dumps(wanted)})
    status, answer = _docker(paths, "GET", f"/containers/json?{query}")
    if status != http.HTTPStatus.OK:
        raise LabFault(f"Docker does not list its containers: {answer}")
    return {each["Id"] for each in answer}


def remove_container(paths: Paths, container_id: str) -> None:
    """Remove a container, running or not, and its anonymous volumes.

    Raises:
        LabFault: Docker did not.
    """
    status, answer = _docker(paths, "DELETE", f"/containers/{container_id}?force=1&v=1")
    if status not in (http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_FOUND):
        raise LabFault(f"Docker does not remove container {container_id[:12]}: {answer}")


def _docker(paths: Paths, method: str, path: str) -> tuple[int, Any]:
    try:
        return docker.request(paths, method, path, timeout_s=REMOVE_S)
    except (OSError, http.client.HTTPException) as error:
        raise LabFault(
            f"Docker does not answer at {paths.docker_socket}: {error}", "python3 -m lab up"
        ) from error


def domains(cluster_id: str, *, running: bool) -> set[str]:
    """The UUIDs of the cluster's domains, only the running ones if so asked.

    Raises:
        LabFault: libvirt does not answer.
    """
    listed = _virsh("list", "--name", "--state-running" if running else "--all").split()
    named = [name for name in listed if name.startswith(f"swarmctl-{cluster_id[:8]}-")]
    return {_virsh("domuuid", name).strip() for name in named if _cluster_of(name) == cluster_id}


def _cluster_of(name: str) -> str | None:
    """Whose domain it is, by our metadata; None for somebody else's, or one just gone."""
    try:
        text = _virsh("metadata", name, NAMESPACE)
    except LabFault:
        return None
    return ET.fromstring(text).get("cluster")  # noqa: S314 - libvirtd validated it


def remove_domain(uuid: str) -> None:
    """End a domain at once and forget it.

    Raises:
        LabFault: libvirt did not.
    """
    try:
        _virsh("destroy", uuid)
    except LabFault:
        pass  # it does not run: then the next command is all that is wanted
    _virsh("undefine", uuid, "--nvram")


def has_libvirt() -> bool:
    """Whether there is anything to ask."""
    return procs.which("virsh") is not None


def _virsh(*arguments: str) -> str:
    virsh = procs.which("virsh")
    if virsh is None:
        raise LabFault("virsh is not installed", "python3 -m lab up")
    try:
        return procs.run([virsh, "-c", LIBVIRT_URI, "-q", *arguments], timeout_s=VIRSH_S)
    except subprocess.CalledProcessError as error:
        raise LabFault(f"virsh {arguments[0]}: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise LabFault(f"libvirt does not answer within {VIRSH_S:.0f} s") from error
