"""Every bound of the protocol and of the daemons, each with its reason.

Times end in ``_S`` (seconds), sizes in ``_BYTES``.
A bound of one driver or one command lives at the top of its own module.
"""

from typing import Final

# --- frames -----------------------------------------------------------------------------------

# A full assignment of a node with 10,000 instances is about 2 MiB; four times that is an error.
MESSAGE_MAX_BYTES: Final = 8 * 1024 * 1024
# The longest text in a message (a reason, an error): a terminal screen full.
TEXT_MAX_CHARS: Final = 4096
# msgpack nesting in a message: spec > vm > cloud_init > list is 6 deep.
NESTING_MAX: Final = 32
# One chunk of log or console output: small enough to interleave, large enough to be cheap.
STREAM_CHUNK_BYTES: Final = 32 * 1024
# Chunks under way on one stream before the receiver grants more: 2 MiB a stream at the most.
STREAM_WINDOW_CHUNKS: Final = 64

# --- session ----------------------------------------------------------------------------------

# Heartbeats: DESIGN 7. Jitter keeps 10,000 agents from falling into step.
HEARTBEAT_S: Final = 2.0
HEARTBEAT_JITTER: Final = 0.2
# Two missed heartbeats and a half: a node is called lost within 5 s.
NODE_LOST_S: Final = 5.0
# When more than this share of the nodes, and at least so many, vanish within so long, the fault is
# likelier here than there: what they had is not placed elsewhere for a while (DESIGN 7).
STORM_SHARE: Final = 0.2
STORM_NODES_MIN: Final = 5
STORM_WINDOW_S: Final = 10.0
STORM_BRAKE_S: Final = 300.0
# An agent that hears nothing for this long says hello again (heartbeats are acknowledged).
CONTROLLER_SILENT_S: Final = 5.0
# The same where there is no other controller to turn to: to leave the only one costs it a handshake
# and a hello with all that the node has, and finds nobody else. A wire that is dead is noticed by
# its probes, within seconds; this is for what neither side can see.
ONLY_CONTROLLER_SILENT_S: Final = 30.0
# An agent that has heard the only controller so lately needs no answer to its heartbeats: three in
# four are saved so, and in half a minute there still are some four that it would have to miss.
# With 15 s ten thousand agents did not come back to a controller that had been killed: what they
# asked for at last came after they had left.
UNHEARD_S: Final = 6.0
# Hello, welcome and enrolment are one round trip each; a busy controller may take a while.
HANDSHAKE_S: Final = 10.0
# First wait before a new connection, doubled up to the second value: a controller that starts
# again knows its nodes within 3 s, and 10,000 attempts a second on a dead port cost nothing.
RECONNECT_MIN_S: Final = 0.1
RECONNECT_MAX_S: Final = 1.0
# Status reports kept by an agent until acknowledged; coalesced to one an instance before that.
OUTBOX_MAX: Final = 100_000
# Status reports in one message.
REPORT_BATCH: Final = 1_000

# Fencing: how long a node may run what is fenced without a word of the controller; long enough for
# a controller that is started anew, short enough to wait for.
FENCING_LEASE_S: Final = 30.0
# A lease has to outlast the longest pause between heartbeats, with room for starts.
FENCING_LEASE_MIN_S: Final = 8.0
# From the end of a lease until the guard has killed all: milliseconds on an idle machine.
FENCING_KILL_S: Final = 5.0
# Two machines' clocks run apart by less than this; quartz by a hundredth of it.
CLOCK_DRIFT_MAX: Final = 0.01

# --- requests ---------------------------------------------------------------------------------

