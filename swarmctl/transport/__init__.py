"""Moves opaque payloads between controller, agents and clients: ZeroMQ, and a twin in memory.

A payload is one ``bytes`` object, one a message, of bounded size; what it means is ``proto``'s.
:mod:`swarmctl.transport.api` states the contract, ``zmq_listener``/``zmq_link`` carry it over TCP
with CURVE, ``memory`` carries it inside one process for tests and simulations, and
``sync_client`` is the plain command line's end, without trio.

Nothing is imported here, so that ``sync_client`` stays cheap to import.
"""
