"""etcd: see docs/architecture.md."""
