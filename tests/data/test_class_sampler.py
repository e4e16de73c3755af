import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plsc import Entry
from plsc.data.class_sampler import ClassSampler, Turns
from plsc.data.permutations import keys_of, permuted
from plsc.data.records import Records
from plsc.errors import ConfigError


class Labelled(Records):
    """A data set that has labels alone."""

    def __init__(self, labels):
        self._labels, self.num_images = np.array(labels, np.int32), len(labels)

    def name(self, i):
        return str(i)

    def where(self, i):
        return f"image {i}"

    def read(self, i):
        return b"%d" % i, int(self._labels[i])

    def labels(self):
        return self._labels

    def digests(self):
        return {"labels": str(self._labels)}


def of_class_sizes(sizes):
    """Returns a data set with so many images of each class, in mixed order, without images of class 1."""
    labels = [label + (label > 0) for label, size in enumerate(sizes) for _ in range(size)]
    return Labelled(np.random.default_rng(0).permutation(labels))


def whole_epoch(sampler, epoch, world_size=1, seed=3):
    """Returns what all ranks draw, [steps, ranks, images] in lists of lists."""
    return [sampler.epoch_order(seed, epoch, rank, world_size) for rank in range(world_size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 100])
def test_each_key_permutes_the_numbers_below_its_size(size):
    keys = keys_of(5, np.arange(6000))
    found = np.stack([permuted(np.full(6000, i), size, keys) for i in range(size)], axis=1)
    assert np.array_equal(np.sort(found, axis=1), np.broadcast_to(np.arange(size), found.shape))
    if 1 < size <= 5:  # All orders are about equally frequent.
        counts = collections.Counter(map(tuple, found.tolist()))
        expected = 6000 / math.factorial(size)
        orders = list(itertools.permutations(range(size)))
        assert sum((counts[one] - expected) ** 2 / expected for one in orders) < 2.5 * len(orders) + 8
    else:
        places = np.stack([np.bincount(found[:, i], minlength=size) for i in range(size)])
        assert ((places - 6000 / size) ** 2).sum() * size / 6000 < 1.7 * size**2
    mixed = permuted(np.arange(-3, size + 3), size, keys_of(5, 0))
    assert mixed[:3].tolist() == [-3, -2, -1] and mixed[-3:].tolist() == [size, size + 1, size + 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 40), st.integers(0, 50))
def test_classes_take_turns_as_often_as_each_other_and_never_twice_in_a_batch(classes, of_batch, batches, seed):
    assume(of_batch <= classes)
    turns = Turns(classes, of_batch, batches * of_batch)
    taken = np.zeros(classes, np.int64)
    for epoch in range(5):
        before = taken.copy()
        places, numbers = turns.at(seed, epoch, np.arange(turns.turns))
        for place, number in zip(places.tolist(), numbers.tolist()):
            assert number == taken[place]  # The turns of a class are counted without a gap, over all epochs.
            taken[place] += 1
        assert all(len(set(batch)) == of_batch for batch in places.reshape(-1, of_batch).tolist())
        for one in (taken, taken - before):
            assert one.max() - one.min() <= 1
        some = np.array([turns.turns - 1, 0])
        assert np.array_equal(turns.at(seed, epoch, some)[0], places[some])


def test_turns_are_in_another_order_in_each_round_epoch_and_seed():
    turns = Turns(50, 1, 100)
    rounds = [turns.at(seed, epoch, np.arange(100))[0].reshape(2, 50) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({one.tobytes() for two in rounds for one in two}) == 6


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=9), st.integers(1, 4))
def test_a_balanced_epoch_takes_all_classes_equally_often_and_their_images_in_turn(sizes, world_size):
    source = of_class_sizes(sizes)
    sampler, labels = ClassSampler(source, 8), source.labels()
    of_class = collections.defaultdict(list)
    for epoch in range(4):
        parts = whole_epoch(sampler, epoch, world_size)
        assert {len(part) for part in parts} == {math.ceil(len(labels) / world_size)}
        drawn = np.stack(parts, axis=1).reshape(-1)
        assert np.array_equal(drawn[len(labels) :], drawn[: len(drawn) - len(labels)])  # as padding
        counts = np.bincount(labels[drawn[: len(labels)]], minlength=len(sizes) + 1)[np.unique(labels)]
        assert counts.max() - counts.min() <= 1
        for i in drawn[: len(labels)].tolist():
            of_class[labels[i]].append(i)
    for label, images in of_class.items():
        own = set(np.flatnonzero(labels == label).tolist())
        for first in range(0, len(images) - len(own) + 1, len(own)):
            assert set(images[first : first + len(own)]) == own


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 25), min_size=8, max_size=14),
    st.sampled_from([(1, 8, 2), (2, 4, 2), (4, 2, 2), (2, 6, 4), (3, 5, 5), (1, 24, 3), (2, 2, 4), (1, 12, 12)]),
)
def test_a_batch_of_all_ranks_has_p_classes_with_k_images_each(sizes, layout):
    world_size, batch_size, of_class = layout
    source = of_class_sizes(sizes)
    sampler, labels = ClassSampler(source, batch_size, of_class, world_size), source.labels()
    counted = np.bincount(labels)
    for epoch in range(2):
        parts = whole_epoch(sampler, epoch, world_size)
        assert {len(part) % batch_size for part in parts} == {0}
        for first in range(0, len(parts[0]), batch_size):
            shares = [part[first : first + batch_size] for part in parts]
            batch = np.concatenate(shares)
            classes, images = np.unique(labels[batch], return_counts=True)
            assert len(classes) == world_size * batch_size // of_class and set(images.tolist()) == {of_class}
            for label in classes:
                times = np.bincount(batch[labels[batch] == label])
                assert times.max() == math.ceil(of_class / counted[label])  # few images, several times each
                assert (times > 0).sum() == min(of_class, counted[label])
            if batch_size % of_class == 0:  # All images of a class are on one rank.
                assert sum(len(set(labels[share].tolist())) for share in shares) == len(classes)


