"""Open vSwitch's database: ports in and out, and what the switch and OVN say of them.

ovsdbapp keeps a copy of the tables in a thread of its own, and reconnects by itself.  What is done
here blocks and is called in threads; only :attr:`Database.interfaces` is looked at from the event
loop: a small table that the library's thread keeps up, so that waiting for OVN costs no polling.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import frozen
from ovsdbapp import exceptions
from ovsdbapp.backend.ovs_idl import connection, idlutils, transaction
from ovsdbapp.schema.open_vswitch import impl_idl

from swarmctl.net.plugging.api import Switch
from swarmctl.proto.errors import DriverUnavailable, LaunchFailed, SwarmError

DEFAULT_BRIDGE: Final = "br-int"
# The tables that are copied; a node's other ones (mirrors, flows, QoS) are not ours to know.
TABLES: Final = ("Open_vSwitch", "Bridge", "Port", "Interface")
# Under which an interface says whose it is.
KEY_CLUSTER: Final = "swarmctl-cluster"
KEY_NODE: Final = "swarmctl-node"
KEY_INCARNATION: Final = "swarmctl-incarnation"
KEY_PORT: Final = "iface-id"
# Set by ovn-controller once the flows of the port are in the switch.
KEY_INSTALLED: Final = "ovn-installed"
# In the switch's own row: which bridge leads to which physical network.
KEY_MAPPINGS: Final = "ovn-bridge-mappings"


@frozen
class Interface:
    """What the switch and OVN say of one interface."""

    external_ids: dict[str, str]
    port_number: int = 0
    error: str = ""

    @property
    def installed(self) -> bool:
        """Whether OVN has the port's flows in the switch."""
        return self.external_ids.get(KEY_INSTALLED) == "true"


class _Copy(connection.OvsdbIdl):  # type: ignore[misc]  # the library has no types
    """The library's copy of the tables, which tells of every change of an interface."""

    told: Callable[[str, Interface | None], None]

    @property
    def is_connected(self) -> bool:
        """Whether what is in the copy can be trusted to be of now."""
        return bool(self._session.is_connected())

    def notify(self, event: str, row: Any, updates: Any = None) -> None:  # noqa: ARG002 - the library's names
        """Called in the library's thread."""
        if row._table.name == "Interface":  # noqa: SLF001 - a row of this library says it so
            self.told(row.name, None if event == "delete" else _interface(row))


def _interface(row: Any) -> Interface:
    number = row.ofport[0] if row.ofport else 0
    return Interface(dict(row.external_ids), number, row.error[0] if row.error else "")


class _Transaction(transaction.Transaction):  # type: ignore[misc]  # as above
    """One that ends when the database has it: the library's own waits for the switch as well."""

    def pre_commit(self, txn: Any) -> None:
        """Where the library notes interfaces that it would wait for."""
        txn.expected_ifaces = set()


class _Tables(impl_idl.OvsdbIdl):  # type: ignore[misc]  # as above
    """The library's commands. It would share one connection among all objects of the class."""

    @property
    def ovsdb_connection(self) -> Any:
        """Where commands of this object go."""
        return self._own_connection

    @ovsdb_connection.setter
    def ovsdb_connection(self, opened: Any) -> None:
        self._own_connection = opened

    def create_transaction(
        self,
        check_error: bool = False,  # noqa: FBT001, FBT002 - the library's own
        log_errors: bool = True,  # noqa: ARG002, FBT001, FBT002 - as above
        **_: Any,
    ) -> _Transaction:
        """What commands are put into; errors are raised and nowhere logged besides."""
        return _Transaction(self, self.ovsdb_connection, check_error=check_error, log_errors=False)


