"""How fast, and how well, the scheduler places; the scheduler alone, without a controller."""
