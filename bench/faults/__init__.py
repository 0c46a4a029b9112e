"""What happens when something fails, and how long until all is as desired again.

``python -m bench.faults`` makes each fault of the table in ``docs/reliability.md`` happen to real
daemons (kill -9, SIGSTOP, a cable that is cut, a full disk, a clock that is stepped, descriptors
that run out), waits for what has to follow, and writes the seconds to ``results/faults.json``.
A fault whose outcome does not come within a minute makes the program fail.

Containers are real ones of this machine's Docker where containers matter, and simulated ones where
who leads does.  All it makes on the machine it removes.
"""
