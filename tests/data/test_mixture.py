"""Mixtures: counts come out to the record, nothing is seen twice too early, seeds decide all."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varifocal.data.mixture import (
    BROKEN,
    IMAGE,
    TEXT,
    Part,
    draw_epoch,
    largest_remainder,
    needs_scan,
)
from varifocal.errors import DataError, RecipeError
from varifocal.recipe import FileSection, MixtureSection

quick = settings(max_examples=60, deadline=None)


@st.composite
def modalities(draw_):
    """A source's modalities: mostly one kind, sometimes both, some records broken."""
    size = draw_(st.integers(1, 60))
    kinds = draw_(st.sampled_from([(TEXT,), (IMAGE,), (TEXT, IMAGE), (TEXT, IMAGE, BROKEN)]))
    return np.array([kinds[n % len(kinds)] for n in range(size)], np.int8)


@st.composite
def sources(draw_, with_epochs=True):
    """One to four sources, all with weights or none, some with epochs."""
    weighted = draw_(st.booleans())
    parts = []
    for number in range(draw_(st.integers(1, 4))):
        epochs = draw_(st.sampled_from([None, None, 0.3, 1.0, 2.5])) if with_epochs else None
        weight = draw_(st.sampled_from([0.5, 1.0, 3.0])) if weighted and epochs is None else None
        of_each = draw_(modalities())
        tasks = np.arange(len(of_each), dtype=np.int32) % draw_(st.integers(1, 5))
        parts.append(Part(f"s{number}", len(of_each), of_each, tasks, epochs=epochs, weight=weight))
    return parts


def pairs(drawn):
    return list(zip(drawn.parts.tolist(), drawn.records.tolist(), strict=True))


def is_text(parts, drawn):
    return np.array([parts[p].modalities[r] == TEXT for p, r in pairs(drawn)], bool)


@quick
@given(sources(with_epochs=False), st.integers(0, 400), st.floats(0, 1), st.integers(0, 9))
def test_total_and_language_fraction_are_met_to_the_record(parts, total, fraction, seed):
    """Both sides get what they ought to wherever both have a record."""
    text, image = (sum(int((p.modalities == side).sum()) for p in parts) for side in (TEXT, IMAGE))
    total += 1
    section = MixtureSection(total=total, language_fraction=fraction)
    if (fraction in (0.0, 1.0)) and not (text if fraction else image):
        with pytest.raises(DataError, match="no record to draw"):
            draw_epoch(parts, section, seed)
        return
    drawn = draw_epoch(parts, section, seed)
    assert len(drawn) == total
    count = int(is_text(parts, drawn).sum())
    missed = [note for note in drawn.notes if "language_fraction" in note]
    if text and image:
        assert abs(count - total * fraction) <= 0.5 + 1e-9
        assert not missed
    else:
        assert count == (total if text else 0)
        assert bool(missed) == (abs(count - total * fraction) > 0.5)


@quick
@given(sources(), st.sampled_from([None, 0.3, 1.0]), st.integers(0, 9))
def test_whole_passes_then_a_remainder(parts, fraction, seed):
    """No record of a source (of a side) is drawn again while another was drawn less often."""
    drawn = draw_epoch(parts, MixtureSection(language_fraction=fraction), seed)
    seen = Counter(pairs(drawn))
    for number, part in enumerate(parts):
        for group in [(TEXT, IMAGE)] if fraction is None else [(TEXT,), (IMAGE,)]:
            records = np.flatnonzero(np.isin(part.modalities, group)).tolist()
            times = [seen.pop((number, record), 0) for record in records]
            assert not times or max(times) - min(times) <= 1
    assert not seen, "broken records were drawn"


@quick
@given(sources(), st.sampled_from([None, 0.5]), st.sampled_from([None, 4]), st.integers(0, 9))
def test_same_seed_same_order(parts, fraction, cap, seed):
    section = MixtureSection(language_fraction=fraction, max_per_task=cap)
    first, second = draw_epoch(parts, section, seed), draw_epoch(parts, section, seed)
    assert pairs(first) == pairs(second)
    assert first.report == second.report
    assert sum(row.realised for row in first.report) == len(first)
    for number, part in enumerate(parts):
        for row in [row for row in first.report if row.part == part.name]:
            found = [part.modalities[r] for p, r in pairs(first) if p == number]
            assert row.realised == found.count(row.modality)


