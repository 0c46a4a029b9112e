"""The stack file: models, parsing, sizes, validation, diff. Pure."""
