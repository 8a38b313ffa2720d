"""A run that is ended as a kill would end it."""

from dinov2_hf.train import Trainer, build_accelerator


def train(config, until=None, resume="auto", callbacks=(), prepare=None, accelerator=None):
    """A run, ended by an exception after `until` updates; `prepare` gets the trainer before it."""
    trainer = Trainer.from_config(config, accelerator or build_accelerator(config.train), callbacks, resume)
    next_batch = trainer._next_batch

    def ended(loader):
        if trainer.step == until:
            raise KeyboardInterrupt
        return next_batch(loader)

    trainer._next_batch = ended
    if prepare:
        prepare(trainer)
    try:
        trainer.run()
    except KeyboardInterrupt:
        pass
    return trainer
