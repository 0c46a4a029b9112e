"""Property tests here are repeatable, and are not timed: the machine may be busy."""

from hypothesis import settings

settings.register_profile("spec", derandomize=True, deadline=None)
settings.load_profile("spec")