def test_another_seed_draws_other_records_and_as_many():
    parts = [Part("a", 500), Part("b", 500)]
    draws = [draw_epoch(parts, MixtureSection(total=200), seed) for seed in (0, 1)]
    assert pairs(draws[0]) != pairs(draws[1])
    assert draws[0].parts.tolist() == draws[1].parts.tolist()
    one, other = (set(each.records[each.parts == 0].tolist()) for each in draws)
    assert one != other


def test_a_source_draws_the_same_whatever_stands_behind_it():
    alone = draw_epoch([Part("a", 100, epochs=0.5)], MixtureSection(), 3)
    both = draw_epoch([Part("a", 100, epochs=0.5), Part("b", 7)], MixtureSection(), 3)
    assert alone.records.tolist() == both.records[both.parts == 0].tolist()


@quick
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9), st.integers(0, 10**7))
def test_largest_remainder_is_within_one_of_the_quota(shares, count):
    counts = largest_remainder(shares, count)
    if not sum(shares):
        assert counts == [0] * len(shares)
        return
    assert sum(counts) == count
    for share, one in zip(shares, counts, strict=True):
        assert abs(one - count * share / sum(shares)) < 1 + 1e-6
        assert share or not one


def test_without_a_word_every_record_once_in_order():
    parts = [Part("a", 3), Part("b", 2)]
    assert pairs(draw_epoch(parts, MixtureSection(), 0)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def test_epochs_are_fractional_and_leave_the_rest_of_the_total_to_others():
    parts = [Part("a", 10, epochs=2.5), Part("b", 30), Part("c", 10)]
    report = draw_epoch(parts, MixtureSection(), 0).report
    assert [row.realised for row in report] == [25, 30, 10]
    report = draw_epoch(parts, MixtureSection(total=33), 0).report
    assert [(row.asked, row.realised) for row in report] == [(25, 25), (6, 6), (2, 2)]
    with pytest.raises(RecipeError, match="total is 24, and the sources with epochs make 25;"):
        draw_epoch(parts, MixtureSection(total=24), 0)
    with pytest.raises(RecipeError, match="with none next to them"):
        draw_epoch(parts[:1], MixtureSection(total=26), 0)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, [90, 10]), (2.0, [75, 25]), (1e9, [50, 50])]
)
def test_temperature_flattens_sizes(temperature, expected):
    parts = [Part("a", 900), Part("b", 100)]
    section = MixtureSection(total=100, temperature=temperature)
    assert [row.realised for row in draw_epoch(parts, section, 0).report] == expected


def test_weights_take_the_place_of_sizes():
    parts = [Part("a", 900, weight=1.0), Part("b", 100, weight=3.0)]
    drawn = draw_epoch(parts, MixtureSection(total=400), 0)
    assert [row.realised for row in drawn.report] == [100, 300]
    assert Counter(Counter(drawn.records[drawn.parts == 1].tolist()).values()) == {3: 100}
    with pytest.raises(RecipeError, match="'a' has a weight and 'b' has none"):
        draw_epoch([parts[0], Part("b", 100)], MixtureSection(), 0)


def sided(name, text, image, **rest):
    """A source of so many texts and images."""
    return Part(name, text + image, np.array([TEXT] * text + [IMAGE] * image, np.int8), **rest)


def test_sources_keep_their_proportions_on_each_side():
    parts = [sided("a", 300, 0), sided("b", 100, 100), sided("c", 0, 300)]
    drawn = draw_epoch(parts, MixtureSection(total=80, language_fraction=0.75), 0)
    realised = {(row.part, row.modality): row.realised for row in drawn.report}
    assert realised == {
        ("a", TEXT): 45,
        ("b", TEXT): 15,
        ("b", IMAGE): 5,
        ("c", IMAGE): 15,
    }


