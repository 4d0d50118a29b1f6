"""Samples of plain text between those of a run, and the table of what the base says of them."""

import pickle

import numpy as np
import pytest

from varifocal.data.encoding.encoded import Encoded
from varifocal.data.rows.reference_table import ReferenceTable
from varifocal.data.rows.replay import Replay, WithReplay


def sample(length, name=""):
    return Encoded(np.zeros(length, np.int32), np.zeros(length, np.bool_), example_id=name)


def named(*lengths):
    return [sample(length, f"plain-{number}") for number, length in enumerate(lengths)]


def added(window):
    return [one.example_id for one in window if one.example_id]


def test_samples_are_taken_in_turn_until_they_are_the_share():
    taken = Replay(named(2, 3), share=0.2).next_to(24)
    assert added(taken) == ["plain-0", "plain-1", "plain-0"]
    assert added(Replay(named(2, 4), share=0.2).next_to(24)) == ["plain-0", "plain-1"]  # 6 of 30
    assert Replay(named(2), share=0.5).next_to(0) == []


def test_every_pass_of_a_stream_takes_them_in_another_order_and_in_the_same_share():
    replay = Replay(named(*[4] * 8), share=0.5)
    windows = [[sample(4), sample(4)], [], [sample(4)], [sample(4)]]
    passes = replay.between(lambda number: iter(windows))
    found = [[added(window) for window in passes(number)] for number in (0, 1, 0)]
    assert found[0] == found[2] != found[1]
    for windows_of in found:
        assert [len(window) for window in windows_of] == [2, 0, 1, 1]
        assert len({name for window in windows_of for name in window}) == 4
    assert [list(window) for window in passes(0)][1] == []  # the end of nothing adds nothing


def test_what_was_added_too_much_is_missing_from_the_next_window():
    passes = Replay(named(10), share=0.5).between(lambda number: iter([[sample(4)]] * 3))
    assert [len(added(window)) for window in passes(0)] == [1, 0, 1]


class Own(list):
    """Samples that name their records, as a run's do."""

    def name(self, number):
        return f"record {number}"


def test_those_of_a_replay_come_after_the_runs_own():
    own, plain = Own([sample(1), sample(2)]), named(3, 4, 5)
    both = WithReplay(own, plain)
    assert [len(both[number]) for number in range(len(both))] == [1, 2, 3, 4, 5]
    assert [len(one) for one in both[1:4]] == [2, 3, 4]
    assert [both.name(number) for number in (1, 2, 4)] == [
        "record 1",
        "'plain-0' of training.keep",
        "'plain-2' of training.keep",
    ]


def test_a_table_goes_to_another_process_without_what_it_has_read(tmp_path):
    ids = np.arange(6, dtype=np.int32).reshape(3, 2)
    log_probs = -np.arange(9, dtype=np.float32).reshape(3, 3)
    ReferenceTable.write(tmp_path, ids, log_probs)
    table = ReferenceTable(tmp_path)
    before = pickle.dumps(table)
    assert len(table) == 3
    assert isinstance(table.ids, np.memmap)
    assert isinstance(table.log_probs, np.memmap)
    assert pickle.dumps(table) == before
    copied = pickle.loads(before)
    assert copied.ids.tolist() == ids.tolist()
    assert copied.log_probs == pytest.approx(log_probs)
