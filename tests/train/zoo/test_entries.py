"""The list of the zoo: names, configurations, the paper's recipe."""

import pytest

from shiftjax import InputError, create_model
from train.config import validate
from train.zoo.entries import ENTRIES, RECIPES, select_entries


def test_names_are_unique_and_good():
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    for entry in ENTRIES:
        assert entry.recipe in RECIPES
        assert len(set(entry.seeds)) == len(entry.seeds)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_can_be_set_up(entry, tmp_path):
    config = entry.config(entry.seeds[-1], tmp_path)
    validate(config)
    create_model(config.model.name, **config.model.overrides)
    assert config.workdir == str(tmp_path / entry.name / f"seed{entry.seeds[-1]}")
    assert config.data.source == f"tfds:{entry.dataset}"
    assert config.data.train_on == "train+validation"


def test_the_papers_recipe_is_the_papers(tmp_path):
    """Section 4.1 and the authors' code: 0.1, a tenth after 82 and 124 epochs."""
    entries = [entry for entry in ENTRIES if entry.recipe == "paper"]
    assert [e.name for e in entries] == [
        "shiftresnet20_e1.cifar10_paper",
        "shiftresnet20_e3.cifar10_paper",
        "shiftresnet20_e3.cifar100_paper",
    ]
    for entry in entries:
        config = entry.config(0, tmp_path)
        assert (config.epochs, config.batch_size) == (160, 128)
        assert (config.augment.crop_padding, config.augment.flip) == (4, True)
        schedule = config.schedule
        assert (schedule.kind, schedule.boundaries) == ("steps", (82, 124))
        assert (schedule.learning_rate, schedule.warmup_epochs) == (0.1, 0)
        optimizer = config.optimizer
        assert (optimizer.kind, optimizer.momentum) == ("sgd", 0.9)
        assert (optimizer.weight_decay, optimizer.decay) == (5e-4, "all")
        assert optimizer.nesterov is False


def test_entries_are_chosen_by_name():
    chosen = select_entries("shiftresnet20*.cifar10")
    assert [e.model for e in chosen] == [f"shiftresnet20_e{e}" for e in (1, 3, 6, 9)]
    with pytest.raises(InputError, match="did you mean"):
        select_entries("shiftresnet20_e2.cifar10")
