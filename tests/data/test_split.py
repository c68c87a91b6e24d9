"""Splits: groups stay on one side, budgets are nested and counted, and nothing depends on the order of files."""

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nissl.config import SplitConfig
from nissl.data.cases import CaseFile
from nissl.data.split import Split, make_split
from nissl.errors import DataError, InputError
from nissl.runs.folder import read_json


def case(id_, mask=True, group=None, split=None):
    return CaseFile(id_, Path(f"images/{id_}.png"), Path(f"masks/{id_}.png") if mask else None, group, split)


def many(count, unlabelled=0, **settings):
    return [case(f"c{n:03}", **settings) for n in range(count)] + [
        case(f"u{n:03}", mask=False) for n in range(unlabelled)
    ]


def refused(cases, **settings):
    with pytest.raises(InputError) as caught:
        make_split(cases, SplitConfig(**settings), 0)
    assert caught.value.where and caught.value.expected and caught.value.fix
    return caught.value


@st.composite
def grouped_cases(draw):
    count = draw(st.integers(2, 40))
    groups = st.sampled_from([None, "p1", "p2", "p3", "p4", "p5"])
    return [case(f"c{n:02}", mask=draw(st.booleans()), group=draw(groups)) for n in range(count)]


@settings(max_examples=80, deadline=None)
@given(grouped_cases(), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_a_random_split_keeps_groups_whole_and_loses_no_mask(cases, seed, shuffler):
    masked = [c for c in cases if c.target]
    assume(len({c.group or c.id for c in masked}) >= 2)
    config = SplitConfig(labels="50%")
    split = make_split(cases, config, seed)
    by_id = {c.id: c for c in cases}
    train, test = {*split.labelled, *split.unlabelled}, set(split.test)
    assert not train & test and not set(split.labelled) & set(split.unlabelled)
    assert {c.id for c in masked} <= train | test
    assert split.test and split.labelled and all(by_id[id_].target for id_ in (*split.test, *split.labelled))
    assert not {by_id[i].group for i in train} & {by_id[i].group for i in test} - {None}
    left_out = {c.id for c in cases} - train - test
    assert all(not by_id[i].target and by_id[i].group in {by_id[t].group for t in test} for i in left_out)
    shuffled = list(cases)
    shuffler.shuffle(shuffled)
    assert make_split(shuffled, config, seed) == split
    assert split.shared_groups == () and split.origin == "random"
    assert split.groups_checked == len({by_id[i].group for i in train | test} - {None})


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 150), st.integers(0, 99), st.data())
def test_budgets_are_nested_and_counted(count, seed, data):
    cases = many(count, unlabelled=3, split="train")
    cases += [case("t1", split="test")]
    shares = sorted(data.draw(st.lists(st.integers(1, 100), min_size=2, max_size=4)))
    previous: set[str] = set()
    for share in shares:
        split = make_split(cases, SplitConfig(labels=f"{share}%"), seed)
        assert len(split.labelled) == math.ceil(Fraction(share * count, 100))
        assert previous <= set(split.labelled)
        assert len(split.labelled) + len(split.unlabelled) == count + 3
        previous = set(split.labelled)
        assert make_split(cases, SplitConfig(labels=str(len(previous))), seed).labelled == split.labelled


def test_shares_are_exact_where_floating_point_is_not():
    cases = [*many(100, split="train"), case("t", split="test")]
    assert math.ceil(0.07 * 100) == 8
    assert len(make_split(cases, SplitConfig(labels="7%"), 0).labelled) == 7
    assert len(make_split(cases, SplitConfig(labels="2.5 %"), 0).labelled) == 3


def test_seeds_differ_and_one_seed_is_the_same_for_ever():
    cases = many(30)
    splits = [make_split(cases, SplitConfig(labels="5"), seed) for seed in range(6)]
    assert len({split.test for split in splits}) == 6 and len({split.labelled for split in splits}) == 6
    assert splits[0] == make_split(cases, SplitConfig(labels="5"), 0)
    # Fixed values: a change of them would change every published split.
    assert splits[0].test == ("c001", "c011", "c015", "c017", "c025", "c029")
    assert splits[0].labelled == ("c000", "c009", "c012", "c016", "c028")


def test_the_test_share_is_kept():
    for fraction, count in ((0.2, 6), (0.5, 15), (0.01, 1), (0.99, 29)):
        assert len(make_split(many(30), SplitConfig(test_fraction=fraction, labels="1"), 3).test) == count


