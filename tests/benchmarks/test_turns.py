"""Cases in turns: ratios by hand, and workers that fail."""

import time

import pytest

from benchmarks.cases import Case, Program, Table
from benchmarks.turns import Row, Workers, measure, ratio
from benchmarks.worker import median_time, time_calls

PROGRAMS = "tests.benchmarks.programs"


def row(*times):
    return Row("case", times, 0.0, None, None, {})


def table(*cases, processes="library"):
    return Table("a table", cases[0].name, cases, {}, processes)


def case(name, function="sleep", library="jax", **options):
    return Case(name, library, f"{PROGRAMS}:{function}", options)


@pytest.fixture
def workers():
    with Workers("cpu") as workers:
        yield workers


def test_ratio_is_the_median_within_rounds():
    """Rounds 3/1, 4/2, 10/2, 8/1, 5/5: sorted 1, 2, 3, 5, 8."""
    compared = ratio(row(3, 4, 10, 8, 5), row(1, 2, 2, 1, 5))
    assert (compared.low, compared.median, compared.high) == (2, 3, 5)


def test_quartiles_lie_between_rounds():
    """The lower quartile of 1, 2, 3, 4 is three quarters of the way from 1 to 2."""
    compared = ratio(row(1, 2, 3, 4), row(1, 1, 1, 1))
    assert (compared.low, compared.median, compared.high) == (1.75, 2.5, 3.25)


def test_one_round_has_no_spread():
    compared = ratio(row(6), row(4))
    assert (compared.low, compared.median, compared.high) == (1.5, 1.5, 1.5)


def test_without_turns_medians_are_compared():
    """Medians 4 and 2, whatever the order, and however many."""
    compared = ratio(row(1, 4, 9), row(2, 2), in_turns=False)
    assert (compared.low, compared.median, compared.high) == (None, 2, None)


def test_cases_are_timed_in_turns(workers):
    """A sleep is never shorter than asked for; twice as long is seen in the ratio."""
    cases = case("short", seconds=0.02, params=7), case("long", seconds=0.04)
    measured = measure(table(*cases), workers, rounds=3, seconds=0.01)
    short, long = measured.rows
    assert measured.left_out == {}
    assert (short.name, len(short.times), short.facts) == ("short", 3, {"params": 7})
    assert min(short.times) >= 0.02
    # A machine under load sleeps longer, by a few milliseconds each.
    assert 1.2 < ratio(long, short).median < 2.1
    assert short.first_call >= 0.02
    assert short.memory_bytes is None  # its process is shared


def test_own_processes_tell_their_memory(workers):
    cases = case("one", seconds=0.0), case("other", seconds=0.0)
    measured = measure(
        table(*cases, processes="case"), workers, rounds=1, seconds=0.001
    )
    assert [row.name for row in measured.rows] == ["one", "other"]
    assert all(isinstance(row.memory_bytes, int) for row in measured.rows)


def test_cases_are_built_together():
    """Four that take 0.2 s to build take less than two after each other."""
    cases = [case(f"{i}", seconds=0.2) for i in range(4)]
    with Workers("cpu", jobs=4) as workers:
        workers.build("jax", cases[:1])  # which starts the process
        start = time.monotonic()
        built = workers.build("jax", cases)
        assert time.monotonic() - start < 0.8  # each is called twice
    assert [facts["facts"] for facts in built.values()] == [{}] * 4


@pytest.mark.parametrize("processes", ["library", "case", "alone"])
def test_a_case_that_cannot_be_built_is_left_out_and_said(workers, processes):
    logged = []
    cases = case("good", seconds=0.0), case("bad", "refuse", reason="no such thing")
    measured = measure(
        table(*cases, processes=processes),
        workers,
        rounds=2,
        seconds=0.001,
        log=logged.append,
    )
    assert [row.name for row in measured.rows] == ["good"]
    assert measured.left_out == {"bad": "ValueError: no such thing"}
    assert "left out bad: ValueError: no such thing" in logged


def test_a_case_that_fails_later_is_left_out(workers):
    """Twice it is called when it is built, the third time in its first turn."""
    cases = case("good", seconds=0.0), case("tired", "tire", calls=2)
    measured = measure(table(*cases), workers, rounds=3, seconds=0.001)
    assert [(row.name, len(row.times)) for row in measured.rows] == [("good", 3)]
    assert measured.left_out == {"tired": "MemoryError: tired"}


def test_a_process_that_ends_is_left_out_with_its_last_words(workers):
    cases = case("good", seconds=0.0), case("dead", "die", library="torch")
    measured = measure(table(*cases), workers, rounds=1, seconds=0.001)
    assert [row.name for row in measured.rows] == ["good"]
    assert measured.left_out == {"dead": "killed by nobody"}
    again = measure(
        table(case("next", seconds=0.0, library="torch")), workers, rounds=1
    )
    assert [row.name for row in again.rows] == ["next"]  # in a new process


def test_a_process_that_is_killed_is_left_out_with_the_signal(workers):
    cases = case("good", seconds=0.0), case("big", "be_killed", library="torch")
    measured = measure(table(*cases), workers, rounds=1, seconds=0.001)
    assert measured.left_out == {"big": "killed by SIGKILL"}


@pytest.mark.parametrize("processes", ["library", "alone"])
def test_rounds_are_dropped_when_time_is_over_but_no_case(workers, processes):
    cases = case("one", seconds=0.01), case("other", seconds=0.01)
    logged = []
    measured = measure(
        table(*cases, processes=processes),
        workers,
        rounds=100,
        seconds=0.01,
        deadline=time.monotonic(),
        log=logged.append,
    )
    assert [(r.name, len(r.times)) for r in measured.rows] == [("one", 1), ("other", 1)]
    assert "no time for more than 1 of 100 rounds" in logged


def test_time_counts_the_steps_of_a_call():
    """A call of 10 ms that does 5 steps takes 2 ms a step."""
    program = Program(lambda: time.sleep(0.01), lambda _: None, steps=5)
    assert 0.002 <= median_time(program, 0.02) < 0.004


def test_one_slow_run_of_three_does_not_count():
    """The second, after that which warms up: the median of 50, 1 and 1 ms is 1."""
    naps = iter([0.02, 0.05, 0.001, 0.001])
    program = Program(lambda: time.sleep(next(naps, 0.001)), lambda _: None)
    assert 0.001 <= median_time(program, 0.02) < 0.02


def test_long_runs_are_fewer():
    """Two of 60 ms pass ten times 10 ms; one more warms up."""
    calls = []
    program = Program(lambda: calls.append(time.sleep(0.06)), lambda _: None)
    assert median_time(program, 0.01) >= 0.06
    assert len(calls) == 3


def test_calls_are_queued_only_where_the_device_works_alone():
    """Waiting takes 1 ms here, a call nothing: queued calls share one wait."""
    waits = []

    def wait(_):
        waits.append(None)
        time.sleep(0.001)

    alone = Program(lambda: None, wait)
    assert median_time(alone, 0.01) >= 0.001
    queued = Program(lambda: None, wait, queued=True)
    assert median_time(queued, 0.01) < 0.0005
    waits.clear()
    time_calls(queued, 7)
    assert len(waits) == 1
