"""The stages of the synthetic experiment. Each leaves a file or a run folder that is whole or not
there, and is passed over where it is."""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from provenance import made_with
from recipe import AFTER_CE, ORACLE, Settings, oracle_config, student_config
from sentences import GO, Ids, Samples, SentenceModel, compare
from tvd_gen.config import load_config
from tvd_gen.data.readers import source_file
from tvd_gen.errors import ConfigError, DataError
from tvd_gen.metrics.counts import pooled_bleu, self_bleu
from tvd_gen.metrics.distances import sequence_tvd
from tvd_gen.run import train
from tvd_gen.run.folder import write_json, write_lines

Say = Callable[[str], None]

DRAWS = ("train", "validation", "test", "again")


@dataclass(frozen=True)
class Experiment:
    """One seed's oracle and students: a folder, and what its numbers hang on."""

    root: Path
    settings: Settings
    seed: int

    captions = property(lambda self: self.root / "captions")
    oracle = property(lambda self: self.root / "oracle")
    data = property(lambda self: self.root / "data")
    own = property(lambda self: self.root / "oracle-figures.json")

    def student(self, name: str) -> Path:
        """The run folder of a student; its figures.json is its last file."""
        return Path(self.root, "students", name)

    def draw(self, what: str) -> int:
        """A seed for sampling from the oracle."""
        return 10 * self.seed + DRAWS.index(what)


def fix(experiment: Experiment, captions: Path, validation: Path) -> None:
    """Note the settings in a new folder; ConfigError where it, or another seed's, has others."""
    files = {"captions_sha256": captions, "validation_sha256": validation}
    hashes = {name: source_file(file).sha256 for name, file in files.items()}
    wanted = dataclasses.asdict(experiment.settings) | hashes
    for file in sorted(experiment.root.parent.glob("seed-*/settings.json")):
        found = json.loads(file.read_text("utf-8"))
        if changed := [name for name in wanted if found.get(name) != wanted[name]]:
            told = ", ".join(f"{name} was {found.get(name)}" for name in changed)
            raise ConfigError(f"{file.parent}: has other settings ({told}); take another --output")
    experiment.root.mkdir(parents=True, exist_ok=True)
    write_json(experiment.root / "settings.json", wanted)


def words_of(caption: str) -> str:
    """Lower-case words and marks with blanks between: "A dog's ball." -> "a dog 's ball ."."""
    return " ".join(re.findall(r"'?[^\W_]+|[^\w\s]|_", caption.lower()))


def read_captions(experiment: Experiment, captions: Path, validation: Path) -> None:
    """The captions as rows of a run, each with the same source."""
    settings = experiment.settings
    limits = {"train": settings.captions, "validation": settings.caption_validation}
    for split, file in (("train", captions), ("validation", validation)):
        target = experiment.captions / f"{split}.jsonl"
        if not target.exists():
            lines = [words_of(line) for line in _lines(file)]
            rows = [line for line in lines if line][: limits[split]]
            if not rows:
                raise DataError(f"{file}: has no captions")
            _write_rows(target, rows)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no UTF-8 ({error.reason} at byte {error.start})") from error


def train_oracle(experiment: Experiment, say: Say) -> None:
    """The oracle, a run like any other."""
    tree = oracle_config(experiment.settings, experiment.captions, experiment.seed)
    _run(experiment.oracle, tree, say)


def sample_oracle(experiment: Experiment, say: Say) -> None:
    """What students learn from and are measured on, and the oracle's own figures for those.

    ConfigError where they were drawn and a file has changed since.
    """
    settings = experiment.settings
    counts = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    files = {split: experiment.data / f"{split}.jsonl" for split in counts}
    if experiment.own.exists():
        drawn = json.loads(experiment.own.read_text("utf-8")).get("data_sha256")
        if drawn is None:
            told = "is of an earlier version; remove it, and the same sentences are drawn again"
            raise ConfigError(f"{experiment.own}: {told}")
        for split, file in files.items():
            if not file.exists() or source_file(file).sha256 != drawn[split]:
                told = "has changed since the oracle drew it" if file.exists() else "is not there"
                raise ConfigError(f"{file}: {told}; remove {experiment.own}, and it is drawn again")
        return
    oracle = load(experiment.oracle, settings)
    for split, count in counts.items():
        texts = _texts(oracle, oracle.sample(count, experiment.draw(split)))
        # by length: every evaluation of every student then has next to no padding
        ordered = sorted(texts, key=len) if split == "validation" else texts
        _write_rows(files[split], ordered)
    test = _read_rows(oracle, files["test"])
    logp = oracle.logp(test)
    drawn = oracle.sample(settings.test, experiment.draw("again"))
    again = _bleus(oracle, drawn, test)
    figures = {
        "ppl_oracle": oracle.perplexity(drawn.rows, drawn.logp),
        "ppl_test": oracle.perplexity(test, logp),
        **again,
    }
    record = {
        "objective": ORACLE,
        "seed": experiment.seed,
        "after_ce": False,
        "settings": dataclasses.asdict(settings),
        "versions": made_with(),
        "training": _training(experiment.oracle),
        "figures": figures,
    }
    hashes = {split: source_file(file).sha256 for split, file in files.items()}
    kept = {"record": record, "data_sha256": hashes, "test_logp": logp.tolist()}
    write_json(experiment.own, kept)
    say(f"oracle: {settings.test} sentences, perplexity {figures['ppl_test']:.2f}")


