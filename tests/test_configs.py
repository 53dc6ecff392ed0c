"""Laws of the configs that ship."""

import re

import pytest

from tvd_gen.config import configs_folder, dump_config, load_config, shipped_configs
from tvd_gen.models import TokenizerSpec, train_tokenizer
from tvd_gen.models.architecture import build_config

PUBLISHED = {  # gamma, min_weight, label smoothing: from the published scripts
    "language_modeling": (1e-7, 0.2, 0.0),
    "translation": (0.1, 0.3, 0.1),
    "summarization": (0.8, 0.2, 0.1),
    "story_generation": (1e-7, 0.2, 0.0),
}


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_loads_and_says_what_it_is(name, tmp_path):
    """A config that ships broken is a user's first impression."""
    config = load_config(name)
    assert config.objective.name == "tailr"
    assert (configs_folder() / name).read_text().startswith("# ")
    assert 20 < len(shipped_configs()[name]) < 120
    file = tmp_path / f"{config.name}.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == config


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_recipes_hold_the_published_numbers(name):
    config = load_config(name)
    objective, schedules, additions = config.objective.build()
    assert (
        objective.gamma,
        objective.min_weight,
        additions["label_smoothing"],
    ) == PUBLISHED[name]
    assert not schedules


def test_the_names_of_shipped_configs_differ():
    """Runs are called by their configs: two of one name would share a folder."""
    names = [load_config(name).name for name in shipped_configs()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("demo/")])
def test_the_demos_need_no_hub(name):
    config = load_config(name)
    assert config.data.source
    assert config.model.architecture or config.model.pretrained == "smollm2-135m"


def test_a_name_is_found_with_and_without_its_ending():
    assert load_config("demo/summarization") == load_config("demo/summarization.yaml")


ARCHITECTURES = [name for name in shipped_configs() if load_config(name).model.architecture]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_transformers_knows_every_field_of_a_shipped_architecture(name):
    """transformers takes an unknown field in silence, and builds another model."""
    spec = load_config(name).model
    tokenizer = train_tokenizer(TokenizerSpec(vocab_size=300), ["some text", "and more"])
    config = build_config(spec.architecture, tokenizer)
    assert config.model_type == spec.architecture["model_type"]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_what_a_recipe_says_to_do_without_a_hub_is_accepted(name):
    """Advice that fails is worse than none."""
    text = (configs_folder() / f"{name}.yaml").read_text().replace("\n#", "")
    advice = text.split("Without a hub:")[1].split(".\n")[0]
    changes = re.findall(r"--set (\S+=\w+)", advice)
    assert changes
    assert load_config(name, changes).data.hub is None
