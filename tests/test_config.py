"""Laws of config files: every fault at once, each with its line, and never a traceback."""

import contextlib
import copy
import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tvd_gen.config import dump_config, json_schema, load_config, parse_overrides
from tvd_gen.config.document import Place, read_bytes, read_yaml, write_yaml
from tvd_gen.config.schema import from_tree
from tvd_gen.config.training import argument_names, arguments_model
from tvd_gen.errors import ConfigError
from tvd_gen.objectives import OBJECTIVES

GOOD = """\
# a config
task: summarization
objective: {name: tailr, gamma: 0.8, min_weight: 0.2, label_smoothing: 0.1}
model:
  pretrained: facebook/bart-base
data:
  source: debian-descriptions
training:
  learning_rate: 1e-4
"""


@pytest.fixture
def config_file(tmp_path):
    def write(text, name="mine.yaml"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


@pytest.fixture
def faults(config_file):
    """The fault lines of a text, without the folder."""

    def read(text, *overrides):
        file = config_file(text)
        with pytest.raises(ConfigError) as caught:
            load_config(file, overrides)
        return str(caught.value).replace(str(file), "mine.yaml").splitlines()

    return read


def load(config_file, text, *overrides):
    return load_config(config_file(text), overrides)


# YAML -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+5", 1e5),
        (".5", 0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+3", 3),
        ("no", "no"),
        ("Yes", "Yes"),
        ("True", True),
        ("~", None),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("'1'", "1"),
        ("1.10", 1.1),
    ],
)
def test_scalars_are_read_by_yaml_1_2(text, value):
    """A learning rate of 1e-4 that is text, or a `no` that is false, trains another model."""
    found = read_yaml(f"a: {text}", Place(0, 1, "f"))
    assert not found.faults
    assert found.value["a"] == value
    assert type(found.value["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3", "f:3: a: given twice (also on line 1); keep one"),
        ("a: {b: 1, b: 2}", "f:1: a.b: given twice (also on line 1); keep one"),
        ("a: !!python/object/apply:os.system [ls]", "f:1: a: tags (!...) are not read; "),
        ("a: &x 1\nb: *x", "f:2: b: anchors and aliases are not read; write the value out"),
        ("a:\n\tb: 1", "f:2: not YAML: a tab; YAML is indented with spaces"),
        ("a: [1, 2", "f:1: not YAML: expected ',' or ']'"),
        ("a: 1\n---\nb: 2", "f:2: a second document; a config is one"),
        ("? [1, 2]\n: 3", "f:1: a key must be a word"),
        ("a: 1\nb: .nan", "f:2: b: must be a finite number, got .nan"),
        ("a: -.inf", "f:1: a: must be a finite number, got -.inf"),
        ("a: 1e999", "f:1: a: must be a finite number, got 1e999"),
        ("a: " + "9" * 5000, "f:1: a: must be a finite number, got 999"),
        ("a: " + "[" * 200_000, "f:1: a.0.0: nested more than 32 levels deep"),
        ("a: 1\nb: \x01", "f:2: the character '\\x01' cannot stand in a config"),
        ('a: 1\nb: "\\0"', "f:2: b: the character '\\x00' cannot be used"),
    ],
)
def test_what_yaml_should_not_hold_is_one_line(text, fault):
    """A parser's traceback, a silent last-wins or an hour of brackets is not an answer."""
    found = read_yaml(text, Place(0, 1, "f"))
    lines = found.lines(found.faults)
    assert any(line.startswith(fault) for line in lines), lines
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"a: 1\nb: \xff", "f:2: the byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"a: 1\n" * 100_000, "f:1: 500000 bytes; a config has at most 262144"),
    ],
)
def test_bytes_that_are_no_config_are_one_line(data, fault):
    found = read_bytes(data, "f")
    assert found.lines(found.faults) == [fault]


def test_a_byte_order_mark_and_windows_line_ends_are_read():
    """Editors on Windows write both."""
    found = read_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n", "f")
    assert (found.value, found.faults) == ({"a": 1, "b": "x"}, [])


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(categories=["L", "N", "P"])), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(trees)
@settings(max_examples=300, deadline=None)
@example({"no": "no", "a": ["1e-4", "0o7", "~", "TRUE", "", " x ", "a: b", "\x85\u2028\U0001f600"]})
def test_what_is_written_is_read_back(tree):
    """A run's own config.yaml must mean what the run did."""
    found = read_yaml(write_yaml({"x": tree}), Place(0, 1, "f"))
    assert not found.faults
    assert found.value == {"x": tree}