def test_all_images_of_a_class_come_before_any_comes_in_another_turn():
    source = of_class_sizes([1, 3, 4, 6, 7, 12, 13])
    sampler, labels = ClassSampler(source, 12, 3), source.labels()
    turns = collections.defaultdict(list)
    for epoch in range(30):
        drawn = sampler.epoch_order(0, epoch, 0, 1)
        assert len(drawn) == sampler.epoch_images == 48  # whole batches
        assert sampler.num_images == len(sampler.labels()) == 46
        for first in range(0, len(drawn), 3):
            turns[labels[drawn[first]]].append(drawn[first : first + 3].tolist())
    for label, images in turns.items():
        own = np.flatnonzero(labels == label)
        of_pass = math.ceil(len(own) / 3)
        passes = [sum(images[k : k + of_pass], []) for k in range(0, len(images) - of_pass + 1, of_pass)]
        assert len(passes) > 3 and all(set(one) == set(own.tolist()) for one in passes)
        assert all(len(set(one[: len(own)])) == len(own) for one in passes)


def test_the_batches_of_all_ranks_do_not_depend_on_the_number_of_ranks():
    source = of_class_sizes([5, 9, 20, 3, 40, 11, 1, 7])
    epochs = []
    for world_size in (1, 2, 4):
        sampler = ClassSampler(source, 16 // world_size, 4, world_size)
        parts = np.stack(whole_epoch(sampler, 1, world_size))
        size = 16 // world_size
        epochs.append([sorted(parts[:, k : k + size].ravel().tolist()) for k in range(0, parts.shape[1], size)])
    assert epochs[0] == epochs[1] == epochs[2]


def test_every_class_of_a_long_tail_comes_in_every_epoch_that_has_room_for_it():
    sizes = [400, *[1] * 20, *[6] * 20]
    source = of_class_sizes(sizes)
    for sampler in (ClassSampler(source, 20), ClassSampler(source, 20, 4)):
        for epoch in range(3):
            order = sampler.epoch_order(0, epoch, 0, 1)
            assert len(order) == source.num_images and set(source.labels()[order]) == set(source.labels())


def test_a_sampler_is_the_data_set_that_it_draws_from():
    source = of_class_sizes([3, 4])
    source.class_names = ("a", "b", "c")
    sampler = ClassSampler(source, 4)
    assert sampler.num_images == 7 and sampler.num_classes == 3 and sampler.class_names == ("a", "b", "c")
    assert sampler.read(5) == source.read(5) and sampler.where(5) == "image 5" and sampler.name(5) == "5"
    assert sampler.digests() == source.digests() and np.array_equal(sampler.labels(), source.labels())


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((10, 4, 1), r"images_per_class=4\): a batch of 10 images cannot hold 4 of each class; .* a multiple of 4"),
        ((5, 4, 2), r"a batch of 10 images \(5 on each of 2 ranks\) cannot hold 4 of each class"),
        ((8, 2, 1), "a batch of 8 images needs 4 classes, and the data has 3; lower set_train_batch_size, or raise"),
    ],
)
def test_batches_that_cannot_hold_p_times_k_images_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        ClassSampler(of_class_sizes([3, 4, 5]), *arguments)


@pytest.mark.parametrize(
    "script, words",
    [
        (lambda ins: ins.set_sampler("random"), r"set_sampler\('random'\): expected one of uniform, balanced, pxk"),
        (lambda ins: ins.set_sampler("pxk", images_per_class=0), "images_per_class.0.: expected an integer of at lea"),
        (lambda ins: ins.set_sampler("balanced", images_per_class=4), "images_per_class=4.: is for 'pxk' alone"),
        (lambda ins: (ins.set_sampler("balanced"), setattr(ins, "train_reader", lambda: iter(()))),
         r"set_sampler\('balanced'\): draws images of the data set folder, but train_reader replaces them"),
        (lambda ins: (ins.set_sampler("pxk"), ins.set_data_format("base64", "window")),
         r"set_sampler\('pxk'\) and set_data_format\('base64', shuffle='window'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_sampler_is_refused(script, words):
    ins = Entry()
    with pytest.raises(ConfigError, match=words):
        script(ins)
        ins.train()


def test_the_sampler_among_the_settings():
    ins = Entry()
    assert ins._config.sampler == "uniform" and ins._config.drawing == "uniform"
    ins.set_sampler("pxk")
    assert (ins._config.sampler, ins._config.images_per_class) == ("pxk", 4)
    assert ins._config.drawing == "pxk, 4 of a class"
    ins.set_sampler("balanced")
    assert (ins._config.sampler, ins._config.images_per_class) == ("balanced", None)
