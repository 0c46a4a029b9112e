"""How an instance's port becomes an interface on its node; :mod:`.api` is the contract.

:mod:`.ovs` keeps it on Open vSwitch, :mod:`.trunk` inside a VM, on the VLANs of its trunk, and
:mod:`.memory` in memory, for tests and simulations.
"""
