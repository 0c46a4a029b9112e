"""swarmctl launches containers and virtual machines on a fleet, and keeps them running."""

__version__ = "0.1.0"
