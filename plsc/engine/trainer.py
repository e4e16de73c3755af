"""Training, from top to bottom: set up, loop over the epochs, step, save, finish."""

from __future__ import annotations

import contextlib
import enum
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional

import numpy as np
import paddle

from plsc import amp, optim, parallel
from plsc.checkpoint.download import fetch_checkpoint, open_store
from plsc.checkpoint.folder import score_of
from plsc.config import Config
from plsc.engine import forecast, new_centres
from plsc.engine.agreement import check_data, check_rate, check_settings
from plsc.engine.build import build_callbacks, build_classifier, build_loader, build_uploader, open_source
from plsc.engine.callbacks import Clock, Step, begin_again
from plsc.engine.capacity import check_head_fits
from plsc.engine.class_values import find_class_values
from plsc.engine.damaged import DamagedImages
from plsc.engine.feed import Batch, FirstPass, check_warmup, steps_of, steps_per_epoch, warn_of_ignored_number
from plsc.engine.header import log_header
from plsc.engine.log import MetricsFile, logger
from plsc.engine.progress import Progress
from plsc.engine.resume import check_pretrained, open_save_dir, warm_start
from plsc.engine.run_record import write_run_record
from plsc.engine.state import TrainingState
from plsc.engine.teacher import open_teacher
from plsc.engine.updates import Updates
from plsc.engine.verdict import (
    check_epoch,
    check_weights,
    gradient_problem,
    report_skipped_end,
    report_skipped_step,
    step_of,
    warn_of_missing_gradients,
)
from plsc.errors import PlscError, RankError, StoppedError
from plsc.evaluation.build import build_evaluator
from plsc.evaluation.evaluator import Evaluator
from plsc.heads import GatheredLabels, HeadOutput
from plsc.inference.networks import TrainedNetwork
from plsc.layers.convolution import fast_convolutions
from plsc.machine import random_state
from plsc.machine.memory import out_of_memory_as, resident_memory
from plsc.machine.signals import StopRequest
from plsc.models import build_backbone
from plsc.models.base_model import check_is_frozen, check_rows, inputs_of
from plsc.models.freezing import TrainedParts, statistics_of
from plsc.models.modes import TrainingModes
from plsc.models.recompute import Recompute

_SECONDS_TO_UPLOAD = 40.0  # after a signal; clusters grant a minute or less


class Note(enum.IntFlag):
    """What a rank tells the others along with its labels, so that all ranks act on it after the same step."""

    WRITTEN = 1  # its part of the checkpoint is on disk
    SIGNAL = 2  # it has received SIGTERM, or Ctrl-C
    STOP = 4  # one of its callbacks has called `stop`
    DAMAGED = 8  # images of its batch are damaged, which the others do not know
    NO_BATCH = 16  # a signal to some rank has ended the wait for its batch


def train(config: Config) -> tuple[dict[str, Any], paddle.nn.Layer, int]:
    """Trains all epochs; returns what `Entry.train` documents, the trained backbone, and the pixel rule of the run."""
    advice = "lower set_train_batch_size, and ask plsc plan what a training needs"
    with forecast.training(), contextlib.ExitStack() as resources, out_of_memory_as(advice):
        trainer = Trainer(config, resources)
        return trainer.run(), trainer.backbone, trainer.config.pixel_rule


