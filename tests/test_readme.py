"""The README is true: its code runs, and it names what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tvd_gen.config import load_config, shipped_configs
from tvd_gen.data import shipped_corpora
from tvd_gen.metrics import METRICS
from tvd_gen.objectives import OBJECTIVES
from tvd_gen.schedules import SCHEDULES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("import ")[1][:20])
def test_the_code_runs(code, tmp_path, monkeypatch):
    """The first thing that a newcomer copies."""
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_there_are_code_blocks():
    assert len(blocks("python")) >= 4


def test_the_config_loads(tmp_path):
    (config,) = blocks("yaml")
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "mine.yaml").write_text(config)
    assert load_config(tmp_path / "mine.yaml").objective.name == "tailr"


@pytest.mark.parametrize("names", [OBJECTIVES, METRICS, SCHEDULES, shipped_corpora()], ids=len)
def test_every_name_of_a_table_is_in_the_readme(names):
    assert [name for name in names if f"`{name}`" not in README] == []


def test_every_command_and_config_is_in_the_readme():
    from tvd_gen.cli import app

    commands = [c.name or c.callback.__name__ for c in app.registered_commands]
    assert [name for name in commands if f"tvd-gen {name}" not in README] == []
    named = [name.removeprefix("demo/") for name in shipped_configs()]
    assert [name for name in named if name not in README] == []


def test_the_import_that_the_readme_names_makes_our_model_known():
    """In a process of its own: here other tests have imported it."""
    (line,) = re.findall(r"`(import tvd_gen\.models\S*)` tells transformers", README)
    program = f"{line}; import transformers as t; t.AutoConfig.for_model('lstm_seq2seq')"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
