"""transport: see docs/architecture.md."""
