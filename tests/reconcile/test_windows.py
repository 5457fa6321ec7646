"""Windows: nothing falls between two of them, and a month of nights sees all of history."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from reconcile.windows import (
    ALIVE,
    DAY,
    EVENTS_KEPT,
    LISTS,
    RECENT,
    ROUND,
    SLICES,
    Window,
    halves,
    initial_slices,
    merged,
    nightly,
    scan_plan,
)

SECONDS = st.integers(min_value=0, max_value=400)
WINDOWS = st.lists(st.builds(Window, SECONDS, SECONDS), max_size=12)
NOW = 1_790_000_000


def seconds(windows: Iterable[Window]) -> set[int]:
    return {second for window in windows for second in range(window.lo, window.hi)}


@given(WINDOWS)
def test_merged_windows_hold_the_same_seconds_disjoint_and_sorted(windows: list[Window]) -> None:
    united = merged(windows)
    assert seconds(united) == seconds(windows)
    assert all(a.hi < b.lo for a, b in pairwise(united))
    assert all(w.lo < w.hi for w in united)


@given(SECONDS, SECONDS)
def test_halves_hold_the_same_seconds_the_younger_first(lo: int, length: int) -> None:
    parts = halves(lo, lo + length)
    if length < 2:
        assert parts is None
    else:
        assert parts is not None
        younger, older = parts
        assert (older.lo, older.hi, younger.lo, younger.hi) == (lo, younger.lo, older.hi, lo + length)
        assert abs((younger.hi - younger.lo) - (older.hi - older.lo)) <= 1


@given(st.lists(st.tuples(st.integers(0, NOW), st.integers(1, 400 * DAY)), min_size=1, max_size=5))
def test_first_slices_hold_the_same_seconds_and_are_few(told: list[tuple[int, int]]) -> None:
    windows = merged(Window(lo, lo + length) for lo, length in told)
    cuts = initial_slices(windows)
    assert merged(cuts) == windows
    assert sum(c.hi - c.lo for c in cuts) == sum(w.hi - w.lo for w in windows)
    assert len(cuts) <= SLICES + len(windows)
    assert cuts == sorted(cuts, reverse=True)


@given(
    st.integers(0, 900).map(lambda days: NOW - days * DAY - 12_345),
    st.integers(0, 5),
    st.sets(st.integers(0, ROUND - 1), max_size=12),
)
def test_thirty_nights_cover_every_second_of_history_though_it_grows_and_nights_are_missed(
    since: int, hours: int, missed: set[int]
) -> None:
    read: list[Window] = []
    owed: list[int] = []
    first = NOW // DAY
    for number in range(ROUND):
        night = first + number
        owed.append(night)
        if number in missed and number != ROUND - 1:
            continue
        read += nightly(night * DAY + hours * 3600 + 7, since, owed)
        owed = []
    end = (first + ROUND - 1) * DAY + hours * 3600 + 7
    united = merged(read)
    assert len(united) == 1
    assert united[0].lo <= since
    assert united[0].hi == end


def test_before_history_is_known_the_last_72_hours_are_read() -> None:
    assert nightly(NOW, None, [NOW // DAY]) == (Window(NOW - RECENT, NOW),)


@given(WINDOWS.map(lambda windows: [Window(w.lo * DAY, w.hi * DAY) for w in windows]))
def test_no_list_is_read_beyond_the_upper_edge_and_every_list_is_planned(windows: list[Window]) -> None:
    upper = 300 * DAY + 5
    plan = scan_plan(windows, upper)
    assert list(plan.lists) == list(LISTS)
    assert all(w.hi <= upper for each in plan.lists.values() for w in each)
    assert all(plan.lists[name] == (Window(0, upper),) for name in ALIVE)
    assert plan.lists["charges"] == plan.windows == merged(Window(w.lo, min(w.hi, upper)) for w in windows)
    assert all(w.lo >= upper - EVENTS_KEPT for w in plan.lists["events"])