def is_measured(experiment: Experiment, name: str) -> bool:
    """Whether a student has its figures; ConfigError where they are another objective's."""
    file = experiment.student(name) / "figures.json"
    if not file.exists():
        return False
    record = json.loads(file.read_text("utf-8"))
    wanted, found = _config_of(experiment, name)["objective"], record["section"]
    if any(found.get(key) != value for key, value in wanted.items() if key != "reference"):
        raise ConfigError(f"{file.parent}: was made with {found}; take another --output")
    return True


def _config_of(experiment: Experiment, name: str) -> dict[str, Any]:
    places = experiment.data, experiment.oracle
    ce = experiment.student("ce")
    return student_config(experiment.settings, *places, name, experiment.seed, ce=ce)


def run_student(experiment: Experiment, name: str, say: Say) -> None:
    """Train a student and measure it."""
    folder, seed = experiment.student(name), experiment.seed
    result = folder / "figures.json"
    if is_measured(experiment, name):
        return
    began = time.monotonic()
    config = _config_of(experiment, name)
    _run(folder, config, say)
    trained = time.monotonic()
    figures = measure(experiment, folder)
    seconds = {"train": trained - began, "measure": time.monotonic() - trained}
    record = {
        "objective": name,
        "seed": seed,
        "section": config["objective"],
        "after_ce": name in AFTER_CE,
        "settings": dataclasses.asdict(experiment.settings),
        "versions": made_with(),
        "training": _training(folder),
        "seconds": seconds,  # of this process: less where an earlier one had done a part
        "figures": figures,
    }
    write_json(result, record)
    say(f"{name}, seed {seed}: {seconds['train']:.0f} s + {seconds['measure']:.0f} s")


def measure(experiment: Experiment, folder: Path) -> dict[str, float]:
    """All figures of a trained student; perplexities are of a token, the end included."""
    settings = experiment.settings
    oracle, student = load(experiment.oracle, settings), load(folder, settings)
    test = _read_rows(oracle, experiment.data / "test.jsonl")
    test_oracle = torch.tensor(json.loads(experiment.own.read_text())["test_logp"]).double()
    test_student = student.logp(test)
    drawn = student.sample(settings.test, experiment.seed)
    drawn_oracle = oracle.logp(drawn.rows)
    write_lines(folder / "samples.jsonl", ({"text": text} for text in _texts(student, drawn)))
    figures = {
        "ppl_oracle": oracle.perplexity(drawn.rows, drawn_oracle),
        "ppl_test": student.perplexity(test, test_student),
        **_bleus(student, drawn, test),
    }
    # the same sentences for all students: nothing of a difference is their draw
    for suffix, rows in (("", test), ("_student", drawn.rows)):
        distances = compare(oracle, student, rows[: settings.compared])
        figures |= {f"{key}{suffix}": float(each) for key, each in distances._asdict().items()}
    estimates = {
        "": sequence_tvd(test_oracle, test_student),
        "_student": sequence_tvd(drawn.logp, drawn_oracle),
    }
    for suffix, estimate in estimates.items():
        figures[f"sequence_tvd{suffix}"] = estimate.mean
        figures[f"sequence_tvd{suffix}_error"] = estimate.standard_error
    figures["sequence_kl"] = float((test_oracle - test_student).mean())
    figures["sequence_reverse_kl"] = float((drawn.logp - drawn_oracle).mean())
    return figures


def load(run: Path, settings: Settings) -> SentenceModel:
    """The model of a run folder as a distribution over sentences."""
    return SentenceModel.load(str(run / "model"), settings.longest)


def _bleus(model: SentenceModel, drawn: Samples, test: list[Ids]) -> dict[str, float]:
    texts, lengths = _texts(model, drawn), [len(row) for row in drawn.rows]
    return {
        "bleu_4": pooled_bleu(texts, [model.text(row) for row in test]),
        "self_bleu_4": self_bleu(texts),
        "mean_length": sum(lengths) / len(lengths),
        "share_cut": sum(length == model.longest for length in lengths) / len(lengths),
    }


def _texts(model: SentenceModel, drawn: Samples) -> list[str]:
    return [model.text(row) for row in drawn.rows]


def _run(folder: Path, tree: Mapping[str, Any], say: Say) -> None:
    """The project's own training; a folder that is finished is left alone."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f"{folder.name}.yaml")
    write_json(file, {**tree, "name": folder.name})  # JSON is YAML
    train(load_config(file), folder, say=say, progress=lambda *_: None)


def _training(folder: Path) -> dict[str, float]:
    """How long the training was, and where its nll was the lowest."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "eval_nll" in row]
    best = min(evaluated, key=lambda row: row["eval_nll"])
    keys = ("step", "epoch")
    last = {key: evaluated[-1][key] for key in keys}
    return last | {f"best_{key}": best[key] for key in keys} | {"best_nll": best["eval_nll"]}


def _write_rows(file: Path, targets: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_lines(file, ({"source": GO, "target": target} for target in targets))


def _read_rows(model: SentenceModel, file: Path) -> list[Ids]:
    lines = file.read_text("utf-8").splitlines()
    return [model.ids(json.loads(line)["target"]) for line in lines]