def test_the_fraction_that_the_data_have_changes_nothing():
    parts = [sided("a", 60, 0, weight=1.0), sided("b", 20, 60, weight=2.0)]
    free = draw_epoch(parts, MixtureSection(total=120), 0)
    # 40 of `a`, 80 of `b`, a quarter of them text.
    held = draw_epoch(parts, MixtureSection(total=120, language_fraction=0.5), 0)
    asked = [[(row.part, row.modality, row.asked) for row in each.report] for each in (free, held)]
    assert asked[0] == asked[1] == [("a", TEXT, 40), ("b", TEXT, 20), ("b", IMAGE, 60)]


def test_mlans_mixtures():
    """12.5 % and 50 % images of 80,000, from sources that hold more and less than that."""
    parts = [sided("text", 52_000, 0), sided("pictures", 0, 6_000)]
    for fraction, expected in [(0.875, [70_000, 10_000]), (0.5, [40_000, 40_000])]:
        drawn = draw_epoch(parts, MixtureSection(total=80_000, language_fraction=fraction), 0)
        assert [row.realised for row in drawn.report] == expected
        assert not drawn.notes
    only = draw_epoch(parts, MixtureSection(language_fraction=1.0), 0)
    assert len(only) == 52_000


def test_what_cannot_be_had_is_said():
    parts = [sided("words", 10, 0), Part("torn", 4, np.array([0, -1, -1, 0], np.int8))]
    drawn = draw_epoch(parts, MixtureSection(language_fraction=0.5, total=20), 0)
    assert drawn.notes[0] == "torn: 2 broken records are left out"
    assert drawn.notes[1] == (
        "data.mixture.language_fraction is 0.5, and 1 is had: 20 of 20 records are text, for there "
        "is no further source of images, or the epochs of sources fix the text"
    )
    fixed = [sided("words", 30, 0, epochs=1.0), sided("pictures", 0, 10)]
    drawn = draw_epoch(fixed, MixtureSection(language_fraction=0.5, total=40), 0)
    assert [row.realised for row in drawn.report] == [30, 10]
    assert "0.75 is had" in drawn.notes[0]


def test_caps_hold_for_every_task_and_are_drawn_by_seed():
    tasks = np.repeat(np.arange(3, dtype=np.int32), [50, 5, 20])
    part = Part("flan", 75, None, tasks, ("a", "b", "c"), max_per_task=10)
    draws = [draw_epoch([part], MixtureSection(max_per_task=12), seed) for seed in (0, 0, 1)]
    for drawn in draws:
        assert Counter(tasks[drawn.records].tolist()) == {0: 10, 1: 5, 2: 10}
        assert len(set(drawn.records.tolist())) == 25
    assert pairs(draws[0]) == pairs(draws[1]) != pairs(draws[2])
    assert draws[0].report[0].held == 25


def test_a_cap_holds_also_where_records_repeat():
    part = Part("flan", 40, None, np.zeros(40, np.int32), ("a",), max_per_task=4)
    drawn = draw_epoch([part], MixtureSection(total=10), 0)
    assert Counter(Counter(drawn.records.tolist()).values()) == {2: 2, 3: 2}


def test_needs_scan():
    plain = FileSection(path="a.json")
    capped = FileSection(path="b.json", max_per_task=3)
    assert not needs_scan([plain], MixtureSection(total=3, temperature=2.0))
    assert needs_scan([plain, capped], MixtureSection())
    assert needs_scan([plain], MixtureSection(max_per_task=3))
    assert needs_scan([plain], MixtureSection(language_fraction=0.0))
    with pytest.raises(ValueError, match="modalities of 'a'"):
        draw_epoch([Part("a", 3)], MixtureSection(language_fraction=0.5), 0)
    with pytest.raises(ValueError, match="tasks of 'a'"):
        draw_epoch([Part("a", 3)], MixtureSection(max_per_task=1), 0)


def test_empty_sources():
    assert len(draw_epoch([], MixtureSection(), 0)) == 0
    assert len(draw_epoch([Part("a", 0)], MixtureSection(), 0)) == 0
    with pytest.raises(DataError, match="total is 5, and a have no record to draw"):
        draw_epoch([Part("a", 0)], MixtureSection(total=5), 0)
