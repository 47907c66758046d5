import json
import signal

import pytest

from fer_jax import study, workdir


def test_a_plan_leaves_out_what_has_a_record(tmp_path):
    study.record_path("arch03", 0, tmp_path).write_text("{}")
    runs = study.plan(["arch02_bs96", "arch03"], 2, "0/1", tmp_path)
    assert runs == [("arch02_bs96", 0), ("arch02_bs96", 1), ("arch03", 1)]


def test_shards_are_disjoint_and_cover_the_plan(tmp_path):
    whole = study.plan(["arch01", "arch02_bs96", "arch03"], 3, "0/1", tmp_path)
    parts = [study.plan(["arch01", "arch02_bs96", "arch03"], 3, f"{i}/2", tmp_path) for i in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    assert not set(parts[0]) & set(parts[1])


@pytest.mark.parametrize("shard", ["2/2", "-1/2", "1", "a/b", "0/0"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(ValueError, match=r"--shard is .* i/n"):
        study.plan(["arch01"], 1, shard)


def test_an_unknown_experiment_is_refused_with_those_there():
    with pytest.raises(ValueError, match=r"no experiment 'arch04'; there are .*arch01"):
        study.plan(["arch04"], 1, "0/1")


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Replaces training by writing a record; `arch01` fails, `arch03` is interrupted."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def launch(experiment, seed, overrides):
        calls.append((experiment, seed, list(overrides)))
        if experiment == "arch01":
            return 1
        if experiment == "arch03":
            return 128 + signal.SIGINT
        folder = workdir.default_workdir(experiment, seed)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"seed": seed}))
        return 0

    monkeypatch.setattr(study, "_launch", launch)
    return calls


def test_a_failure_does_not_stop_the_others_and_is_listed(launched, tmp_path):
    records = tmp_path / "records"
    runs = [("arch01", 0), ("arch02_bs96", 0), ("arch02_bs96", 1)]
    assert study.run(runs, ["--config.train.epochs=1"], records) == [("arch01", 0)]
    assert [c[:2] for c in launched] == runs
    assert launched[0][2] == ["--config.train.epochs=1"]
    assert json.loads(study.record_path("arch02_bs96", 1, records).read_text()) == {"seed": 1}
    assert not study.record_path("arch01", 0, records).exists()


def test_an_interruption_ends_the_study(launched, tmp_path):
    runs = [("arch03", 0), ("arch02_bs96", 0)]
    assert study.run(runs, [], tmp_path / "records") == []
    assert len(launched) == 1
