"""Answers are kept as they come, a kill loses one batch, and batches and order change nothing."""

import json

import pytest
import torch

from varifocal.assemble import Assembly
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.errors import DataError, RunError
from varifocal.evaluation.benchmark import Answer, Benchmark, Item, accuracy
from varifocal.evaluation.evaluated_model import EncodedAsker
from varifocal.evaluation.runner import About, AskOptions, run

ABOUT = About(model="tiny", fingerprint="w1", command="varifocal eval tiny")


def benchmark(**changes):
    options = {
        "name": "fruit",
        "load": lambda folder, split: iter(()),
        "measure": lambda answered: [accuracy(answered)],
        "files": "none",
        "protocol": "asked",
        "source": "here",
        "main": "accuracy",
        "max_new_tokens": 3,
    }
    return Benchmark(**{**options, **changes})


def items(count=9):
    found = []
    for number in range(count):
        choices = ("a pear", "plum", "an apple pie")
        text = f"Question {number}: {'which ' * (number % 4)}fruit?"
        messages = (Message("user", (text,)), Message("assistant", (choices[number % 3],)))
        example = Example(messages, f"q{number}", choices=choices, answer_index=number % 3)
        found.append(Item(f"q{number}", example, (choices[number % 3],), group=f"g{number % 2}"))
    return found


@pytest.fixture
def asker(chat_llama, tokenizer):
    return EncodedAsker(Assembly(chat_llama, tokenizer, Encoder(tokenizer), None, None, None))


class Watched:
    """An asker that counts its batches, and dies before one of them."""

    def __init__(self, asker, dies_at=None):
        self.model, self.prepare, self._asker = asker.model, asker.prepare, asker
        self.asked, self.batches, self._dies_at = [], 0, dies_at

    def score(self, prompts, normalisation):
        self._count(prompts)
        return self._asker.score(prompts, normalisation)

    def write(self, prompts, max_new_tokens):
        self._count(prompts)
        return self._asker.write(prompts, max_new_tokens)

    def _count(self, prompts):
        if self.batches == self._dies_at:
            raise KeyboardInterrupt
        self.batches += 1
        self.asked += [prompt.sha for prompt in prompts]


