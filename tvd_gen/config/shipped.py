"""The configs that ship with the package, and how a name becomes a file."""

from pathlib import Path

from tvd_gen.config.faults import nearest
from tvd_gen.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent


def configs_folder() -> Path:
    """tvd_gen/configs in a wheel; configs/ beside the package in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> dict[str, str]:
    """Name -> what it is, from the file's first comment line; e.g. demo/summarization.yaml."""
    folder = configs_folder()
    files = sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.parts), file.parts))
    return {file.relative_to(folder).as_posix(): _first_comment(file) for file in files}


def _first_comment(file: Path) -> str:
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def find_config(name: str) -> Path:
    """A file's path, or the name of a shipped config with or without .yaml; else ConfigError."""
    try:
        path = Path(name).expanduser()
        found = path.is_file()
        if path.is_dir():
            raise ConfigError(f"{name}: a folder; name a config file in it")
    except (OSError, RuntimeError, ValueError):
        found = False  # a name that no file can have
    if found:
        return path
    shipped = shipped_configs()
    for known in (name, f"{name}.yaml"):
        if known in shipped:
            return configs_folder() / known
    near = nearest(name, shipped)
    hint = f"did you mean {near}?" if near else "tvd-gen configs list shows what ships"
    raise ConfigError(f"{ascii(name)[1:-1]}: no such file, and no shipped config; {hint}")
