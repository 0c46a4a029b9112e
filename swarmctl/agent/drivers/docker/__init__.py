"""The docker driver: :class:`DockerDriver`."""

from swarmctl.agent.drivers.docker.driver import DockerDriver

__all__ = ["DockerDriver"]