class Trainer:
    """One training run; to its callbacks it is the `Run`.

    Args:
        config: Checked settings.
        resources: Receives what must be released when training ends, however it ends.
    """

    def __init__(self, config: Config, resources: contextlib.ExitStack) -> None:
        process_bytes = resident_memory()
        self.config = config
        self.save_dir = Path(config.model_save_dir) if config.model_save_dir else None
        self.last: Optional[Step] = None
        self.stop_reason: Optional[str] = None
        self.samples = 0

        check_settings(config)
        check_pretrained(config)

        # Storage and callbacks.
        stop_transfers = threading.Event()
        store = open_store(config, stop_transfers)
        self.uploader = build_uploader(config, store, stop_transfers)
        if self.uploader is not None:
            resources.enter_context(self.uploader.claiming())
        self.damaged = None
        if config.skip_damaged:
            self.damaged = DamagedImages(config.skip_damaged, self.save_dir)
        self.callbacks = build_callbacks(config, self.uploader, self.damaged)
        begin_again(self.callbacks)
        fetch_checkpoint(config, store)

        self.source = open_source(config)
        if self.source is not None:
            resources.callback(self.source.close)
        find_class_values(config, self.source)
        self.teacher = open_teacher(config, self.source)
        check_head_fits(config)
        steps = self.open_data()

        # Backbone and head: the same random numbers on every rank while they are made, different ones afterwards.
        random_state.seed_everything(config.seed)
        self.backbone = build_backbone(config)
        self.modes = TrainingModes(self.backbone)
        self.parts = TrainedParts(self.backbone, config.trainable.stages, self.modes)
        resources.callback(self.parts.give_back)
        self.head = build_classifier(config)
        new = warm_start(config, self.backbone, self.head)
        self.share_gradients()
        self.recomputing: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
        if config.recompute:
            self.recomputing = Recompute(self.backbone, self.computing).active
        random_state.seed_everything(config.seed + parallel.rank())

        # Optimizer, clipping and loss scaling.
        if config.optimizer is not None:  # the function of set_optimizer may read the parameters that it is given
            self.draw_centres()
        self.updates = Updates(config, self.backbone, self.head, steps)
        self.optimizer = self.updates.optimizer
        check_rate(self.optimizer)
        self.scaler = amp.DynamicLossScaler(config.mixed_precision)

        # The state to save, and the checkpoint to resume from.
        self.state = TrainingState(
            config=config,
            backbone=self.backbone,
            head=self.head,
            optimizer=self.optimizer,
            row_updates=self.updates.of_rows,
            scaler=self.scaler,
            steps_per_epoch=steps,
            callbacks=self.callbacks,
        )
        log_header(self.state, self.loader.num_images, process_bytes)
        self.writer, resumed = open_save_dir(self.state, store, resources)
        self.draw_centres()
        pixels, self.config = config.pixels, self.state.config  # a resumed run keeps some settings of its checkpoint
        config = self.config
        if config.pixels != pixels:
            logger.info("images are read by pixel rule %d, with which the run began", config.pixel_rule)
            self.open_data()
        if new is not None and self.source is not None and not resumed:
            new_centres.fill(config, self.source, TrainedNetwork(self.backbone, config), self.head, new)
        if self.writer is not None:
            self.writer.on_saved = lambda folder: self.call("on_save", folder)

        # Signals and records.
        self.stop_request = resources.enter_context(StopRequest())
        is_stopping = resources.enter_context(parallel.stopping(lambda: self.stop_request.requested))
        self.loader.end_waiting_if(is_stopping)
        if self.source is not None:
            self.source.end_waiting_if(is_stopping)
        if self.evaluator is not None:
            self.evaluator.end_waiting_if(is_stopping)
        if self.uploader is not None:
            self.uploader.end_waiting_if(is_stopping, self.stop_request)
        self.metrics = MetricsFile(self.save_dir, self.progress.metrics_size if resumed else None)
        resources.callback(self.metrics.close)
        write_run_record(self.save_dir, config, self.state.run, resumed, self.steps_per_epoch)
        for callback in self.callbacks:
            resources.callback(callback.close)
        self.clock = Clock()

    def open_data(self) -> Optional[int]:
        """Opens the training data and the test sets; returns the steps in an epoch, None when a reader cannot tell.

        The test sets are read now, so that a mistake in them shows before the first epoch, not after it.
        """
        config = self.config
        skipping = self.damaged.skipping if self.damaged is not None else None
        known = self.teacher.known if self.teacher is not None else None
        self.loader = build_loader(config, self.source, skipping, known)
        digest = check_data(self.loader)
        config.data_digest = digest if self.source is not None else None
        if self.teacher is not None:
            self.teacher.check_images(self.loader, config)
        self.first_pass = FirstPass(config, self.loader)
        steps = steps_per_epoch(self.loader, config.gradient_accumulation)
        check_warmup(config, steps)
        warn_of_ignored_number(config, self.loader)
        self.evaluator = build_evaluator(config) if config.with_test else None
        if self.evaluator is not None:
            self.evaluator.check()
        return steps

    def draw_centres(self) -> None:
        """Draws the class centres that nothing has loaded."""
        for part in self.head.parts:
            part.head.draw()

    def share_gradients(self) -> None:
        """Has the ranks average the gradients of what is trained now, and a skipped step restore the statistics."""
        # A user's model may hold layers it does not use. Paddle must know, or the ranks would wait for their gradients.
        may_be_unused = self.config.model is not None
        self.model = parallel.distributed_model(self.backbone, may_be_unused, self.config.strategy)
        self.statistics = [tensor for tensor in self.parts.statistics() if tensor.is_floating_point()]
        self.is_first_step = True

    def run(self) -> dict[str, Any]:
        """Trains all epochs; returns what `Entry.train` documents."""
        config, progress, stopped = self.config, self.progress, None
        if progress.epoch >= config.train_epochs:
            done = "the only epoch is" if config.train_epochs == 1 else f"all {config.train_epochs} epochs are"
            logger.info("%s done; raise set_train_epochs to train more", done)
        self.call("on_train_begin")
        while progress.epoch < config.train_epochs and stopped is None:
            try:
                stopped = self.train_epoch()
            except StoppedError:  # on every rank, from the test
                self.exit_after_signal()
        with self.clock.paused():
            if self.writer is not None:
                self.writer.finish()
            report_skipped_end(progress, self.last)
            self.call("on_train_end")
            self.state.average.keep()  # in the network that the caller gets
        return {
            "steps": progress.step,
            "epochs": progress.epoch,
            "loss": progress.result_loss(),
            "images_per_second": self.samples / self.clock.seconds,
            "skipped_steps": progress.skipped,
            "checkpoint": str(self.checkpoints[-1]) if self.checkpoints else None,
            "test": progress.test,
            "stopped": stopped,
        }

    def train_epoch(self) -> Optional[str]:
        """Trains the rest of the current epoch and tests; returns why training must stop now, or None."""
        progress = self.progress
        began = progress.batch
        self.modes.restore()
        if self.parts.begin(progress.epoch):
            logger.info("epoch %d: %s", progress.epoch, self.parts.describe())
            self.share_gradients()
        self.state.begin_epoch()
        self.call("on_epoch_begin")
        for micro_batches in steps_of(self.loader, progress.epoch, progress.batch, self.config.gradient_accumulation):
            notes = self.step(micro_batches)
            # Every rank has the notes of all ranks, so all take the same branches.
            if any(note & (Note.SIGNAL | Note.NO_BATCH) for note in notes):
                self.exit_after_signal()
            if any(Note.STOP in note for note in notes):
                self.save(f"step_{progress.step}")
                return self.agreed_reason()
        if parallel.any_rank(self.stop_request.requested, f"the end of epoch {progress.epoch}"):
            self.exit_after_signal()
        self.first_pass.end(began, progress.batch, self.steps_per_epoch)
        self.state.steps_per_epoch = self.steps_per_epoch or progress.batch
        with self.clock.paused():
            check_epoch(progress, self.last)
            check_weights(self.backbone, self.head, progress, self.last)
            if self.evaluator is not None:
                self.test(self.evaluator)
            progress.end_epoch()
            self.state.schedules.end_epoch(progress.loss, score_of({"test": progress.test}))
            self.call("on_epoch_end")
            return self.agreed_reason()

    def test(self, evaluator: Evaluator) -> None:
        """Tests the network at the end of an epoch. If that fails, it first saves the state from before the test.

        A run that is resumed from there has done all steps of the epoch, and begins with the test.

        Raises:
            StoppedError: A signal has ended the test; on every rank.
        """
        progress = self.progress
        progress.metrics_size = self.metrics.size
        meta, rng = self.state.meta(), self.state.rank_rng()
        try:
            with self.state.average.in_use():
                progress.test = evaluator(TrainedNetwork(self.backbone, self.config))
            parallel.together(lambda: self.call("on_test", progress.test), "the callbacks")
        except StoppedError:
            raise
        except Exception as problem:
            # Only a PlscError of this rank's own is known to be raised on every rank, and all of them must save.
            on_all = isinstance(problem, PlscError) and not isinstance(problem, RankError)
            if self.writer is None or not (on_all or parallel.world_size() == 1):
                raise
            try:
                folder = self.writer.start(str(progress.epoch), self.state.files(self.writer.leads), meta, rng)
                self.writer.finish()
            except PlscError as other:
                logger.warning("the epoch could not be saved before training ends: %s", other)
                raise problem from None
            logger.warning(
                "the test of epoch %d failed, and the epoch was saved to %s; set_resume(True) resumes with the test, "
                "and set_with_test(False) leaves it out",
                progress.epoch,
                folder,
            )
            raise

    def step(self, micro_batches: Sequence[Optional[Batch]]) -> list[Note]:
        """Trains one step, and returns the notes of all ranks.

        A step counts on every rank or on none: when the loss, an embedding or a gradient of any rank is not finite,
        every rank keeps its weights, momentum and statistics, and only the schedule and the loss scale move. When a
        batch of any rank is None, no rank takes the step, and nothing moves.
        """
        config, progress, scaler = self.config, self.progress, self.scaler
        random_state.seed_step(config.seed, progress.step, parallel.rank())
        rate, scale, may_shrink = optim.rate_of(self.optimizer), scaler.scale, scaler.can_shrink
        self.modes.keep_held()
        gathered, notes = self.gather(micro_batches)
        if any(Note.NO_BATCH in note for note in notes):
            return notes
        batches = [batch for batch in micro_batches if batch is not None]
        statistics = [tensor.clone() for tensor in self.statistics]

        outputs: list[HeadOutput] = []
        for part, (images, labels, *known) in enumerate(batches):
            is_last = part + 1 == len(batches)
            with contextlib.nullcontext() if is_last else parallel.without_gradient_sync(self.model):
                targets = None if self.teacher is None else self.teacher.targets(images, known)
                embedding = self.embed(images, labels)
                outputs.append(self.losses(embedding.detach(), gathered, part, targets))
                if outputs[-1].problem is not None:
                    break
                if not embedding.stop_gradient:
                    # Paddle averages the ranks' gradients; those of the head are of the global mean and must add up.
                    embedding.backward(outputs[-1].embedding_grad * (parallel.world_size() * scale))

        problem = outputs[-1].problem
        if problem is None:
            self.updates.unscale(scale)
            problem = gradient_problem(self.backbone, [images for images, *_ in batches])
        if problem is None:
            if self.is_first_step and parallel.rank() == 0:
                warn_of_missing_gradients(self.backbone)
            self.is_first_step = False
            self.updates.clip_and_apply()
            self.state.average.update()
        else:
            for tensor, kept in zip(self.statistics, statistics):
                paddle.assign(kept, tensor)
        self.updates.clear_grad()
        self.state.schedules.step()
        scaler.update(problem is None)

        self.last = step_of(outputs, rate, scale if config.mixed_precision.scales_loss else None, problem)
        self.samples += self.last.samples
        self.first_pass.add(self.last.samples)
        progress.end_step(self.last.loss, is_used=problem is None, may_shrink=may_shrink)
        if problem is not None:
            report_skipped_step(progress, problem, config.max_skipped_steps)
        # Before the callbacks: the notes are about the checkpoint of an earlier step, not about one that begins now.
        if self.writer is not None and all(Note.WRITTEN in note for note in notes):
            with self.clock.paused():
                self.writer.finish()
        if self.damaged is not None and any(Note.DAMAGED in note for note in notes):
            self.damaged.share()
        self.call("on_step_end")
        return notes

    def gather(self, micro_batches: Sequence[Optional[Batch]]) -> tuple[GatheredLabels, list[Note]]:
        """Returns the labels and the notes of all ranks. It waits for them, so that no rank computes in vain."""
        parallel.meet(f"the batch of step {self.progress.step + 1}", every_step=True)
        labels = [np.empty(0, np.int64) if batch is None else batch[1] for batch in micro_batches]
        gathered = self.head.gather_labels(*labels, note=self.note(all(micro_batches)))
        gathered.wait()
        return gathered, [Note(one) for one in gathered.notes]

    def note(self, has_batch: bool) -> Note:
        """Returns what the other ranks must know before this step."""
        note = Note(0) if has_batch else Note.NO_BATCH
        note |= Note.WRITTEN if self.writer is not None and self.writer.written else Note(0)
        note |= Note.SIGNAL if self.stop_request.requested else Note(0)
        note |= Note.DAMAGED if self.damaged is not None and self.damaged.has_news else Note(0)
        return note | (Note.STOP if self.stop_reason else Note(0))

    def embed(self, images: np.ndarray, labels: np.ndarray) -> paddle.Tensor:
        """Returns the embeddings of a batch, [b, D] float32."""
        with self.recomputing(), self.computing():
            embedding = self.model(*inputs_of(self.backbone, paddle.to_tensor(images), paddle.to_tensor(labels)))
        check_rows(self.backbone, embedding, len(images))
        if embedding.stop_gradient:
            check_is_frozen(self.backbone)
        return embedding.astype("float32")

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Has the backbone compute in the precision of the settings, with the fast convolutions."""
        with fast_convolutions(), amp.autocast(self.config.mixed_precision):
            yield

    def losses(
        self, embedding: paddle.Tensor, gathered: GatheredLabels, part: int, targets: Optional[paddle.Tensor]
    ) -> HeadOutput:
        """Returns the loss of a micro-batch, and the gradient of its embeddings, of the head and of the teacher.

        Args:
            embedding: [b, D] The embeddings.
            gathered: The labels of all micro-batches.
            part: The number of the micro-batch.
            targets: [b, E] What the teacher says of the images; None without one.
        """
        if self.teacher is None or self.teacher.settings.head:
            output = self.head(embedding, gathered, self.config.calc_acc, part)
        else:
            output = HeadOutput(0.0, paddle.zeros_like(embedding), None, sum(gathered.wait()[part].counts))
        if self.teacher is None or targets is None or output.problem is not None:
            return output
        return self.teacher.teach(output, embedding, targets, gathered.wait(), part)

    def save(self, name: str) -> None:
        """Starts to write the checkpoint `name` while training continues; does nothing without a save folder."""
        if self.writer is None:
            return
        with self.clock.paused():
            if self.progress.batch:  # after an epoch it has been done
                check_weights(self.backbone, self.head, self.progress, self.last)
            parallel.broadcast_statistics(statistics_of(self.backbone))
            self.state.average.broadcast_statistics()
            self.progress.metrics_size = self.metrics.size
            self.writer.start(name, self.state.files(self.writer.leads), self.state.meta(), self.state.rank_rng())

    def exit_after_signal(self) -> NoReturn:
        """Saves a checkpoint and ends the program, because some rank has received SIGTERM or Ctrl-C.

        Raises:
            SystemExit: Always, with the status of a process that the signal has ended.
        """
        step = self.progress.step
        saved = "nothing was saved, because set_model_save_dir is empty"
        if self.writer is not None:
            name = f"step_{step}"
            self.save(name)
            self.writer.finish()
            saved = f"saved {self.writer.save_dir / name}; set_resume(True) resumes from there"
            if self.uploader is not None:
                self.uploader.hurry(self, _SECONDS_TO_UPLOAD)
        logger.warning("stopped by %s after step %d: %s", self.stop_request.name, step, saved)
        raise SystemExit(128 + self.stop_request.number)

    @property
    def progress(self) -> Progress:
        """How many epochs and steps are done, and with what results."""
        return self.state.progress

    @property
    def steps_per_epoch(self) -> Optional[int]:
        """Steps in an epoch; None until a reader that cannot tell has been counted in the first epoch."""
        return self.state.steps_per_epoch

    @property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints of this run that are kept, oldest first."""
        return [one.folder for one in self.writer.saved] if self.writer else []

    def record(self, event: str, **values: Any) -> None:
        """Adds a line to metrics.jsonl and tells the callbacks; leaves out values that are None."""
        values = {name: value for name, value in values.items() if value is not None}
        self.metrics.write(event, values)
        self.call("on_record", event, values)

    def stop(self, reason: str) -> None:
        """Ends training in an orderly way on every rank, at the end of this epoch or after the next step."""
        self.stop_reason = self.stop_reason or reason

    def agreed_reason(self) -> Optional[str]:
        """Returns why training must stop, the same on every rank; None when it must not."""
        return next(filter(None, parallel.all_gather_object(self.stop_reason, "the callbacks")), None)

    def call(self, hook: str, *values: Any) -> None:
        """Calls one hook of every callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *values)
