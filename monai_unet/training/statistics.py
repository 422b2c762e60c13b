"""Batch norm that learns with the statistics of prediction."""

from __future__ import annotations

from ignite.engine import Engine, Events

from monai_unet.networks import ValidUNet

__all__ = ["FixedStatistics"]


class FixedStatistics:
    """Keep the running statistics of batch norm from some epoch on, and train with them, as prediction does.

    With a batch of one tile, batch norm subtracts what is peculiar to that tile, and a network never learns to do
    without: in prediction, with the statistics of all tiles, every image of another contrast is a surprise. A last part
    of the training with fixed statistics cures that, at no cost: docs/results.md, "Batch norm".

    Args:
        network: without batch norm nothing changes.
        after: the number of epochs that are trained as usual; None for all.

    >>> from ignite.engine import Engine
    >>> network = ValidUNet(2, 1, 2, features=(2, 4), norm="batch")
    >>> trainer = Engine(lambda engine, batch: network.train())
    >>> FixedStatistics(network, after=1).attach(trainer)
    >>> _ = trainer.run([0], max_epochs=1)
    >>> any(not module.training for module in network.modules())
    False
    >>> _ = trainer.run([0], max_epochs=2)
    >>> {type(module).__name__ for module in network.modules() if not module.training}
    {'BatchNorm2d'}
    """

    def __init__(self, network: ValidUNet, after: int | None) -> None:
        self.network, self.after = network, after

    def attach(self, engine: Engine) -> None:
        """Decide at the start of each epoch, so that a resumed run goes on as it would have."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.network.fixed_statistics = self.after is not None and engine.state.epoch > self.after
