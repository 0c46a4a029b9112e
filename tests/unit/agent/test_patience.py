"""An agent's patience with a silent controller: soon the first time, longer each time after it."""

from swarmctl.agent.patience import ANSWERS_MIN, TIMES_MAX, Patience
from swarmctl.proto import limits

HERE, THERE = "tcp://10.0.0.1:7077", "tcp://10.0.0.2:7077"


def test_the_first_silence_is_noticed_as_soon_as_ever():
    patience = Patience()

    assert patience.allowed_s(HERE, is_open=True, is_only=False) == limits.CONTROLLER_SILENT_S
    assert patience.allowed_s(HERE, is_open=False, is_only=False) == limits.HANDSHAKE_S


def test_each_silence_of_the_same_controller_waits_twice_as_long_up_to_a_bound():
    patience = Patience()
    waits = []
    for _ in range(5):
        patience.silent(HERE)
        waits.append(patience.allowed_s(HERE, is_open=False, is_only=False) / limits.HANDSHAKE_S)

    assert waits == [2, 4, TIMES_MAX, TIMES_MAX, TIMES_MAX]


def test_another_controller_begins_afresh_and_so_does_the_first_one_after_it():
    patience = Patience()
    patience.silent(HERE)
    patience.silent(HERE)

    assert patience.allowed_s(THERE, is_open=True, is_only=False) == limits.CONTROLLER_SILENT_S
    patience.silent(THERE)
    assert patience.allowed_s(HERE, is_open=True, is_only=False) == limits.CONTROLLER_SILENT_S
    assert patience.allowed_s(THERE, is_open=True, is_only=False) == 2 * limits.CONTROLLER_SILENT_S


def test_one_that_answers_again_for_a_while_is_trusted_as_before():
    patience = Patience()
    patience.silent(HERE)
    for _ in range(ANSWERS_MIN - 1):
        patience.answered()
    assert patience.allowed_s(HERE, is_open=True, is_only=False) == 2 * limits.CONTROLLER_SILENT_S

    patience.answered()
    assert patience.allowed_s(HERE, is_open=True, is_only=False) == limits.CONTROLLER_SILENT_S


def test_the_only_controller_is_waited_for_longer_from_the_first_silence_on():
    patience = Patience()
    for is_open in (True, False):
        allowed_s = patience.allowed_s(HERE, is_open=is_open, is_only=True)
        assert allowed_s == limits.ONLY_CONTROLLER_SILENT_S > limits.HANDSHAKE_S