class Database:
    """A connection to one ovsdb-server; blocking, but for :attr:`interfaces`.

    Args:
        remote: such as ``unix:/run/openvswitch/db.sock``.
        timeout_s: of every exchange.
        changed: called in another thread after each change of an interface.

    Raises:
        DriverUnavailable: nobody answers there.
    """

    def __init__(self, remote: str, timeout_s: float, changed: Callable[[], None]) -> None:
        self._remote = remote
        self._changed = changed
        self.interfaces: dict[str, Interface] = {}
        logging.getLogger("ovsdbapp").setLevel(logging.ERROR)
        try:
            copy = self._copy = _Copy.from_server(remote, "Open_vSwitch", helper_tables=TABLES)
            copy.told = self._told
            self._connection = connection.Connection(copy, timeout=timeout_s)
            self._tables = _Tables(self._connection)
        except Exception as error:  # the library raises bare exceptions here
            raise DriverUnavailable(
                f"Open vSwitch's database does not answer: {error}", remote, "is it running?"
            ) from error

    def _told(self, name: str, interface: Interface | None) -> None:
        if interface is None:
            self.interfaces.pop(name, None)
        else:
            self.interfaces[name] = interface
        self._changed()

    def close(self) -> None:
        """End the connection and its thread."""
        self._connection.stop(timeout=self._connection.timeout)

    def look(self, bridges: Mapping[str, str]) -> Switch:
        """The switch, and the bridge that OVN integrates.

        ``bridges`` are mapped to their physical networks if they are not; others stay as they are.

        Raises:
            DriverUnavailable: it is away, or has no integration bridge.
        """
        if not self._copy.is_connected:
            raise DriverUnavailable(
                "Open vSwitch's database is away", self._remote, "is ovsdb-server running?"
            )
        with self._connection.lock:
            roots = list(self._tables.tables["Open_vSwitch"].rows.values())
            ids = dict(roots[0].external_ids) if roots else {}
            version = roots[0].ovs_version if roots else []
            name = ids.get("ovn-bridge", DEFAULT_BRIDGE)
            kinds = {
                row.name: row.datapath_type for row in self._tables.tables["Bridge"].rows.values()
            }
        if name not in kinds:
            raise DriverUnavailable(
                f"Open vSwitch has no bridge {name}", self._remote, "is ovn-controller running?"
            )
        mapped = mappings_of(ids.get(KEY_MAPPINGS, ""))
        wanted = {**mapped, **bridges}
        if wanted != mapped:
            text = ",".join(f"{physical}:{bridge}" for physical, bridge in wanted.items())
            change = ("external_ids", {KEY_MAPPINGS: text})
            self._execute(self._tables.db_set("Open_vSwitch", ".", change), KEY_MAPPINGS)
        return Switch(
            "ovs",
            version[0] if version else "",
            name,
            kinds[name] == "netdev",
            encapsulation=ids.get("ovn-encap-type", ""),
            address=ids.get("ovn-encap-ip", ""),
            chassis=ids.get("system-id", ""),
            physical_networks=tuple(sorted(one for one in wanted if wanted[one] in kinds)),
        )

    def add(self, bridge: str, device: str, external_ids: dict[str, str]) -> None:
        """A port of ``bridge``, unless it is there.

        One that is there and not installed is put in anew. OVN (23.03) takes "installed" back from
        a VM's port when one of the ports on it goes, and says it again only of what is new to it.
        """
        present = self.rows().get(device)
        if present is not None and not present.installed:
            self.remove(device)
        command = self._tables.add_port(bridge, device, external_ids=external_ids)
        self._execute(command, device)

    def remove(self, device: str) -> None:
        """Remove a port, if it is there."""
        self._execute(self._tables.del_port(device), device)

    def _execute(self, command: Any, device: str) -> None:
        try:
            command.execute(check_error=True)
        except (exceptions.TimeoutException, RuntimeError, idlutils.RowNotFound) as error:
            raise _explained(error, device, self._remote) from error

    def rows(self) -> dict[str, Interface]:
        """All interfaces, by name."""
        with self._connection.lock:
            rows = self._tables.tables["Interface"].rows.values()
            return {row.name: _interface(row) for row in rows}


def mappings_of(text: str) -> dict[str, str]:
    """Physical network to bridge, as ``ovn-bridge-mappings`` has them: ``physnet1:br-ex,…``."""
    pairs = (one.partition(":") for one in text.split(",") if ":" in one)
    return {name.strip(): bridge.strip() for name, _, bridge in pairs}


def _explained(error: Exception, device: str, remote: str) -> SwarmError:
    if isinstance(error, idlutils.RowNotFound):
        return LaunchFailed(f"Open vSwitch lacks what {device} goes into: {error}", remote)
    if isinstance(error, exceptions.TimeoutException):
        return DriverUnavailable("Open vSwitch's database did not answer in time", remote)
    return LaunchFailed(f"Open vSwitch refused {device}: {error}", remote)