def lines(directory, name="fruit"):
    text = (directory / f"{name}.predictions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


methods = pytest.mark.parametrize("method", ["likelihood", "generate"])


@methods
def test_batch_size_and_order_change_no_answer(asker, tmp_path, method):
    row, seen = benchmark(method=method), []
    for number, (size, order) in enumerate([(1, 1), (4, 1), (9, -1), (2, -1)]):
        options = AskOptions(batch_size=size)
        result = run(
            row, items()[::order], asker, tmp_path / str(number), options=options, about=ABOUT
        )
        found = {line.pop("id"): line for line in lines(tmp_path / str(number))}
        scores = [found[name].pop("scores", ()) for name in sorted(found)]
        seen.append((result.measures, found, scores))
    for measures, found, scores in seen[1:]:
        assert measures == seen[0][0]
        assert found == seen[0][1]
        for one, other in zip(scores, seen[0][2], strict=True):
            assert one == pytest.approx(other, abs=1e-10)


@methods
def test_a_killed_run_goes_on_where_it_was(asker, tmp_path, method):
    row, options = benchmark(method=method), AskOptions(batch_size=2)
    run(row, items(), asker, tmp_path / "whole", options=options, about=ABOUT)
    dying = Watched(asker, dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(row, items(), dying, tmp_path / "cut", options=options, about=ABOUT)
    assert len(lines(tmp_path / "cut")) == 4
    assert not (tmp_path / "cut" / "fruit.json").exists()
    file = tmp_path / "cut" / "fruit.predictions.jsonl"
    file.write_bytes(file.read_bytes()[:-7])  # the kill came inside the fourth line
    rest = Watched(asker)
    result = run(row, items(), rest, tmp_path / "cut", options=options, about=ABOUT)
    assert result.num_stored == 3
    assert len(rest.asked) == 6
    names = ("fruit.json", "fruit.predictions.jsonl")
    assert [(tmp_path / "cut" / name).read_text() for name in names] == [
        (tmp_path / "whole" / name).read_text() for name in names
    ]


def test_a_finished_run_asks_nothing_and_other_weights_ask_everything(asker, tmp_path):
    first = run(benchmark(), items(), asker, tmp_path, about=ABOUT)
    again = Watched(asker)
    second = run(benchmark(), items(), again, tmp_path, about=ABOUT)
    assert (again.asked, second.num_stored, second.measures) == ([], 9, first.measures)
    for about in (About(fingerprint="w2"), About(fingerprint=None), About(fingerprint=None)):
        other = Watched(asker)
        assert run(benchmark(), items(), other, tmp_path, about=about).num_stored == 0
        assert len(other.asked) == 9


def test_answers_of_another_strength_are_neither_continued_nor_overwritten(asker, tmp_path):
    half, less = (About(fingerprint="w1", strength=strength) for strength in (0.5, 0.25))
    whole = run(benchmark(), items(), asker, tmp_path, about=ABOUT)
    result = run(benchmark(), items(), asker, tmp_path, about=half)
    assert result.file.name == "fruit-strength-0.5.json"
    assert [json.loads(one.file.read_text())["strength"] for one in (whole, result)] == [1, 0.5]
    predictions = (tmp_path / "fruit-strength-0.5.predictions.jsonl").read_text()
    for about, kept in ((half, 9), (less, 0)):
        file = tmp_path / f"fruit-strength-{about.strength}.predictions.jsonl"
        file.write_text(predictions)
        assert run(benchmark(), items(), asker, tmp_path, about=about).num_stored == kept


def test_a_changed_question_is_asked_again_alone(asker, tmp_path):
    run(benchmark(), items(), asker, tmp_path, about=ABOUT)
    changed = items()
    example = Example((Message("user", ("Other?",)),), "q4", choices=changed[4].example.choices)
    changed[4] = Item("q4", example, ("plum",))
    watched = Watched(asker)
    assert run(benchmark(), changed, watched, tmp_path, about=ABOUT).num_stored == 8
    assert len(watched.asked) == 1


def test_a_kept_answer_is_read_by_the_parser_of_now(asker, tmp_path):
    run(benchmark(method="generate"), items(), asker, tmp_path, about=ABOUT)
    row = benchmark(method="generate", parse=lambda text, item: item.references[0])
    watched = Watched(asker)
    assert run(row, items(), watched, tmp_path, about=ABOUT).measures[0].value == 100
    assert watched.asked == []


def test_unparsed_answers_are_counted_and_earn_nothing(asker, tmp_path):
    row = benchmark(method="generate", parse=lambda text, item: None)
    result = run(row, items(), asker, tmp_path, about=ABOUT)
    measure = result.measures[0]
    assert (measure.value, measure.count, measure.unparsed) == (0.0, 9, 9)
    assert json.loads(result.file.read_text())["unparsed"] == 9
    assert {line["parsed"] for line in lines(tmp_path)} == {None}


def test_files_say_what_was_asked_and_of_whom(asker, tmp_path):
    result = run(benchmark(), items(), asker, tmp_path, about=ABOUT)
    page = json.loads(result.file.read_text())
    assert page["benchmark"] == "fruit"
    assert page["measures"][0]["name"] == page["main"] == "accuracy"
    assert (page["items"], page["model"], page["command"]) == (9, "tiny", "varifocal eval tiny")
    assert page["versions"]["torch"] == torch.__version__
    line = lines(tmp_path)[0]
    assert line["id"] == "q0"
    assert line["gold"] == ["a pear"]
    assert line["group"] == "g0"
    assert line["correct"] == float(line["choice"] == 0)
    assert [found["id"] for found in lines(tmp_path)] == [item.id for item in items()]


def test_ways_have_files_of_their_own(asker, tmp_path):
    ways = [
        (AskOptions(), "fruit"),
        (AskOptions(method="likelihood"), "fruit"),
        (AskOptions(method="generate", blind=True), "fruit-generate-blind"),
        (AskOptions(split="val", limit=5), "fruit-val-first5"),
    ]
    for options, name in ways:
        assert (
            run(benchmark(), items(), asker, tmp_path, options=options).file
            == tmp_path / f"{name}.json"
        )


def test_progress_has_the_time_that_is_left(asker, tmp_path):
    told = []
    tell = lambda *step: told.append(step)  # noqa: E731
    run(benchmark(), items(), asker, tmp_path, options=AskOptions(batch_size=4), progress=tell)
    told = [step for step in told if step[0] == "fruit"]
    assert [step[1:3] for step in told] == [(0, 9), (4, 9), (8, 9), (9, 9)]
    assert told[1][3].endswith(" left")
    assert told[-1][3] == ""


def test_the_model_is_put_back_as_it_was(asker, tmp_path):
    asker.model.train()
    run(benchmark(), items(2), asker, tmp_path)
    assert asker.model.training


def test_what_cannot_be_asked_is_refused(asker, tmp_path):
    with pytest.raises(DataError, match="fruit: there are no items to ask"):
        run(benchmark(), [], asker, tmp_path)
    with pytest.raises(DataError, match="1 ids stand for more than one item, 'q0' first"):
        run(benchmark(), [*items(2), items(1)[0]], asker, tmp_path)
    bare = Item("b", Example((Message("user", ("Why?",)),), "b"), ("so",))
    with pytest.raises(DataError, match="record 'b': no choices"):
        run(benchmark(), [bare], asker, tmp_path)


def test_a_full_disk_says_that_answers_are_kept(tmp_path):
    from varifocal.evaluation import predictions

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

    book = predictions.Ledger(tmp_path / "x.jsonl", "who")
    with pytest.raises(RunError, match=r"cannot be written \(No space left.*before is kept"):
        book._append(Full(), {"id": "a"})


def test_a_second_call_keeps_off_the_file_of_the_first(asker, tmp_path):
    class Impatient(Watched):
        def score(self, prompts, normalisation):
            if not self.batches:
                with pytest.raises(RunError, match=r"jsonl in .* is being written by .*--out"):
                    run(benchmark(), items(), Watched(asker), tmp_path, about=ABOUT)
            return super().score(prompts, normalisation)

    run(
        benchmark(),
        items(),
        Impatient(asker),
        tmp_path,
        options=AskOptions(batch_size=4),
        about=ABOUT,
    )
    assert len(lines(tmp_path)) == 9
    assert run(benchmark(), items(), asker, tmp_path, about=ABOUT).num_stored == 9


def test_odd_line_breaks_in_an_answer_survive(asker, tmp_path):
    class Odd(Watched):
        def write(self, prompts, max_new_tokens):
            self._count(prompts)
            return [Answer("a\u2028b\x85c\nd")] * len(prompts)

    run(benchmark(method="generate"), items(), Odd(asker), tmp_path, about=ABOUT)
    again = Odd(asker)
    assert run(benchmark(method="generate"), items(), again, tmp_path, about=ABOUT).num_stored == 9
