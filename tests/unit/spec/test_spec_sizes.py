"""Sizes, cpus and times: as written, as shown, and there and back."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmctl.proto.errors import InvalidSpec
from swarmctl.spec.sizes import (
    format_age,
    format_bytes,
    format_bytes_exact,
    format_cpus,
    format_duration,
    parse_cpus,
    parse_duration,
    parse_memory,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512m", 512 << 20),
        ("2GiB", 2 << 30),
        ("2gb", 2 << 30),
        ("2 GB", 2 << 30),
        ("1.5g", 3 << 29),
        ("65536k", 64 << 20),
        ("8388608", 8 << 20),
        ("8388608b", 8 << 20),
        (" 1T ", 1 << 40),
    ],
)
def test_memory_as_docker_reads_it(text, size):
    """Every unit is a power of 1024, however it is spelt."""
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("12 gigs", 'write "12g"'),
        ("1,5 GB", 'write "1.5g"'),
        ("512 megabytes", 'write "512m"'),
        ("lots", 'give a number and a unit, such as "512m" or "2GiB"'),
        ("-1g", 'give a number and a unit, such as "512m" or "2GiB"'),
        ("", 'give a number and a unit, such as "512m" or "2GiB"'),
        ("512", 'did you mean "512m"?'),
        ("1m", "give at least 6m"),
        ("2000000g", "is the unit right?"),
        ("1e9", 'give a number and a unit, such as "512m" or "2GiB"'),
    ],
)
def test_bad_memory_says_how_to_write_it(text, hint):
    """A wrong size is refused with a suggestion."""
    with pytest.raises(InvalidSpec) as caught:
        parse_memory(text)

    assert caught.value.hint == hint
    assert f'"{text}"' in caught.value.what


@pytest.mark.parametrize(
    ("text", "millis"), [("0.5", 500), ("2", 2000), (".25", 250), ("0", 0), ("1000", 1_000_000)]
)
def test_cpus(text, millis):
    """Cores are kept as thousandths."""
    assert parse_cpus(text) == millis


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("500m", 'write "0.5"'),
        ("0,5", 'write "0.5"'),
        ("-1", 'give a number of cores, such as "0.5" or "2"'),
        ("nan", 'give a number of cores, such as "0.5" or "2"'),
        ("0.0001", "give at least 0.001"),
        ("99999999", ""),
    ],
)
def test_bad_cpus_say_how_to_write_them(text, hint):
    """A wrong number of cores is refused with a suggestion."""
    with pytest.raises(InvalidSpec) as caught:
        parse_cpus(text)

    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("1m30s", 90),
        ("1h", 3600),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("2d", 172800),
        ("7", 7),
    ],
)
def test_durations(text, seconds):
    """Go's durations, days besides, and bare seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10 seconds", 'write "10s"'),
        ("5 min", 'write "5m"'),
        ("soon", 'give numbers with units, such as "10s" or "1m30s"'),
        ("", 'give numbers with units, such as "10s" or "1m30s"'),
        ("1m 30s", 'give numbers with units, such as "10s" or "1m30s"'),
        ("999999d", "is the unit right?"),
    ],
)
def test_bad_durations_say_how_to_write_them(text, hint):
    """A wrong time is refused with a suggestion."""
    with pytest.raises(InvalidSpec) as caught:
        parse_duration(text)

    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1288490188, "1.2 GiB"),
        (512 << 20, "512 MiB"),
        ((1 << 30) - 1, "1 GiB"),
        (5 << 60, "5120 PiB"),
    ],
)
def test_sizes_for_people(size, text):
    """One decimal, the largest unit that fits, never 1024 of one."""
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.25, "250ms"), (10, "10s"), (90, "1m30s"), (3600, "1h"), (90061.5, "1d1h1m1.5s")],
)
def test_durations_for_people(seconds, text):
    """As they are written in a file."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "now"),
        (0.5, "now"),
        (59.9, "59s ago"),
        (200, "3m ago"),
        (7300, "2h ago"),
        (1e6, "11d ago"),
    ],
)
def test_ages_for_people(seconds, text):
    """The largest unit alone; a clock that runs ahead is not an age."""
    assert format_age(seconds) == text


@given(st.integers(0, 1 << 50))
def test_exact_sizes_come_back(size):
    """What is shown exactly is read as the same number of bytes."""
    assert parse_size(format_bytes_exact(size)) == size


@given(st.integers(0, 1 << 49))
def test_shown_sizes_are_near(size):
    """What is shown is within the rounding of one decimal."""
    assert parse_size(format_bytes(size)) == pytest.approx(size, rel=0.06, abs=1)


@given(st.integers(0, 1_000_000_000))
def test_cpus_come_back(millis):
    """Cores are shown and read exactly."""
    assert parse_cpus(format_cpus(millis)) == millis


@given(st.integers(0, 10**12))
def test_durations_come_back(millis):
    """Times are shown and read exactly, to the millisecond."""
    assert round(parse_duration(format_duration(millis / 1000)) * 1000) == millis


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text):
    """No text makes a parser raise anything but InvalidSpec."""
    for parser in (parse_size, parse_memory, parse_cpus, parse_duration):
        with suppress(InvalidSpec):
            assert parser(text) >= 0