# Faults -----------------------------------------------------------------------------------------


def test_all_faults_of_a_config_come_at_once_in_the_order_of_their_lines(faults):
    """One fault a run costs a user as many runs as there are faults."""
    text = """\
task: summarisation
objective:
  name: tailr
  gama: 0.5
  min_weight: -1
model: {pretrained: x, dtype: float16}
data:
  source: debian-description
  gamma: 0.1
  prompt: no place
training:
  learning_rate: -0.001
  lr: 1
  max_steps: three
"""
    assert faults(text, "data.limit.train=x", "seed=-1") == [
        "mine.yaml:1: task: unknown task 'summarisation'; did you mean summarization?",
        "mine.yaml:2: objective.gamma: is missing; add gamma: ...",
        "mine.yaml:4: objective.gama: unknown field; did you mean gamma?",
        "mine.yaml:5: objective.min_weight: must lie in [0, 1], got -1",
        "mine.yaml:6: model.dtype: unknown value 'float16'; did you mean bfloat16?",
        "mine.yaml:8: data.source: no corpus 'debian-description' ships with tvd-gen; "
        "did you mean debian-descriptions?",
        "mine.yaml:9: data.gamma: unknown field; gamma belongs under objective",
        "mine.yaml:10: data.prompt: must contain {source}, where the source goes",
        "mine.yaml:12: training.learning_rate: must be > 0, got -0.001",
        "mine.yaml:13: training.lr: unknown field; did you mean learning_rate?",
        "mine.yaml:14: training.max_steps: must be a whole number, got 'three'",
        "--set data.limit.train=x: data.limit.train: must be a whole number, got 'x'",
        "--set seed=-1: seed: must be >= 0, got -1",
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("model=null", "is missing; add a section model: ..."),
        ("model.architecture={model_type: bart}", "give only one of pretrained or architecture"),
        ("model.pretrained=null", "needs one of pretrained or architecture"),
        ("model.tokenizer={type: bpe}", "has no effect without model.architecture; remove it"),
        ("model.freeze=lm_head", "must be a list, got 'lm_head'"),
        ("data.hub=x", "give only one of source, files or hub; source is given too"),
        ("data.source=null", "needs one of source, files or hub"),
        ("data.subset=x", "has no effect without data.hub; remove it"),
        ("objective={name: ce, reference: x}", "ce looks at no reference model; remove it"),
        ("objective={name: gem, weights_from: ema}", "gem has no weights that could come from"),
        ("objective.weights_every=10", "has no effect without weights_from: lagged"),
        ("objective.weights_decay=0.5", "has no effect without weights_from: ema"),
        ("data.block_size=8", "has no meaning for summarization; remove it"),
        ("data.streaming=true", "is missing; streamed data has no length"),
        ("data.limit={dev: 3}", "unknown split; one of train, validation, test"),
        (
            "data.columns={text: x}",
            "summarization has no field text; its fields: source and target",
        ),
        ("objective.gamma={start: 0, end: 1}", "a schedule needs its name"),
        ("objective.gamma={schedule: liner, start: 0, end: 1}", "did you mean linear?"),
        ("objective.gamma={schedule: linear, end: 1}", "is missing; add start: ..."),
        ("objective.gamma={schedule: linear, start: 0, end: 2}", "got 2.0 at progress 1"),
        (
            "objective.gamma={schedule: step, values: [0, 3, 1], boundaries: [0.2, 0.4]}",
            "must lie in [0, 1], got 3 at progress 0.2",
        ),
        ("objective.gamma=true", "must be a number or a schedule, got True"),
        ("objective.q=0.5", "belongs to gce, not to tailr"),
        ("objective.name=tailor", "unknown objective 'tailor'; did you mean tailr?"),
        ("objective.label_smoothing=1", "must be < 1"),
        ("objective.z_loss=-1", "must be >= 0"),
        ("objective.row_budget=1", "must be < 1"),
        ("training.learning_rate='1e-3'", "must be a number, got '1e-3' (text); remove the quotes"),
        ("training.bf16=yes", "must be true or false, got 'yes' (text, in YAML 1.2)"),
        ("training.output_dir=x", "cannot be set here: the run folder holds everything"),
        ("training.seed=1", "cannot be set here: set the top-level seed"),
        ("training.label_smoothing_factor=0.1", "set objective.label_smoothing"),
        ("training.average_tokens_across_devices=false", "must stay true"),
        ("training.enable_jit_checkpoint=true", "must stay false"),
        ("training.logging_nan_inf_filter=true", "must stay false"),
        ("training.metric_for_best_model=eval_loss", "select on nll or a task's metric"),
        ("training.metric_for_best_model=ece", "ece is not measured while training"),
        ("training.metric_for_best_model=rougeL", "rougeL needs texts; add predict_with_generate"),
        ("training.load_best_model_at_end=true", "needs eval_strategy: epoch or steps"),
        ("training.num_train_epochs=0", "must be > 0, got 0"),
        ("training.gradient_accumulation_steps=0", "must be >= 1"),
        ("training.gradient_accumulation_steps=1.5", "must be a whole number"),
        ("training.dataloader_num_workers=-1", "must be >= 0"),
        ("training.max_grad_norm=-1", "must be >= 0"),
        ("training.weight_decay=-5", "must be >= 0"),
        ("training.save_steps=0", "must be > 0"),
        ("training.max_steps=0", "must be at least 1, or -1 for no limit"),
        ("training.lr_scheduler_type=linaer", "did you mean linear?"),
        ("training.report_to=tensorbord", "unknown reporter 'tensorbord'"),
        ("training.liger_kernel_config={cross_entropy: true}", "the loss is tvd-gen's own"),
        ("generation.num_beam=3", "unknown field; did you mean num_beams?"),
        ("generation.top_p=0.9", "has no effect without do_sample: true"),
        ("generation.num_return_sequences=3", "one text is written for each row"),
        ("evaluation.metrics=[rogue]", "unknown metric; did you mean rouge?"),
        ("evaluation.metrics=[]", "must not be empty"),
        ("evaluation.limit=0", "must be >= 1"),
        ("evaluation.strip=[]", "must not be empty"),
        ("evaluation.strip=[x, '']", "must not be empty"),
        ("evaluation.strip=<newline>", "must be a list"),
        ("name=../x", "must be letters, digits"),
        ("name=.x", "must be letters, digits"),
        ("seed=4294967296", "must be < 4294967296"),
        ("seed=1e-4", "must be a whole number, got 0.0001"),
        ("task.name=x", "task is no section"),
        ("just text", "must be key.path=value"),
        ("a..b=1", "must be key.path=value"),
        ("data.limit={train: 1", "not YAML"),
    ],
)
def test_a_wrong_value_is_refused_with_its_reason(faults, change, fault):
    """Accepted, each of these trains nothing, trains another thing, or ends in a traceback."""
    lines = faults(GOOD, change)
    assert any(fault in line for line in lines), lines


