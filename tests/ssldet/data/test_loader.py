import gc
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import dataclass, replace
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Annotated

import pytest
import torch

from ssldet.data import sharing, workers
from ssldet.data.loader import ATTEMPTS, Stream, evaluation_batches, training_batches
from ssldet.data.sources import Unlabelled
from ssldet.errors import AnnotationError, ConfigError, DataError, SetupError, UnreadableError
from ssldet.source import Source
from ssldet.types import Gather, Problem, Sample, Targets


class Numbers(Source):
    """A source whose image i is full of i; some images can't be read."""

    classes = ("thing",)
    fingerprint = "0"
    skipped = ()

    def __init__(self, count, bad=()):
        self.count, self.bad = count, frozenset(bad)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise UnreadableError(f"{index}.jpg", "truncated")
        return Sample(
            image=torch.full((3, 4 + index % 3, 5), index, dtype=torch.uint8),
            targets=Targets(boxes=torch.full((index % 3, 4), 0.5), labels=torch.zeros(index % 3, dtype=torch.int64)),
            key=str(index),
            original_size=(4, 5),
        )

    def path_of(self, index):
        return Path(f"{index}.jpg")


@dataclass(frozen=True, kw_only=True)
class Drawn(Problem):
    numbers: Annotated[torch.Tensor, Gather.STACK]


def noise(sample, generator):
    """Views that show which generator they were given."""
    return replace(sample, problem=Drawn(numbers=torch.rand(2, 3, generator=generator)))


def stream(source=None, views=noise, **options):
    given = {"seed": 7, "batch_size": 4, "total_steps": 6, **options}
    return list(training_batches(Numbers(11) if source is None else source, views, **given))


def seen(batches):
    """Everything that tells samples apart, in order."""
    return [
        (key, tuple(jitter.flatten().tolist()), len(targets))
        for batch in batches
        for key, jitter, targets in zip(batch.keys, batch.problem.numbers, batch.targets, strict=True)
    ]


def test_a_number_of_views_comes_again_after_the_last_of_them():
    endless = {key: [] for key in map(str, range(11))}
    repeated = {key: [] for key in endless}
    for views, found in ((0, endless), (2, repeated)):
        for key, jitter, _ in seen(stream(total_steps=11, views_per_image=views)):
            found[key].append(jitter)
    for key, (first, second, third, fourth) in repeated.items():
        assert (first, second) == (third, fourth) == tuple(endless[key][:2])
        assert len(set(endless[key])) == 4


def test_shows_every_image_once_an_epoch_and_never_stops_at_its_edge():
    keys = [key for key, *_ in seen(stream(total_steps=11))]  # 44 places: 4 epochs of 11
    for epoch in range(4):
        assert sorted(keys[epoch * 11 : (epoch + 1) * 11], key=int) == [str(i) for i in range(11)]
        assert keys[epoch * 11 : (epoch + 1) * 11] == [str(i) for i in Numbers(11).order(7, epoch).tolist()]
    assert keys[:11] != keys[11:22]


def test_augmentation_differs_between_epochs_and_seeds():
    first = {key: noise for key, noise, _ in seen(stream(total_steps=2))}
    later = {key: noise for key, noise, _ in seen(stream(start_step=3, total_steps=6))}
    other = {key: noise for key, noise, _ in seen(stream(total_steps=2, seed=8))}
    assert not set(first.values()) & set(later.values())
    assert not set(first.values()) & set(other.values())


def test_a_set_smaller_than_the_batch_is_repeated():
    keys = [key for key, *_ in seen(stream(Numbers(3), total_steps=3))]
    assert len(keys) == 12
    assert all(sorted(keys[i : i + 3]) == ["0", "1", "2"] for i in (0, 3, 6, 9))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    assert seen(stream(workers=workers)) == seen(stream())


