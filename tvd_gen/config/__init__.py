"""YAML files in, frozen and checked RunConfig values out: the only room that reads YAML."""

from tvd_gen.config.load import dump_config, load_config, parse_overrides
from tvd_gen.config.objective import ObjectiveConfig
from tvd_gen.config.schema import EvaluationSpec, RunConfig, json_schema
from tvd_gen.config.shipped import configs_folder, find_config, shipped_configs
from tvd_gen.config.training import TrainingSpec

__all__ = [
    "EvaluationSpec",
    "ObjectiveConfig",
    "RunConfig",
    "TrainingSpec",
    "configs_folder",
    "dump_config",
    "find_config",
    "json_schema",
    "load_config",
    "parse_overrides",
    "shipped_configs",
]