# A request that says no deadline of its own.
RPC_TIMEOUT_S: Final = 10.0
# Requests under way of one client, and of all: past that the answer is Busy.
RPC_PER_PEER: Final = 1_024
RPC_TOTAL: Final = 20_000
# Suggested wait in a Busy answer: at the least, and at the most.
BUSY_RETRY_MS: Final = 200
BUSY_RETRY_MAX_MS: Final = 5_000
# How long a simple request may have to wait for its turn before it is refused: a person does not
# wait much longer, and it leaves most of RPC_TIMEOUT_S to those that are let in.
BULK_WAIT_S: Final = 0.5
# Simple requests being served at a time: two groups of commits, so that one gathers while the disk
# works. The others wait where their peers have turns.
BULK_UNDER_WAY: Final = 2_000
# Bytes of simple requests that wait; four of the largest messages, or 50,000 usual ones.
BULK_BYTES: Final = 32 * 1024 * 1024
# Messages of nodes that were read and wait: one of each of 10,000 nodes, and what those say
# meanwhile; and their bytes, as hellos with inventories are larger.
BACKLOG_MESSAGES: Final = 20_000
BACKLOG_BYTES: Final = 64 * 1024 * 1024
# Bytes of answers that wait for clients to read; as much as may come in.
ANSWERS_BYTES: Final = 32 * 1024 * 1024
# Records of simple requests that share a transaction, in bytes: below any store's bound.
BULK_COMMIT_BYTES: Final = 512 * 1024
# A client comes again with what was refused so many times, if its deadline allows.
BUSY_ATTEMPTS_MAX: Final = 20

# --- controller -------------------------------------------------------------------------------

# Operations committed together; a group closes when it is full or the queue is empty.
COMMIT_GROUP_MAX: Final = 1_000
# The same in bytes: a group of the largest values must not become a 500 MiB transaction.
COMMIT_GROUP_BYTES: Final = 16 * 1024 * 1024
# Operations and bytes that wait for the disk; past either the answer is Busy. 20,000 is one second
# of the slowest disk that we want to serve, the bytes keep a stalled disk from eating the memory.
COMMIT_QUEUE_MAX: Final = 20_000
COMMIT_QUEUE_BYTES: Final = 128 * 1024 * 1024
# Closing waits this long for the disk to take what was queued, and then says so.
STORE_CLOSE_S: Final = 10.0
# Another process that looks into the database (a backup) holds its lock for a moment at most.
STORE_LOCK_S: Final = 5.0
# The check of a database at start; past it a large one is served with the check cut short.
STORE_CHECK_S: Final = 5.0
# Keys are paths of names; etcd and SQLite take more, nobody needs it.
KEY_MAX_BYTES: Final = 512
# Store contract: DESIGN 8.8.
VALUE_MAX_BYTES: Final = 512 * 1024
TRANSACTION_OPS_MAX: Final = 100
# One record, in pieces of that: half of the largest message, in which it comes and is passed on.
RECORD_MAX_BYTES: Final = 4 * 1024 * 1024
# The keys and values of one transaction: etcd takes requests of 1.5 MiB.
TRANSACTION_BYTES_MAX: Final = 1024 * 1024
# Replicas of one service: a typing error of three more zeros is not a plan.
REPLICAS_MAX: Final = 5_000_000
# Events kept in memory for `explain`, an instance and a service.
HISTORY_MAX: Final = 20

# An assignment is sent in parts below this: half of the largest message, so that an estimate of
# the size need not be exact.
ASSIGN_PART_BYTES: Final = 4 * 1024 * 1024
# How far an agent may be ahead of us in terms: a store restored from a backup is behind by the
# controllers started since. More is a damaged agent, which must not use up the terms there are.
TERM_JUMP_MAX: Final = 100_000
# Malformed messages on one connection before it is ended: a defect repeats, a mishap does not.
MALFORMED_MAX: Final = 100
# Enrolments under way; a fleet that joins at once comes again a little later.
ENROLMENTS_MAX: Final = 1_000
# Deleted services that are remembered. Past that the oldest are forgotten, which is safe: what
# returns of them is quarantined in place of removed.
TOMBSTONES_MAX: Final = 10_000
# Templates kept beside those in use, before the unused ones are looked for.
TEMPLATES_SPARE: Final = 1_000

# --- agent ------------------------------------------------------------------------------------

# Restart backoff of an instance: first wait, doubled up to the last; reset after a good run.
RESTART_BACKOFF_MIN_S: Final = 0.5
RESTART_BACKOFF_MAX_S: Final = 60.0
RESTART_RESET_S: Final = 60.0
# Restarts within the reset time after which a loop is named a crash loop.
CRASH_LOOP_RESTARTS: Final = 3
# Grace between the polite and the forced stop when the spec says none (docker's own default).
STOP_GRACE_S: Final = 10.0
# Launches under way at once, a driver; measured: docker gains nothing past 4, libvirt past 8.
LAUNCHES_DOCKER: Final = 8
LAUNCHES_LIBVIRT: Final = 8
# runc and conmon are processes of their own, started and ended for each launch: what helps is
# cores, not numbers.
LAUNCHES_OCI: Final = 8
