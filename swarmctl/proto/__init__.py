"""The wire protocol without any I/O: messages, codec, session state machine, limits, errors."""
