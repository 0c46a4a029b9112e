"""The launch-scale harness: a real controller, simulated nodes, one measured launch.

``fleet`` is the process that simulates nodes: the production agent (session, supervisor,
executor) over real ZeroMQ with CURVE, with the simulated driver below and its journal in memory.
``cluster`` starts the controller and the fleets as child processes.  ``measure`` submits through
the same client code as the command line and waits until the controller knows that all run.
``check`` compares the nodes' own lists with the controller's view.  ``report`` writes it down.
"""
