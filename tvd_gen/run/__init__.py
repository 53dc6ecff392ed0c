"""One run: a config becomes a run folder, and the folder predictions and numbers."""

from tvd_gen.run.evaluation import evaluate, generate
from tvd_gen.run.planning import Plan, plan
from tvd_gen.run.training import train

__all__ = ["Plan", "evaluate", "generate", "plan", "train"]