@pytest.mark.parametrize("start", [1, 2, 5, 6])
def test_starting_in_the_middle_gives_the_tail(start):
    batches = training_batches(Numbers(11), noise, seed=7, batch_size=4, total_steps=6, start_step=start)
    assert len(batches) == 6 - start
    assert seen(batches) == seen(stream())[start * 4 :]


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_ranks_and_parts_together_are_the_whole_in_order(world, accumulate):
    ranks = [stream(rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    interleaved = [batch for parts in zip(*ranks, strict=True) for batch in parts]
    assert len(interleaved) == 6 * world * accumulate
    assert seen(interleaved) == seen(stream())


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match=r"4 images can't be split equally among 3 devices.*multiple of 3"):
        stream(world=3)


def test_an_empty_source_is_refused():
    with pytest.raises(DataError, match="no image"):
        stream(Numbers(0))


def test_without_labels_the_same_images_come_in_the_same_order():
    labelled, unlabelled = seen(stream()), seen(stream(Unlabelled(Numbers(11))))
    assert sum(count for *_, count in labelled) > 0
    assert sum(count for *_, count in unlabelled) == 0
    assert [entry[:2] for entry in labelled] == [entry[:2] for entry in unlabelled]


class Backwards(Numbers):
    """A source with an order of its own and with items that depend on chance."""

    def order(self, seed, epoch):
        return torch.arange(len(self)).flip(0).roll(epoch)

    def draw(self, index, generator):
        return replace(self[index], key=f"{index}:{int(torch.randint(10**6, (), generator=generator))}")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_may_give_its_own_order_and_draw_its_items(workers):
    keys = [key for key, *_ in seen(stream(Backwards(6), total_steps=3, workers=workers))]
    assert [int(key.split(":")[0]) for key in keys] == [5, 4, 3, 2, 1, 0, 0, 5, 4, 3, 2, 1]
    assert len(set(keys)) == 12
    assert keys == [key for key, *_ in seen(stream(Backwards(6), total_steps=3))]


def test_the_global_stream_of_chance_is_left_alone():
    before = torch.get_rng_state()
    stream()
    stream(workers=1, total_steps=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_the_same_way_every_time_and_named(workers):
    batches = stream(Numbers(11, bad={2, 5}), workers=workers)
    assert seen(batches) == seen(stream(Numbers(11, bad={2, 5})))
    assert [len(batch) for batch in batches] == [4] * 6
    assert not {"2", "5"} & {key for key, *_ in seen(batches)}
    named = [entry for batch in batches for entry in batch.skipped]
    assert {(entry.path, entry.reason) for entry in named} == {("2.jpg", "truncated"), ("5.jpg", "truncated")}
    good = seen(stream())
    kept = [new for new, old in zip(seen(batches), good, strict=True) if old[0] not in {"2", "5"}]
    assert kept == [old for old in good if old[0] not in {"2", "5"}]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_ends_in_one_clear_line(workers):
    with pytest.raises(DataError, match=rf"^none of {ATTEMPTS} images.*truncated {ATTEMPTS}.*is the data there\?$"):
        stream(Numbers(5, bad=range(5)), workers=workers)


def broken_labels(sample, generator):
    raise AnnotationError("box 3 of 7.jpg is upside down")


def buggy(sample, generator):
    raise KeyError("oops")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_house_arrive_unchanged(workers):
    with pytest.raises(AnnotationError, match=r"^box 3 of 7\.jpg is upside down$"):
        stream(views=broken_labels, workers=workers)


def test_a_bug_in_the_views_names_the_image():
    with pytest.raises(KeyError) as caught:
        stream(views=buggy)
    assert any("making views of image" in note and ".jpg" in note for note in caught.value.__notes__)
    with pytest.raises(KeyError, match=r"making views of image \d+: \d+\.jpg"):
        stream(views=buggy, workers=1)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (3, 0), (1, 2)])
