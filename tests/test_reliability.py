"""Damaged files and killed runs: what docs/reliability.md promises, in small."""

import json
import subprocess
import sys

import fuzz
import pytest
from helpers import ROOT

from fer_jax import seal
from fer_jax.errors import DataError, RecordError, WorkdirError
from fer_jax.report import reliability
from fer_jax.runs import openings, record, workdir

pytestmark = pytest.mark.usefixtures("standard_promotion")

OBJECT = {"accuracy": 0.1 + 0.2, "name": "ä", "rows": [1, None, {"x": True}]}


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, False),
        ({"accuracy": 0.1 + 0.2 + 1e-16}, True),
        ({"name": "a"}, True),
        ({"rows": [1, None, {"x": 1}]}, True),
        ({"more": 0}, True),
        ({seal.KEY: "0" * 64}, True),
    ],
)
def test_a_seal_tells_whether_anything_was_changed(change, broken):
    sealed = json.loads(json.dumps(seal.add(OBJECT)))
    assert seal.is_broken(sealed | change) == broken


def test_what_carries_no_seal_is_not_broken():
    assert not any(map(seal.is_broken, (OBJECT, [], None, "text")))


def _damage(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_changed_digit_in_a_record_is_noticed_by_all_that_read_it(tmp_path):
    fuzz._make_record(tmp_path)
    path = tmp_path / "results.json"
    record.read(path)
    _damage(path, '"accuracy": 0.', '"accuracy": 0.1')
    with pytest.raises(RecordError, match="not what was written"):
        record.read(path)
    with pytest.raises(WorkdirError, match="is damaged"):
        workdir.read_json(path)


@pytest.mark.parametrize(("old", "new"), [("jpeg", "jpgg"), ("fer2013", "fer2014")])
def test_a_changed_letter_in_the_metadata_of_prepared_arrays_is_noticed(tmp_path, old, new):
    fuzz._make_prepared(tmp_path)
    _damage(tmp_path / "arrays" / "metadata.json", old, new)
    with pytest.raises(DataError, match=r"metadata\.json: "):
        fuzz._read_prepared(tmp_path)


def test_a_changed_letter_in_what_test_gave_is_noticed(tmp_path):
    fuzz._make_openings(tmp_path)
    _damage(tmp_path / openings.FILE, '"log_probs": "', '"log_probs": "A')
    with pytest.raises(WorkdirError, match="is damaged"):
        openings.find(tmp_path, "ab" * 32)


def test_the_page_says_what_the_record_says():
    text = reliability.PAGE.read_text(encoding="utf-8")
    assert reliability.updated_page(text) == text, "run: uv run launch.py --mode=report"
    found = json.loads(reliability.RECORD.read_text(encoding="utf-8"))
    assert found["kills"]["wrong"] == 0
    assert all(row["wrong"] == 0 for row in found["damages"].values())
    assert found["cpu_s"]["share"] <= 0.02


def test_each_program_keeps_its_part_of_the_record(tmp_path):
    path = tmp_path / "reliability.json"
    for part in ({"kills": {"kills": 1}}, {"cpu_s": {"start": 4.5}}, {"kills": {"kills": 2}}):
        reliability.add(path, part)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found == {"kills": {"kills": 2}, "cpu_s": {"start": 4.5}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS, ids=lambda kind: kind.name)
def test_a_damaged_byte_or_bit_is_noticed_or_harmless(kind):
    counts, wrong = fuzz.try_damages(kind, 24, seed=1)
    assert not wrong
    assert counts["damages"] == 24
    assert counts["undetectable"] == 0 or kind.name in fuzz.WITHOUT_CHECKSUM


@pytest.mark.slow
def test_runs_killed_at_random_end_as_one_that_was_left_alone():
    command = [sys.executable, str(ROOT / "tests" / "kills.py"), "--count=6", "--seed=1"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