def test_a_fault_of_an_override_is_said_with_the_override(faults):
    """The file is right; its line would mislead."""
    (line,) = faults(GOOD, "objective.gamma=3")
    assert line == "--set objective.gamma=3: objective.gamma: must lie in [0, 1], got 3"
    (line,) = faults(GOOD, "objective={name: tailr, gamma: 3}")
    assert line.startswith("--set objective={name: tailr, gamma: 3}: objective.gamma: must lie")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n- b\n", "just text", "null"])
def test_a_file_that_holds_no_sections_is_one_line(faults, text):
    assert len(faults(text)) == 1


def test_a_folder_or_an_unknown_name_is_one_line(tmp_path):
    for name in (str(tmp_path), "demo/sumarization.yaml", "x" * 10_000, "a\0b", "no/such.yaml"):
        with pytest.raises(ConfigError) as caught:
            load_config(name)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=r"did you mean demo/summarization\.yaml"):
        load_config("demo/sumarization.yaml")


# What a config means ----------------------------------------------------------------------------


def test_the_run_is_called_by_its_file(config_file):
    assert load_config(config_file(GOOD, "try-1.yaml")).name == "try-1"
    with pytest.raises(ConfigError, match=r"name: must be letters, digits"):
        load_config(config_file(GOOD, "my try.yaml"))


def test_overrides_are_read_by_yaml_and_null_removes(config_file):
    config = load(
        config_file,
        GOOD,
        "data.source=null",
        "data.files.train=[a.de, a.en]",
        "training.learning_rate=1e-5",
        "objective={name: ce}",
        "data.prompt='Sum up: {source}'",
    )
    assert config.data.source is None
    assert config.data.files == {"train": ("a.de", "a.en")}
    assert config.training.learning_rate == 1e-5
    assert config.objective.build()[0] == OBJECTIVES["ce"]()
    assert config.data.prompt == "Sum up: {source}"


