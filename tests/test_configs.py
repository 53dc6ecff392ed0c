"""Laws of the configs that ship."""

import json
import math
import re

import pytest
import torch
from tiny import QUIET
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForSeq2SeqLM, BartConfig, MarianConfig, get_scheduler

from tvd_gen.config import configs_folder, dump_config, load_config, shipped_configs
from tvd_gen.metrics import METRICS
from tvd_gen.models import TokenizerSpec, train_tokenizer
from tvd_gen.models.architecture import build_config
from tvd_gen.models.tokenizer import SPECIALS, PairTokenizer
from tvd_gen.run import evaluate, train
from tvd_gen.tasks import TASKS

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


def test_what_the_translation_recipe_says_of_the_test_is_accepted():
    """Published: generate.sh gives no length, and fairseq's are max_len_a 0, max_len_b 200."""
    text = (configs_folder() / "translation.yaml").read_text()
    changes = re.findall(r"--set (generation\.\w+=\w+)", text)
    generation = load_config("translation", changes).generation
    assert (generation["source_ratio"], generation["max_new_tokens"]) == (0, 200)
    assert generation["num_beams"] == 5


def test_the_names_of_shipped_configs_differ():
    """Runs are called by their configs: two of one name would share a folder."""
    names = [load_config(name).name for name in shipped_configs()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("demo/")])
def test_the_demos_need_no_hub(name):
    config = load_config(name)
    assert config.data.source
    assert config.model.architecture or config.model.pretrained == "smollm2-135m"


@pytest.mark.parametrize("name", ["demo/translation", "demo/language_modeling"])
def test_the_demos_from_scratch_go_the_whole_way(name, tmp_path):
    """All of their corpus, two steps: a model that has learned nothing yet guesses the words."""
    short = ["training.max_steps=2", "training.warmup_steps=1", "evaluation.limit=4"]
    config = load_config(name, short)
    run = train(config, tmp_path / "run", **QUIET)
    numbers = evaluate(run, **QUIET)
    assert numbers["rows"] == 4
    assert numbers["nll"] == pytest.approx(math.log(config.model.tokenizer.vocab_size), abs=0.5)
    kept = json.loads((run / "data.json").read_text())["splits"]["train"]["rows_kept"]
    assert kept == {"demo/translation": 15_000, "demo/language_modeling": 1_700}[name]


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


BART = {
    "num_train_epochs": 5, "lr_scheduler_type": "constant", "learning_rate": 1e-4,
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0,
    "max_grad_norm": 0.1, "fp16": True, "load_best_model_at_end": True,
}  # fmt: skip
TRAINING = {
    "translation": {
        "num_train_epochs": 80, "lr_scheduler_type": "inverse_sqrt", "warmup_steps": 4000,
        "learning_rate": 3e-4, "adam_beta1": 0.9, "adam_beta2": 0.98, "weight_decay": 1e-4,
        "max_grad_norm": 0, "load_best_model_at_end": True, "greater_is_better": True,
        "metric_for_best_model": "tokenized_bleu",
    },
    "summarization": BART | {"metric_for_best_model": "rougeL", "greater_is_better": True},
    "story_generation": BART | {"metric_for_best_model": "nll", "greater_is_better": False},
}  # fmt: skip
DECODING = {
    "translation": {
        "num_beams": 5, "length_penalty": 1.0, "source_ratio": 1.2, "max_new_tokens": 10,
    },
    "summarization": {"num_beams": 5, "length_penalty": 1.0, "no_repeat_ngram_size": 3},
    "story_generation": {
        "do_sample": True, "top_p": 0.95, "top_k": 0, "num_beams": 1, "max_new_tokens": 1024,
        "no_repeat_ngram_size": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TRAINING))
def test_the_recipes_train_and_decode_as_published(name):
    """One number off, and nothing that is measured can be set beside the published figures."""
    config = load_config(name)
    given = config.training.arguments
    assert {key: given.get(key) for key in TRAINING[name]} == TRAINING[name]
    assert config.training.max_tokens == (4096 if name == "translation" else 8192)
    generation = config.generation
    assert {key: generation.get(key) for key in DECODING[name]} == DECODING[name]
    assert config.seed == 42
    assert dict(config.data.limit) == ({"validation": 10000} if name == "summarization" else {})
    story = name == "story_generation"
    assert config.evaluation.limit == (1000 if story else None)
    # examples/bart/long/post_wp.sh is sed -i "s/<newline>//g"
    assert config.evaluation.strip == (("<newline>",) if story else None)


DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
HUB = BartConfig(**dict.fromkeys(DROPOUTS, 0.1))  # as config.json of facebook/bart-base


@pytest.mark.parametrize(
    ("name", "base", "published"),
    [  # the scripts' flags over fairseq's bart_base and transformer_iwslt_de_en (relu_dropout 0)
        ("summarization", HUB, (0.1, 0.1, 0.0)),
        ("story_generation", HUB, (0.1, 0.1, 0.0)),
        ("translation", MarianConfig(), (0.3, 0.0, 0.0)),
    ],
)
def test_the_recipes_drop_out_as_published(name, base, published):
    """A dropout that a recipe does not name is the hub's or transformers' own."""
    model = load_config(name).model
    settings = {**base.to_dict(), **(model.architecture or model.config)}
    assert tuple(settings[name] for name in DROPOUTS) == published


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("translation", ["tokenized_bleu"]),
        ("summarization", ["rouge1", "rouge2", "rougeL"]),
        (
            "story_generation",
            [f"{key}_{n}" for key in ("corpus_bleu", "distinct") for n in range(1, 5)]
            + [f"rep_{window}" for window in (4, 8, 16, 32, 64)],
        ),
    ],
)
def test_the_recipes_measure_what_was_published(name, keys):
    measured = {
        key for group in load_config(name).evaluation.metrics for key in METRICS[group].keys
    }
    assert set(keys) <= measured


def test_sampling_draws_from_the_whole_nucleus():
    """transformers keeps 50 tokens where top_k is not given: another distribution than top-p's."""
    for task in TASKS.values():
        if task.generation.get("do_sample"):
            assert task.generation["top_k"] == 0


SOURCES, TARGETS = 8848, 6632  # the entries of fairseq's dictionaries of IWSLT14 de and en


def vocabularies():
    """A pair of tokenizers of just these sizes."""
    cores = [Tokenizer(WordLevel({**{t: i for i, t in enumerate(SPECIALS.values())},
                                  **{f"w{i}": i for i in range(4, size)}}))
             for size in (SOURCES, TARGETS)]  # fmt: skip
    return PairTokenizer.of(*cores)


def test_the_translation_model_is_fairseqs_in_size():
    """transformer_iwslt_de_en: 6 + 6 layers, 512 wide, 1024 between, 4 heads, post-norm, relu."""
    width, inner = 512, 1024
    attention = 4 * (width * width + width)  # query, key, value, output; each with its bias
    between = 2 * width * inner + inner + width
    norm = 2 * width
    encoder = 6 * (attention + between + 2 * norm)
    decoder = 6 * (2 * attention + between + 3 * norm)
    by_hand = encoder + decoder + (SOURCES + TARGETS) * width  # the output layer is the embedding
    assert by_hand == 39_469_056
    config = build_config(load_config("translation").model.architecture, vocabularies())
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == by_hand
    assert model.lm_head.weight is model.model.decoder.embed_tokens.weight
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
    assert not model.state_dict()["final_logits_bias"].requires_grad
    assert config.decoder_start_token_id == list(SPECIALS.values()).index("</s>")


def test_one_joint_vocabulary_would_be_another_size():
    architecture = dict(load_config("translation").model.architecture)
    architecture |= {"share_encoder_decoder_embeddings": True, "vocab_size": 10_000}
    tokenizer = train_tokenizer(TokenizerSpec(vocab_size=300), ["some text", "and more"])
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(build_config(architecture, tokenizer))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 39_469_056 - (SOURCES + TARGETS - 10_000) * 512 == 36_663_296


def fairseq_inverse_sqrt(step, peak=3e-4, warmup=4000):
    """From 0 to the peak in `warmup` updates, then peak * sqrt(warmup / step)."""
    if step < warmup:
        return peak * step / warmup
    return peak * warmup**0.5 * step**-0.5


def test_the_inverse_square_root_schedule_is_fairseqs():
    """Another time scale of the decay is another recipe, and every log looks alike."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    schedule = get_scheduler("inverse_sqrt", optimizer, num_warmup_steps=4000)
    for step in range(12_000):
        assert schedule.get_last_lr()[0] == pytest.approx(fairseq_inverse_sqrt(step), rel=1e-12)
        optimizer.step()
        schedule.step()
