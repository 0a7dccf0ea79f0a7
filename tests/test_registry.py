"""What a decorator declares is checked when the variant is registered."""

from __future__ import annotations

import dataclasses

import pytest

from stability.calibrate.scenarios import shape, world
from stability.contrasts import contrast
from stability.corruptions import corruption
from stability.datasets import dataset
from stability.encoders import encoder
from stability.landscape.directions import direction
from stability.losses import Scalar, loss
from stability.optimizers import optimizer
from stability.probes import probe
from stability.registry import InputError, Registry
from stability.trackers import tracker

REGISTRIES = (loss, probe, dataset, encoder, corruption, contrast, optimizer, direction, tracker, shape, world)


def mine() -> None:
    """Do nothing."""


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_a_misspelt_trait_is_refused_with_the_nearest_and_nothing_is_registered(registry):
    for trait in (field.name for field in dataclasses.fields(registry.traits_type)):
        misspelt = trait + trait[-1]
        message = f"{registry.kind} 'mine' has no trait '{misspelt}'; did you mean '{trait}'. .known: "
        with pytest.raises(InputError, match=message):
            registry(**{misspelt: ()})(mine)
    assert "mine" not in registry


def test_a_trait_without_a_default_has_to_be_declared():
    with pytest.raises(InputError, match=r"^probe 'mine' does not declare the trait 'measures'$"):
        probe(mine)
    with pytest.raises(InputError, match=r"^contrast 'mine' does not declare the trait 'reduction'$"):
        contrast(on="raw")(mine)
    assert "mine" not in probe
    assert "mine" not in contrast


def test_the_scalars_of_a_loss_are_collected():
    registry = Registry("loss", loss.traits_type)
    scalars = {"log_scale": Scalar(1.0), "chance_of_rain": Scalar(0.5, trained=False)}
    registry(chance=len, **scalars)(mine)
    assert registry["mine"].traits.scalars == scalars
    assert registry["mine"].traits.chance is len


def test_every_registered_loss_is_an_attribute_of_the_package():
    from stability import losses

    for name, variant in loss.items():
        assert getattr(losses, name) is variant.function
    with pytest.raises(AttributeError, match="no attribute 'clipp'"):
        _ = losses.clipp