def test_evaluation_shows_every_image_once(world, workers):
    ranks = [
        evaluation_batches(Numbers(11), noise, batch_size=2, rank=rank, world=world, workers=workers)
        for rank in range(world)
    ]
    batches = [list(loader) for loader in ranks]
    assert [len(done) for done in batches] == [len(loader) for loader in ranks]
    keys = [[int(key) for batch in done for key in batch.keys] for done in batches]
    assert all(part == sorted(part) for part in keys)
    assert sorted(key for part in keys for key in part) == list(range(11))
    everything = {entry for done in batches for entry in seen(done)}
    assert everything == set(seen(evaluation_batches(Numbers(11), noise, batch_size=4)))


@pytest.mark.parametrize("world", [1, 2])
def test_evaluation_gathers_images_of_one_size(world):
    sizes = [(30, 40), (40, 30), (30, 40), (20, 20), (30, 40), (40, 30), (30, 40), (40, 30), (30, 40)]

    class Sized(Numbers):
        def size_of(self, index):
            return sizes[index]

    ranks = [
        [
            [int(key) for key in batch.keys]
            for batch in evaluation_batches(Sized(9), noise, batch_size=2, rank=rank, world=world, by_size=True)
        ]
        for rank in range(world)
    ]
    if world == 1:
        assert ranks == [[[0, 2], [4, 6], [1, 5], [3, 8], [7]]]
    assert sorted(index for part in ranks for batch in part for index in batch) == list(range(9))
    mixed = [batch for part in ranks for batch in part if len({sizes[index] for index in batch}) > 1]
    assert len(mixed) <= world
    plain = [batch.keys for batch in evaluation_batches(Numbers(9), noise, batch_size=2, by_size=True)]
    assert plain == [batch.keys for batch in evaluation_batches(Numbers(9), noise, batch_size=2)]


def test_evaluation_leaves_bad_images_out_and_names_them():
    batches = list(evaluation_batches(Numbers(7, bad={0, 1, 4}), noise, batch_size=2))
    assert [batch.keys for batch in batches] == [["2", "3"], ["5"], ["6"]]
    assert [[entry.path for entry in batch.skipped] for batch in batches] == [["0.jpg", "1.jpg"], ["4.jpg"], []]


def test_evaluation_of_nothing_readable_is_an_error():
    with pytest.raises(DataError, match=r"none of the 3 images"):
        list(evaluation_batches(Numbers(3, bad=range(3)), noise, batch_size=2))


def test_trailing_bad_images_are_told(caplog):
    batches = list(evaluation_batches(Numbers(3, bad={2}), noise, batch_size=2))
    assert [batch.keys for batch in batches] == [["0", "1"]]
    assert "2.jpg: truncated" in caplog.text


class Deadly:
    """Views that kill their worker at some images, once or every time."""

    def __init__(self, keys, folder, always, how=signal.SIGKILL):
        self.keys, self.folder, self.always, self.how = keys, folder, always, how

    def __call__(self, sample, generator):
        token = self.folder / sample.key
        if sample.key in self.keys and (self.always or not token.exists()):
            token.touch()
            os.kill(os.getpid(), self.how)
        return noise(sample, generator)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_costs_nothing(tmp_path, caplog, how):
    batches = stream(views=Deadly({"3", "8"}, tmp_path, always=False, how=how), workers=2)
    assert seen(batches) == seen(stream())
    assert not any(batch.skipped for batch in batches)
    assert "a loader worker died" in caplog.text
    assert "while reading" in caplog.text


def test_an_image_that_kills_every_reader_is_left_out(tmp_path, caplog):
    batches = stream(views=Deadly({"3"}, tmp_path, always=True), workers=2)
    assert [len(batch) for batch in batches] == [4] * 6
    assert "3" not in {key for key, *_ in seen(batches)}
    assert {(entry.path, entry.reason) for batch in batches for entry in batch.skipped} == {
        ("3.jpg", "kills-its-reader")
    }


