import pytest

from fer_jax import config as config_lib
from fer_jax.study.plan import ROOT, design

PILOT, FULL = (ROOT / "experiments" / f"{name}.py" for name in ("factors", "factors_full"))


@pytest.fixture
def base():
    config = config_lib.get_config()
    config.experiment = "study"
    config.model.name = "family"
    config.model.conv_layers = 2
    config.model.hidden_layers = 1
    return config


def names(**parts):
    return [cell.name for cell in design.cells(design.Study(**parts))]


def test_one_at_a_time_and_grid_share_the_base_and_equal_configurations(base):
    found = names(
        base=base,
        one_at_a_time={"model.dropout": (0.0, 0.2, 0.5), "model.conv_layers": (2, 4)},
        grids=({"model.conv_layers": (2, 4), "model.dropout": (0.0, 0.5)},),
    )
    assert sorted(found) == sorted(
        [
            "base",
            "dropout=0",
            "dropout=0.5",
            "conv_layers=4",
            "dropout=0,conv_layers=4",
            "dropout=0.5,conv_layers=4",
        ]
    )


def test_a_cell_says_its_levels_and_what_differs_from_the_base(base):
    study = design.Study(
        base=base,
        one_at_a_time={
            "train.epochs": (5, 20),
            "augment": {"none": {}, "flip": {"augment.flip": True}},
        },
    )
    cells = {cell.name: cell for cell in design.cells(study)}
    assert cells["augment=flip"].levels == {"epochs": "20", "augment": "flip"}
    assert cells["augment=flip"].changes == {"augment.flip": True}
    assert cells["augment=flip"].config.experiment == "study/augment=flip"
    assert cells["augment=flip"].config.augment.flip
    assert cells["base"].levels == {"epochs": "20", "augment": "none"}
    assert cells["base"].changes == {}
    assert not base.augment.flip


def test_the_base_may_lie_beside_the_declared_levels(base):
    cells = design.cells(design.Study(base=base, one_at_a_time={"train.epochs": (5, 10)}))
    assert {c.name: c.levels["epochs"] for c in cells} == {
        "base": "20",
        "epochs=5": "5",
        "epochs=10": "10",
    }


def test_what_takes_little_time_comes_first(base):
    one = {"model.conv_layers": (6, 3), "train.epochs": (40, 5)}
    assert names(base=base, one_at_a_time=one) == [
        "epochs=5",
        "base",
        "epochs=40",
        "conv_layers=3",
        "conv_layers=6",
    ]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"train.epoch": (1, 2)}, "no field config.train.epoch; near it: config.train.epochs"),
        ({"augment": {"none": {}, "x": {"augment.flop": True}}}, r"no field config\.augment\.flop"),
        ({"model.dropout": (0.2, 1.5)}, r"config.model.dropout is 1.5; it must lie between"),
        ({"model.conv_layers": (2, 7)}, "conv_layers is 7; it must be 2, 3, 4, 5 or 6"),
        ({"train.epochs": ("many",)}, "config.train.epochs cannot be 'many'"),
        ({"train.epochs": (2.5,)}, "config.train.epochs cannot be 2.5"),
        ({"model.dropout": (0.1, 0.1 + 1e-12)}, "dropout has two levels named 0.1"),
        ({"augment": {"x": {"augment.flip": True, "augment.shift": 0.1}}}, "changes nothing"),
        ({"augment": {"a/b": {}}}, "may not be named 'a/b'"),
        (
            {"augment": {"none": {}, "x": {"augment.flip": True}}, "augment.flip": (True, False)},
            r"flip and augment both set|augment and flip both set",
        ),
        ({"model.name": ("arch01",), "data.name": ("fer2013",)}, "two factors .* short name name"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(base, factors, message):
    with pytest.raises(ValueError, match=message):
        design.cells(design.Study(base=base, one_at_a_time=factors))


def test_a_study_without_seeds_is_refused(base):
    with pytest.raises(ValueError, match="0 seeds"):
        design.cells(design.Study(base=base, seeds=0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no study file"),
        ("def get_config(): ...", "declares no study"),
        ("raise RuntimeError('a\\nreason')", "cannot read the study file .*: a reason"),
    ],
)
def test_a_file_that_is_no_study_is_refused(tmp_path, text, message):
    path = tmp_path / "file.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        design.load_study(path)


@pytest.mark.parametrize(
    "path", [PILOT, pytest.param(FULL, marks=pytest.mark.slow)], ids=lambda p: p.stem
)
def test_a_study_in_the_repository_has_as_many_runs_as_it_says(path):
    study = design.load_study(path)
    cells = design.cells(study)
    assert study.base.experiment == path.stem
    assert len({cell.name for cell in cells}) == len(cells)
    text = path.read_text()
    assert f"{len(cells)} configurations" in text
    assert f"{len(cells) * study.seeds} runs" in text


def test_the_pilot_covers_what_the_study_asks():
    levels = [cell.levels for cell in design.cells(design.load_study(PILOT))]
    for factor in ("conv_layers", "dropout", "batch_size", "epochs", "hidden_layers", "augment"):
        assert len({row[factor] for row in levels}) >= 3
    crossed = {(row["conv_layers"], row["dropout"]) for row in levels}
    assert crossed >= {("2", "0"), ("2", "0.5"), ("4", "0"), ("4", "0.5")}
