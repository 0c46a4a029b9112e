"""What a packet between instances costs: bytes around it, throughput, latency, CPU.

Theory of operation. Real instances are launched through real controllers and agents on several
hosts (:mod:`lab.swarm`). All figures are read from outside of what is measured: headers from what
tcpdump saw on the interfaces (``capture``, decoded by ``frames``, which is pure), throughput from
iperf3 and latency from ping, both run in the instances (``traffic``), CPU from the processes that
moved the bytes. Nothing is computed from what was asked for.

``paths`` says between whom is measured, ``checks`` what must pass and what must not, ``report``
makes the file and the table of it, ``plot`` the picture.
"""
