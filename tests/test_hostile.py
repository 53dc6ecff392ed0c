"""What comes from others is read, never run: models, checkpoints, configs, names, texts."""

import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from families import SPECIAL
from test_models import gpt2_like
from tiny import QUIET, config
from transformers import GPT2Config, GPT2LMHeadModel

import tvd_gen
from tvd_gen.cli import clean
from tvd_gen.config import load_config
from tvd_gen.errors import ConfigError, ModelError
from tvd_gen.models import ModelSpec, load_model
from tvd_gen.run import evaluate, generate, train

SOURCE = Path(tvd_gen.__file__).parent


class Payload:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    tokenizer = gpt2_like(pad=None)
    size = {"vocab_size": len(tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2LMHeadModel(GPT2Config(**SPECIAL | size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder):
    spec = ModelSpec(pretrained=str(folder))
    return load_model(spec, texts=None, seed=0, say=lambda *_: None)


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_a_pickle_in_place_of_weights_is_not_run(form, model_folder, tmp_path):
    (model_folder / "model.safetensors").unlink()
    weights, sentinel = model_folder / "pytorch_model.bin", tmp_path / "executed"
    if form == "zip":
        torch.save(Payload(sentinel), weights)
    else:
        weights.write_bytes(pickle.dumps(Payload(sentinel)))
    with pytest.raises(ModelError):
        load(model_folder)
    assert not sentinel.exists()


@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModelForCausalLM"])
def test_code_that_comes_with_a_model_is_not_run(kind, model_folder, tmp_path):
    sentinel = tmp_path / "executed"
    (model_folder / "evil.py").write_text(f"open({str(sentinel)!r}, 'w')\nclass Evil: pass\n")
    settings = json.loads((model_folder / "config.json").read_text())
    settings["auto_map"] = {kind: "evil.Evil"}
    if kind == "AutoConfig":
        settings["model_type"] = "evil"
    (model_folder / "config.json").write_text(json.dumps(settings))
    if kind == "AutoConfig":
        with pytest.raises(ModelError):
            load(model_folder)
    else:
        load(model_folder)  # transformers' own GPT-2
    assert not sentinel.exists()


BANNED = {
    r"\bpickle\.(load|loads|Unpickler)\b": "a pickle runs what it likes",
    r"weights_only\s*=\s*False": "so does torch.load without it",
    r"trust_remote_code\"?\s*[=:]\s*True": "code of others",
    r"\byaml\.(load|unsafe_load|full_load)\(": "tags make objects",
    r"\.load_state\(": "accelerate's takes pickles",
    r"\b(eval|exec)\(": "text as code",
    r"shell\s*=\s*True": "text as commands",
    r"joblib\.load|numpy\.load\(.*allow_pickle": "pickles by another name",
}


@pytest.mark.parametrize("pattern", BANNED)
def test_nothing_in_the_source_could_run_what_it_reads(pattern):
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in SOURCE.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(pattern, line) and not line.lstrip().startswith(("#", "def "))
    ]
    found = [line for line in found if ".eval()" not in line and "model.eval(" not in line]
    assert not found, BANNED[pattern]


def test_every_torch_load_is_a_safe_one():
    for path in SOURCE.rglob("*.py"):
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text()):
            assert "weights_only=True" in call, path


@pytest.mark.parametrize(
    "name", ["../up", "/etc/x", "a/b", ".hidden", "a\\b", "x" * 65, "a\0b", ""]
)
def test_a_name_leads_to_no_other_folder(name, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(json.dumps({"name": name, "task": "summarization"}))
    with pytest.raises(ConfigError, match="name"):
        load_config(file)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch executed']",
        "task: !!python/name:os.system",
        "a: &a [*a, *a]",
        "!!set {a}",
    ],
)
def test_yaml_makes_no_objects(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml:1: "):
        load_config("a.yaml")
    assert not Path("executed").exists()


EVIL = "\x1b]0;owned\x07\x1b[2J [red]bold[/red] <script>alert(1)</script> \u202egnp.exe"


def test_a_terminal_shows_texts_and_does_nothing_else():
    shown = clean(EVIL)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", shown)
    assert "[red]bold[/red] <script>" in shown


def test_hostile_texts_go_through_a_whole_run_as_texts(tmp_path, files):
    """In every file that a run writes they are strict JSON, and in no message an escape."""
    row = json.dumps({"source": EVIL, "target": EVIL}) + "\n"
    for path in files.values():
        Path(path).write_text(Path(path).read_text() + row)
    training = {"max_steps": 2, "per_device_train_batch_size": 8, "save_steps": 1}
    made = config(tmp_path, files, training=training, data={"max_target_tokens": 200})
    run = tmp_path / "run"
    train(made, run, **QUIET)
    evaluate(run, **QUIET)
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert EVIL in [each["source"] for each in rows]
    for path in run.rglob("*.json*"):
        assert "\x1b" not in path.read_text()
    assert len(list(generate(run, [EVIL], overrides={}, **QUIET))) == 1
