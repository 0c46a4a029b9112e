"""Tenant networks: which rows OVN should have, and how an instance is plugged in (ADR 14).

Decisions (addresses, VLANs, rows, differences) are pure; ``ovn`` and ``plugging`` are the shell.
"""
