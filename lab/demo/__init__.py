"""The demo: a one-machine cluster with real containers and VMs, and taking it away again.

Theory of operation. ``up`` runs what a user would type (``dev --detach``, ``apply --wait``, ``ps``)
and then asks Docker and libvirt themselves whether it is true. ``down`` does not trust that any of
it still works: it asks the cluster first, and then looks for what is left of it on the machine,
known by the cluster's id, so that it also ends a demo whose controller and agent were killed.
``down`` needs no virtual environment; both are the standard library alone.

``cluster`` reads what the demo's folder says, ``counting`` asks Docker and libvirt, ``up`` and
``down`` act. ``networks`` is the other demo: two hosts, and tenant networks over both.
"""
