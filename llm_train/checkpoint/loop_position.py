"""Where Lightning's loop is, in micro-batches, from the number of optimizer steps that are done.

What is unusual: the loop counts as if every step of the run had the accumulation of the present
one. So a step begins at a multiple of it, validations come at multiples of steps, and neither a
resume on other ranks nor a batch that changes on the way leaves anything misaligned.
"""

import lightning.pytorch as pl

from llm_train.derived import Derived


def set_accumulation(trainer: pl.Trainer, derived: Derived, step: int) -> None:
    """Gives the Trainer the micro-batches of the step after ``step`` steps."""
    accumulation = derived.stage(step).accumulation
    trainer.accumulate_grad_batches = accumulation
    every = (derived.validate_every or derived.total_steps) * accumulation
    trainer.val_check_interval = every  # read when training starts
    trainer.val_check_batch = every


def set_position(trainer: pl.Trainer, derived: Derived, step: int) -> None:
    """Makes Lightning's progress counters say that ``step`` optimizer steps are done."""
    set_accumulation(trainer, derived, step)
    state = trainer.fit_loop.state_dict()
    micro = step * trainer.accumulate_grad_batches
    batches = {"ready": micro, "started": micro, "processed": micro, "completed": micro}
    epoch = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    for scope in ("current", "total"):
        state["epoch_loop.batch_progress"][scope].update(batches)
        state["epoch_progress"][scope].update(epoch)
        optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        optimizer["step"][scope].update(ready=step, completed=step)
    state["epoch_loop.state_dict"]["_batches_that_stepped"] = step
    trainer.fit_loop.load_state_dict(state)


def enter_stage(trainer: pl.Trainer, derived: Derived, step: int) -> None:
    """Goes on with the accumulation of the next step; to be called last in ``on_train_batch_end``.

    Lightning counts that micro-batch as completed after it.
    """
    if derived.stage(step).accumulation == trainer.accumulate_grad_batches:
        return
    set_accumulation(trainer, derived, step)
    micro = step * trainer.accumulate_grad_batches
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for counts in (progress.current, progress.total):
        vars(counts).update(ready=micro, started=micro, processed=micro, completed=micro - 1)
