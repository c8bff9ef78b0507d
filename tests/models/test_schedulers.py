import pytest
from support.small_models import parts

from controlnet.models.schedulers import SCHEDULERS, SchedulerError, make_scheduler


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_name_gives_a_fresh_scheduler_with_the_bundles_schedule(name: str) -> None:
    config = parts()["scheduler"].config
    one, other = make_scheduler(name, config), make_scheduler(name, config)
    assert type(one) is SCHEDULERS[name][0] and one is not other
    for key in ("beta_end", "beta_schedule", "prediction_type", "num_train_timesteps"):
        assert one.config[key] == config[key], key


def test_an_unknown_name_is_refused_by_naming_the_known_ones() -> None:
    with pytest.raises(SchedulerError, match=r"DDIM.*got 'euler'"):
        make_scheduler("euler", parts()["scheduler"].config)