def test_a_given_split_is_used_as_it_is():
    cases = [case("a", split="train"), case("b"), case("c", split="test"), case("d", mask=False)]
    split = make_split(cases, SplitConfig(labels="100%"), 0)
    assert (split.labelled, split.unlabelled, split.test) == (("a", "b"), ("d",), ("c",))
    assert split.origin == "cases.csv"


def test_an_image_without_mask_on_the_test_side_is_not_trained_on():
    cases = [case("a", split="train"), case("c", split="test"), case("d", mask=False, split="test")]
    split = make_split(cases, SplitConfig(labels="1"), 0)
    assert (split.labelled, split.unlabelled, split.test) == (("a",), (), ("c",))


def test_a_list_of_ids_is_the_budget():
    cases = [*many(6, split="train"), case("7", split="train"), case("t", split="test")]
    assert make_split(cases, SplitConfig(labels=" c003, c001,c003 "), 0).labelled == ("c001", "c003")
    assert make_split(cases, SplitConfig(labels="c004"), 0).labelled == ("c004",)
    assert make_split(cases, SplitConfig(labels="7,"), 0).labelled == ("7",)
    assert len(make_split(cases, SplitConfig(labels="7"), 0).labelled) == 7


@pytest.mark.parametrize("config", [SplitConfig(), SplitConfig(labels=" all ")])
def test_all_training_masks_are_seen_where_nothing_is_said(config):
    cases = [*many(6, unlabelled=2, split="train"), case("t", split="test")]
    split = make_split(cases, config, 0)
    assert split.labelled == tuple(one.id for one in cases if one.target and one.split == "train")
    assert len(split.labelled) == 6 and len(split.unlabelled) == 2 and split.test == ("t",)


def test_a_case_named_all_is_asked_for_with_a_comma():
    cases = [case("all", split="train"), *many(3, split="train"), case("t", split="test")]
    assert make_split(cases, SplitConfig(labels="all,"), 0).labelled == ("all",)


@pytest.mark.parametrize(
    ("labels", "found", "fix"),
    [
        ("0", "`0` of 6", "one mask or more"),
        ("0%", "`0%` of 6", "one mask or more"),
        ("7", "`7` of 6", "smaller"),
        ("101%", "`101%` of 6", "smaller"),
        ("c01", "`c01`", "`c00"),
        ("c001,t", "`t`, a test case", "remove"),
        ("c001,u000", "`u000`, which is no masked", "choose"),
        ("c001,C-2", "`C-2`", "did you mean `c002`"),
        ("-3", "`-3`", "choose"),
        ("ten percent!", "`ten percent!`", "choose"),
        ("", "``", "--labels 10%"),
        (" , ", "`,`", "--labels 10%"),
        ("1e3", "`1e3`", "choose"),
        ("nan%", "`nan%`", "choose"),
    ],
)
def test_impossible_budgets_are_refused(labels, found, fix):
    error = refused([*many(6, unlabelled=1, split="train"), case("t", split="test")], labels=labels)
    assert error.where == "--labels" and found in error.found and fix in error.fix


@pytest.mark.parametrize(
    ("cases", "found"),
    [
        ([], "0 masked"),
        (many(1, unlabelled=5), "1 masked"),
        ([case("a", group="p"), case("b", group="p")], "group `p`"),
        ([case("a", split="train"), case("b", split="train")], "no masked test case"),
        ([case("a", split="train"), case("b"), case("c", mask=False, split="test")], "no masked test case"),
        ([case("a", split="test"), case("b", split="test")], "of 0 masked training cases"),
    ],
)
def test_too_few_cases_are_refused(cases, found):
    assert found in refused(cases).found


def test_a_split_survives_its_file():
    cases = [case("ü", group="p", split="train"), case("b", group="p", split="test"), case("c", mask=False)]
    split = make_split(cases, SplitConfig(labels="1", allow_shared_groups=True), 5)
    assert Split.from_tree(json.loads(json.dumps(dataclasses.asdict(split)))) == split


@pytest.mark.parametrize("text", ["", "[]", "3", '{"labelled": []}', '{"unknown": 1}'])
def test_a_broken_split_file_is_refused(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match=r"split\.json"):
        Split.from_tree(read_json(tmp_path / "split.json"))
