"""The public surface: exactly what is promised, and nothing else."""

import subprocess
import sys

import tvd_gen

PROMISED = {
    "TaiLr", "CrossEntropy", "OBJECTIVES", "objective_loss", "linear_objective_loss",
    "linear_target_logp", "LossOutput", "TokenObjective", "GammaCrossEntropyLoss", "ObjectiveMixin",
    "ObjectiveTrainer", "Seq2SeqObjectiveTrainer", "ExactMixin",
}  # fmt: skip


def test_all_is_what_is_promised_and_is_there():
    """Others rely on these names."""
    assert set(tvd_gen.__all__) == PROMISED
    assert all(getattr(tvd_gen, name) is not None for name in PROMISED)


def test_importing_the_package_loads_no_framework():
    """The command line imports it too, and must answer in a third of a second."""
    code = "import sys, tvd_gen; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_loss_alone_does_not_load_transformers():
    """Library authors who want the loss alone should not pay for the trainers."""
    code = "import sys; from tvd_gen import TaiLr, objective_loss\n"
    code += "assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
