import dataclasses

import pytest

from tvd_gen import TaiLr
from tvd_gen.schedules import SCHEDULES, Constant, Cosine, Linear, Step


@pytest.mark.parametrize("cls", [Linear, Cosine])
def test_a_ramp_goes_from_start_to_end_and_stays(cls):
    ramp = cls(0.0, 0.8, begin=0.25, until=0.75)
    assert [ramp(x) for x in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0, 0, 0.4, 0.8, 0.8])


def test_both_ends_are_exact():
    """gamma = 0.8 must be 0.8 at the end, not 0.8000000000000002: a range check would refuse 1."""
    for start, end in ((0.0, 1.0), (0.1, 0.7), (1.0, 0.3)):
        for ramp in (Linear(start, end), Cosine(start, end)):
            assert (ramp(0.0), ramp(1.0)) == (start, end)


def test_a_step_changes_at_its_boundaries():
    step = Step(values=(0.0, 0.1, 0.8), boundaries=(0.3, 0.6))
    assert [step(x) for x in (0.0, 0.29, 0.3, 0.59, 0.6, 1.0)] == [0, 0, 0.1, 0.1, 0.8, 0.8]


def test_a_constant_is_constant():
    assert {Constant(0.1)(x / 7) for x in range(8)} == {0.1}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Linear(0, 1, begin=0.5, until=0.5),
        lambda: Cosine(0, 1, begin=-0.1),
        lambda: Step((1, 2), (0.5, 0.6)),
        lambda: Step((1, 2, 3), (0.6, 0.5)),
        lambda: Step((1, 2), (0.0,)),
    ],
)
def test_an_impossible_schedule_is_refused(make):
    with pytest.raises(ValueError, match="got"):
        make()


def test_a_schedule_is_a_value_and_drives_any_field_of_an_objective():
    assert Linear(0.0, 0.8) == Linear(0.0, 0.8)
    objective = dataclasses.replace(TaiLr(0.0, 0.2), gamma=SCHEDULES["linear"](0.0, 0.8)(0.5))
    assert objective == TaiLr(0.4, 0.2)
