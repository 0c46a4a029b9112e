"""What `run` and `apply` say of fenced services."""

import sys
from collections.abc import Iterable

from swarmctl.client import Client
from swarmctl.spec.models import ServiceSpec


def say_what_it_means(client: Client, specs: Iterable[ServiceSpec]) -> None:
    """A controller that is away stops what is fenced: said before it happens."""
    names = [spec.name for spec in specs if spec.template.fenced]
    if not names:
        return
    lease_s = client.call("cluster.info").get("fencing_lease_s")
    longer = f"longer than {lease_s:g} s" if lease_s else "longer than the lease"
    what = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    print(
        f"note: {what}: fencing: lease; when the controller is away for {longer}, "
        "the nodes stop it",
        file=sys.stderr,
    )