def test_overrides_may_be_values():
    """The eval command hands on what it has parsed."""
    given = parse_overrides(["evaluation.limit=5", "seed=7", "data.prompt=null"])
    assert given == {"evaluation.limit": 5, "seed": 7, "data.prompt": None}
    config = load_config("demo/summarization", given)
    assert (config.evaluation.limit, config.seed, config.data.prompt) == (5, 7, None)
    with pytest.raises(ConfigError, match=r"must be key\.path=value"):
        parse_overrides(["x"])


def test_an_objective_is_built_with_its_schedules(config_file):
    gamma = "{schedule: linear, start: 0, end: 0.8}"
    config = load(config_file, GOOD, f"objective.gamma={gamma}")
    objective, schedules, additions = config.objective.build()
    assert objective == OBJECTIVES["tailr"](gamma=0.0, min_weight=0.2)
    assert schedules["gamma"](1.0) == 0.8
    assert additions == {
        **{"label_smoothing": 0.1, "z_loss": 0.0, "row_budget": 0.0, "normalize_weights": False},
        **{"weights_from": "model", "weights_every": 3000, "weights_decay": 0.999},
    }


def test_a_ramp_of_whole_numbers_is_refused_before_the_run(config_file):
    ramp = {"name": "eaft", "k": {"schedule": "linear", "start": 10, "end": 20}}
    with pytest.raises(ConfigError, match=r"k.*must be a whole number"):
        load(config_file, GOOD, f"objective={json.dumps(ramp)}")


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_can_be_named(config_file, name):
    numbers = {
        field.name: 0.5 if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(OBJECTIVES[name])
    }
    given = json.dumps({"name": name, **numbers})
    config = load(config_file, GOOD, f"objective={given}")
    assert config.objective.build()[:2] == (OBJECTIVES[name](**numbers), {})


def test_the_best_checkpoint_is_the_one_of_least_nll(config_file):
    """transformers takes a larger nll for a better one: its rule knows only names in `loss`."""
    base = ["training.load_best_model_at_end=true", "training.eval_strategy=epoch"]
    base.append("training.save_strategy=epoch")
    given = load(config_file, GOOD, *base).training.arguments
    assert (given["metric_for_best_model"], given["greater_is_better"]) == ("nll", False)
    base.append("training.predict_with_generate=true")
    given = load(config_file, GOOD, *base, "training.metric_for_best_model=rougeL")
    assert given.training.greater_is_better is True


def test_the_task_fills_in_metrics_and_generation(config_file):
    config = load(config_file, GOOD, "generation.num_beams=2")
    assert config.generation == {"num_beams": 2, "no_repeat_ngram_size": 3}
    assert config.evaluation.metrics[0] == "rouge"
    story = ["task=story_generation", "generation.do_sample=false"]
    assert load(config_file, GOOD, *story).generation == {"do_sample": False}


