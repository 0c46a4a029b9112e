"""swarmctl launches containers and virtual machines on a fleet, and keeps them running."""

__version__ = "0.2.0"
