"""Rules for every test: on CI none is skipped; none leaves its log to the next, or is timed."""

import os
import signal
import threading

import pytest
import structlog
from hypothesis import HealthCheck, settings

# Property tests are repeatable, and are not timed: the machine may be busy.
settings.register_profile(
    "untimed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")
ON_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_configure(config):
    config.addinivalue_line("markers", "alone: measures time, so no other test runs beside it")
    if threading.current_thread() is threading.main_thread():
        # A script that starts us in the background has SIGINT ignored, and so would all the
        # programs that tests start and interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _reason(report) -> str:
    longrepr = report.longrepr
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


def _refuse_skip(report) -> None:
    """Turn a skip into a failure that gives the skip's reason; an expected failure stays one."""
    if ON_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.longrepr = f"on CI no test may skip; this one did: {_reason(report)}"
        report.outcome = "failed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture(autouse=True, scope="session")
def _loggers_are_not_cached():
    """A daemon caches its loggers; here the stream that they write to ends with each test."""
    configure = structlog.configure

    def configure_without_cache(**settings):
        configure(**(settings | {"cache_logger_on_first_use": False}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", configure_without_cache)
        yield


@pytest.fixture(autouse=True)
def _log_is_left_as_it_was():
    yield
    structlog.reset_defaults()
