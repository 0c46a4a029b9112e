"""What clients may ask of a controller, one module a subject."""