def test_workers_that_always_die_end_in_one_clear_line(tmp_path):
    everything = {str(i) for i in range(40)}
    with pytest.raises(
        DataError, match=r"^loader workers keep dying \(SIGKILL: .*while reading \d+\.jpg.*data\.workers"
    ):
        stream(Numbers(40), Deadly(everything, tmp_path, always=True), workers=1)


def test_workers_killed_from_outside_while_the_consumer_is_busy():
    batches, done = (
        iter(training_batches(Numbers(11), slow, seed=7, batch_size=4, total_steps=8, workers=2)),
        [],
    )
    for number, batch in enumerate(batches):
        done.append(batch)
        if number in (1, 4):
            for worker in children():
                os.kill(worker, signal.SIGKILL)
            time.sleep(0.1)  # no error may be raised here: a step is running
    assert seen(done) == seen(stream(total_steps=8))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_signals_for_the_whole_job_do_not_reach_the_workers(name):
    batches = iter(training_batches(Numbers(11), slow, seed=7, batch_size=4, total_steps=6, workers=2))
    done = [next(batches)]
    before = children()
    # From another process than the parent, as a scheduler does.
    if os.fork() == 0:
        for worker in before:
            os.kill(worker, getattr(signal, name))
        os._exit(0)
    os.wait()
    done += [next(batches), next(batches)]
    assert children() == before
    done += batches
    assert seen(done) == seen(stream())


def slow(sample, generator):
    time.sleep(0.01)
    return noise(sample, generator)


def children():
    import multiprocessing

    return sorted(child.pid for child in multiprocessing.active_children())


def test_leaving_early_leaves_no_worker_behind():
    batches = iter(training_batches(Numbers(11), noise, seed=7, batch_size=4, total_steps=1000, workers=2))
    next(batches)
    assert len(children()) == 2
    begin = time.perf_counter()
    del batches
    assert children() == []
    assert time.perf_counter() - begin < 4


def test_workers_use_the_temporary_folder_of_this_process_which_outlives_them_and_is_removed(monkeypatch):
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)

    def tell(sample, generator):
        return replace(sample, key=get_temp_dir())

    assert {key for batch in stream(views=tell, workers=2) for key in batch.keys} == {get_temp_dir()}


def test_workers_use_one_thread():
    def count(sample, generator):
        return replace(sample, problem=Drawn(numbers=torch.full((1, 1), float(torch.get_num_threads()))))

    assert {batch.problem.numbers.max().item() for batch in stream(views=count, workers=1)} == {1.0}


def test_waiting_is_measured():
    loader = training_batches(Numbers(11), slow, seed=7, batch_size=4, total_steps=3)
    list(loader)
    assert 0.1 < loader.waited < 5


def test_a_stream_that_starts_later_yields_the_same_batches():
    stream = Stream(source=Numbers(5), seed=1, batch_size=4, steps=range(9), rank=0, world=1, accumulate=2)
    whole = list(stream)
    assert len(whole) == len(stream) == 18
    stream.start = 7
    assert list(stream) == whole[7:]


