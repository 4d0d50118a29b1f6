"""Which examples of which tasks are looked at."""

import pytest

from varifocal.analysis.tasks import MAX_TASKS, draw_tasks, name_task
from varifocal.data.example import Example, Message
from varifocal.errors import DataError


def example(task, number=0, **fields):
    turns = (Message("user", (f"{number}?",)), Message("assistant", ("yes",)))
    return Example(turns, id=str(number), task=task, **fields)


def book(**counts):
    return [example(task, number) for task, count in counts.items() for number in range(count)]


def test_a_task_is_the_skill_the_task_or_the_source():
    assert name_task(example("QCM-A", tags={"skill": "Use wind roses"})) == "Use wind roses"
    assert name_task(example("caption", source="data/book.json")) == "caption"
    assert name_task(example("", source="data/book.json")) == "book"


def test_a_draw_is_bounded_repeatable_and_in_order():
    examples = book(a=50, b=3)
    first = draw_tasks(iter(examples), per_task=8, seed=1)
    ids = [int(one.id) for one in first.by_task["a"]]
    assert ids == sorted(ids)
    assert len(set(ids)) == 8
    assert ids != list(range(8))
    assert [one.id for one in first.by_task["b"]] == ["0", "1", "2"]
    assert draw_tasks(examples, per_task=8, seed=1) == first
    assert draw_tasks(examples, per_task=8, seed=2) != first
    assert first.counts == {"a": 50, "b": 3}


def test_every_example_is_drawn_alike():
    examples = book(a=6, b=2)
    seen = [
        one.id
        for seed in range(600)
        for one in draw_tasks(examples, per_task=2, seed=seed).by_task["a"]
    ]
    shares = [seen.count(str(number)) / 600 for number in range(6)]
    assert shares == pytest.approx([1 / 3] * 6, abs=0.07)


def test_of_many_tasks_the_most_frequent_are_taken_and_the_rest_is_told_of():
    counts = {f"t{number}": 2 + number for number in range(MAX_TASKS + 3)}
    drawn = draw_tasks(book(**counts, alone=1), per_task=4)
    assert len(drawn.by_task) == MAX_TASKS
    assert next(iter(drawn.by_task)) == f"t{MAX_TASKS + 2}"
    assert drawn.left_out == [
        "3 less frequent tasks; name tasks with --tasks",
        "1 tasks with fewer than 2 examples",
    ]


def test_named_tasks_come_in_the_order_named():
    assert list(draw_tasks(book(a=9, b=3, c=2), ["c", "a"], per_task=4).by_task) == ["c", "a"]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (["magnet"], r"--tasks: no task 'magnet'; did you mean 'magnets'\? \(there: magnets, one"),
        (["magnets", "one"], "--tasks: 'one' has 1 example, at least 2 are needed"),
        (["magnets"], "two tasks or more are compared, here there are 1"),
        (None, "two tasks or more are compared, here there are 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(wanted, sentence):
    with pytest.raises(DataError, match=sentence):
        draw_tasks(book(magnets=5, one=1), wanted, per_task=4)
