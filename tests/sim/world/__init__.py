"""Deterministic simulation: a whole cluster, and all that can go wrong with it, from one seed.

The real daemons (``run_controller`` and ``run_agent``, with all that is in them) run in one process
on simulated edges: :mod:`network` (over ``transport/memory``), :mod:`disks` (what is synced stays,
what is not is lost by a crash), :mod:`machines` (instances, the driver, the machine's clock) and
trio's virtual clock.  :mod:`users` ask for things and know what they may expect; :mod:`faults`
(with :mod:`wires` and :mod:`contests`) break everything that can break; :mod:`invariants` are
checked at every step, and once the faults stop, all has to be as the users said, within a bound.

All chance comes from the seed: trio's choice among tasks that can run, too.  So one seed is one
run, event for event (:mod:`trace` makes a hash of them), in every process whose ``PYTHONHASHSEED``
is 0; ``python -m tests.sim.world --help`` begins one.

In one seed of three the controllers elect their leader (:mod:`several`, :mod:`etcd`); in the others
one of two is in charge, and now and then the other usurps.

Not simulated: ZeroMQ, SQLite, Docker and libvirt themselves (the tests of ``integration/`` run
those); clocks that run at different speeds between two timeouts (only what machines take for the
time of day drifts); the transactions of the store in etcd; agents that are stopped and go on
(guards and leaders are).
"""