def test_workers_that_cannot_share_memory_send_their_batches_through_pipes(monkeypatch, caplog):
    def refuse(storage, *_):
        raise RuntimeError("unable to allocate shared memory: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)
    assert seen(stream(workers=2)) == seen(stream())
    assert not caplog.records  # small tensors need none
    monkeypatch.setattr(workers, "SHARED_FROM", 0)
    assert seen(stream(workers=2)) == seen(stream())
    (said,) = [record.message for record in caplog.records]
    assert "loader workers can't hand over batches (the system refused shared memory or a file; " in said
    assert "MiB free" in said
    assert "files are open" in said
    assert "--shm-size" in said


def test_a_full_shared_memory_that_kills_workers_is_told_from_a_crash(tmp_path, caplog):
    batches = stream(views=Deadly({"3"}, tmp_path, always=False, how=signal.SIGBUS), workers=2)
    assert seen(batches) == seen(stream())
    assert "can't hand over batches (shared memory is full" in caplog.text


def test_batches_that_no_way_can_hand_over_end_in_one_line(monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(sharing.Packing, "__call__", lambda *_: Unsendable())
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)
    with pytest.raises(SetupError, match=r"^loader workers can't hand over batches .* or set data\.workers=0$"):
        stream(workers=1)


class Unsendable:
    def __reduce__(self):
        raise OSError(24, "Too many open files")


def test_a_limit_of_open_files_costs_nothing(fewer_files, caplog, monkeypatch):
    monkeypatch.setattr(workers, "SHARED_FROM", 0)
    held = stream(workers=2, total_steps=40)  # every tensor that is held keeps a file descriptor
    fewer_files(40)
    batches = stream(workers=2, total_steps=40)
    assert seen(batches) == seen(held)
    assert "batches go through pipes from here on" in caplog.text


@pytest.fixture
def fewer_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def allow(more):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + more, hard))

    yield allow
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_shared_memory():
    """The descriptors of shared memory that this process holds, told from those of pipes and of other files."""
    links = (one.readlink() for one in Path("/proc/self/fd").iterdir() if one.is_symlink())
    return sum(str(link).startswith("/dev/shm/torch_") for link in links)


@pytest.mark.parametrize(("shared_from", "some"), [(0, True), (workers.SHARED_FROM, False)])
def test_only_large_tensors_keep_shared_memory_open(monkeypatch, shared_from, some):
    monkeypatch.setattr(workers, "SHARED_FROM", shared_from)
    gc.collect()  # or tensors of earlier tests would close theirs in between
    before = open_shared_memory()
    held = stream(workers=1, total_steps=20)
    assert len(held) == 20
    assert (open_shared_memory() > before) == some


@pytest.mark.parametrize("shared_from", [0, 100, None])
def test_what_was_packed_comes_back(shared_from):
    (batch,) = stream(total_steps=1)
    odd = {
        "columns": torch.arange(60).view(3, 20).T,
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "none": torch.empty(0, 4),
        "number": torch.tensor(2.5, dtype=torch.float64),
    }
    packed = sharing.Packing(lambda samples: samples, shared_from)([batch, odd])
    large = [tensor.nbytes for tensor in packed.tensors]
    assert large == [360, 120, 480] if shared_from == 100 else bool(large) == (shared_from == 0)
    came, others = packed.unpacked()
    assert seen([came]) == seen([batch])
    assert torch.equal(came.images, batch.images)
    for name, tensor in odd.items():
        assert others[name].dtype == tensor.dtype
        assert torch.equal(others[name], tensor)
        others[name].zero_()  # it can be written to


def test_where_no_worker_can_be_started_this_process_reads(monkeypatch, caplog):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharing.WorkerContext, "Queue", refuse)
    assert seen(stream(workers=2)) == seen(stream())
    assert "loader workers can't be started (No space left on device" in caplog.text
    assert "the main process reads from here on" in caplog.text


def test_an_image_that_is_never_read_is_left_out_after_the_deadline(monkeypatch, caplog):
    monkeypatch.setattr(workers, "DEADLINE", 0.4)
    monkeypatch.setattr(workers, "POLL", 0.1)

    def wait(sample, generator):
        if sample.key == "3":
            time.sleep(60)
        return noise(sample, generator)

    batches = stream(views=wait, workers=2)
    assert {(entry.path, entry.reason) for batch in batches for entry in batch.skipped} == {
        ("3.jpg", "kills-its-reader")
    }
    assert "nothing read for 0 seconds) while reading 3.jpg" in caplog.text


def test_slow_images_are_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(workers, "DEADLINE", 0.5)
    monkeypatch.setattr(workers, "POLL", 0.05)

    def wait(sample, generator):
        time.sleep(0.2)  # a batch of four takes longer than the deadline, and no image does
        return noise(sample, generator)

    assert seen(stream(views=wait, workers=2, total_steps=2)) == seen(stream(total_steps=2))
    assert not caplog.records