def test_a_metric_of_ones_own_is_a_folder(config_file, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.py").write_text("")
    config = load(config_file, GOOD, f"evaluation.metrics=[rouge, {{path: {folder}}}]")
    assert config.evaluation.metrics == ("rouge", str(folder))


def test_a_config_is_frozen(config_file):
    config = load(config_file, GOOD)
    for part in (config, config.training, config.objective, config.evaluation):
        with pytest.raises(ValueError, match="frozen"):
            part.seed = 1


def test_every_training_field_of_transformers_has_a_schema():
    """A new transformers may add a field of a kind that a config cannot hold."""
    assert set(argument_names()) <= set(arguments_model().model_json_schema()["properties"])
    schema = json_schema()
    assert {"task", "model", "data"} == set(schema["required"])
    assert "$ref" not in json.dumps(schema["$defs"]["TrainingSpec"])


def test_accepted_arguments_are_accepted_by_transformers(config_file, tmp_path):
    from transformers import Seq2SeqTrainingArguments

    given = [
        "training.lr_scheduler_type=cosine",
        "training.warmup_steps=0.1",
        "training.eval_steps=50",
        "training.report_to=none",
        "training.use_liger_kernel=true",
        "training.accelerator_config={split_batches: false}",
    ]
    config = load(config_file, GOOD, *given)
    made = Seq2SeqTrainingArguments(output_dir=str(tmp_path), **config.training.arguments)
    assert made.learning_rate == 1e-4
    assert made.liger_kernel_config == {"cross_entropy": False, "fused_linear_cross_entropy": False}


# Fuzz -------------------------------------------------------------------------------------------

FULL = {
    "name": "full",
    "task": "translation",
    "seed": 1,
    "objective": {"name": "tailr", "gamma": 0.1, "min_weight": 0.3, "label_smoothing": 0.1},
    "model": {
        "architecture": {"model_type": "bart", "d_model": 64},
        "tokenizer": {"type": "bpe", "vocab_size": 100},
        "freeze": ["a.*"],
    },
    "data": {
        "files": {"train": ["a.de", "a.en"], "test": "t.jsonl"},
        "columns": {"source": "de"},
        "limit": {"train": 10},
        "max_source_tokens": 8,
    },
    "training": {
        "max_tokens": 100,
        "num_train_epochs": 2,
        "learning_rate": 0.1,
        "warmup_steps": 0.1,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "max_steps": 10,
    },
    "generation": {"num_beams": 2, "early_stopping": True},
    "evaluation": {"metrics": ["bleu"], "limit": 3},
}
ODD = st.sampled_from(
    [None, True, -1, 0, 1, 1.5, 1e300, 10**30, "", "x", "1e-3", "no", "\u202e[bold]", "é" * 50,
     [], [1], ["a", "b", "c"], {}, {"schedule": "linear"}, {"x": {"y": 1}}, [[[1]]], {"": 0}]
)  # fmt: skip


def paths(tree, path=()):
    yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from paths(value, (*path, key))


def put(tree, path, value):
    for key in path[:-1]:
        if not isinstance(tree.get(key), dict):
            return
        tree = tree[key]
    tree[path[-1]] = copy.deepcopy(value)


mutations = st.lists(
    st.tuples(
        st.sampled_from([path for path in paths(FULL) if path]),
        st.sampled_from(["value", "key", "sibling", "delete"]),
        ODD,
        st.text(max_size=6),
    ),
    min_size=1,
    max_size=4,
)


def mutated(changes):
    tree = copy.deepcopy(FULL)
    for path, how, value, word in changes:
        if how == "value":
            put(tree, path, value)
        elif how == "key":
            put(tree, (*path[:-1], path[-1] + word), value)
        elif how == "sibling":
            put(tree, (*path[:-1], word), value)
        else:
            put(tree, path, None)
    return tree


def is_one_fault(line, file):
    return line.startswith(("--set ", "... and ")) or (
        line.startswith(f"{file}:") and line[len(str(file)) + 1].isdigit()
    )


def check_loads_or_says_why(file, data):
    file.write_bytes(data)
    try:
        config = load_config(file)
    except ConfigError as error:
        lines = str(error).split("\n")
        assert all(is_one_fault(line, file) for line in lines), lines
        return
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config


FUZZ = settings(
    max_examples=300 * int(os.environ.get("TVD_FUZZ", "1")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@given(mutations)
@example([(("data", "columns", "source"), "key", "", "\n")])
@FUZZ
def test_a_mutated_config_loads_or_says_why_with_lines(tmp_path, changes):
    """A user's typo must never be a traceback, and what loads must load again from its dump."""
    text = json.dumps(mutated(changes), indent=1, allow_nan=False)
    check_loads_or_says_why(tmp_path / "full.yaml", text.encode())


@given(
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3), st.integers(0, 9)), max_size=4)
)
@FUZZ
def test_a_damaged_file_loads_or_says_why_with_lines(tmp_path, damages):
    """Half-saved, mis-encoded and merge-conflicted files are read too."""
    data = GOOD.encode()
    for at, piece, cut in damages:
        data = data[:at] + piece + data[at + cut :]
    check_loads_or_says_why(tmp_path / "full.yaml", data)


@given(st.text("ab:-[]{}&*!|>'\"%@`#?,. \n\t01e\u2028\ufeff", max_size=60))
@FUZZ
def test_any_text_loads_or_says_why_with_lines(tmp_path, text):
    check_loads_or_says_why(tmp_path / "full.yaml", text.encode())


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
@FUZZ
def test_any_override_is_used_or_refused(overrides):
    with contextlib.suppress(ConfigError):
        load_config("demo/translation", overrides)


def test_the_unmutated_config_is_right(tmp_path):
    """The fuzz must start from something that loads."""
    file = tmp_path / "full.yaml"
    file.write_text(json.dumps(FULL))
    config = load_config(file)
    assert config == from_tree(FULL)
    assert load_config(Path(config_file_of(tmp_path, config))) == config


def config_file_of(folder, config):
    file = folder / "dumped.yaml"
    file.write_text(dump_config(config))
    return file
