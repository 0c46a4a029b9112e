"""The lab: real Docker and libvirt daemons, a test image and a test guest, from one command.

Theory of operation. ``python3 -m lab up`` brings a machine from whatever it is to "swarmctl can
launch containers and VMs here"; running it again changes nothing and takes a moment. It runs
before the project's virtual environment exists, so everything here is the standard library.

Four rules shape the code:

* what is already there is used and left alone: a daemon that ran before is never ours;
* what the lab starts it writes down *with the process's start time* (:mod:`lab.state`), so that
  ``lab down`` stops exactly that and a reused pid is never mistaken for it;
* what the lab changes on the machine (the KVM node, the firewall's forward policy, Docker's
  bridge) it writes down before it changes it, and ``lab down`` puts it back;
* what cannot be done (no root, another distribution) is said with its reason and the next step,
  and the rest goes on.

One module a subject: ``packages`` (apt), ``fetch`` (packages unpacked into the cache without
installing them), ``docker``, ``libvirt``, ``kvm``, ``firewall``, ``testbox`` (the image),
``guest`` and ``testdisk`` (the two-second VM), ``up``, ``down`` and ``status`` (what the commands
do with them); ``ovs``, ``ovn`` and ``hosts`` (several hosts on one machine, which are found again
by the names of their namespaces, and are not written down).
"""
