import pickle

import numpy as np
import pytest

from dexcore.data.feed.keyed import Stream, generator


def test_a_draw_is_a_function_of_its_key_alone():
    first = generator(1, 2, 3, Stream.MASK).random(5)
    generator(1, 2, 3, Stream.ROUTER).random(100)
    assert np.array_equal(generator(1, 2, 3, Stream.MASK).random(5), first)


@pytest.mark.parametrize(
    "key",
    [
        (2, 2, 3, Stream.MASK),
        (1, 3, 3, Stream.MASK),
        (1, 2, 4, Stream.MASK),
        (1, 2, 3, Stream.ROUTER),
        (2, 1, 3, Stream.MASK),
        (1, 3, 2, Stream.MASK),
    ],
)
def test_every_part_of_the_key_and_its_place_matter(key):
    ours = generator(*key).random(4)
    assert not np.isclose(ours, generator(1, 2, 3, Stream.MASK).random(4)).any()


def test_the_key_layout_stays_as_documented():
    ours = generator(7, 5, 3, Stream.MASK).bit_generator.random_raw(4)
    counter = 3 * 2**128 + 5 * 2**192
    philox = np.random.Philox(key=7 + (3 << 64), counter=counter)
    assert np.array_equal(ours, philox.random_raw(4))
    assert ours[:2].tolist() == [9324809117539188711, 5306579555594444227]


def test_a_copied_generator_draws_on_as_the_first_does():
    ours = generator(7, 5, 3, Stream.MASK)
    ours.random(3)
    assert np.array_equal(pickle.loads(pickle.dumps(ours)).random(9), ours.random(9))


def test_a_generator_has_no_children_whose_draws_no_key_gives():
    with pytest.raises(TypeError, match="spawn"):
        generator(7, 5, 3, Stream.MASK).spawn(1)


def test_neighbouring_keys_draw_independent_numbers():
    streams = [
        generator(0, epoch, sample, stream).standard_normal(2000)
        for epoch in range(4)
        for sample in range(6)
        for stream in Stream
    ]
    correlation = np.corrcoef(streams)[np.triu_indices(len(streams), 1)]
    # 1 / sqrt(2000) is one deviation of the correlation of independent draws.
    assert np.abs(correlation).max() < 5.5 / 2000**0.5
    assert abs(correlation.std() * 2000**0.5 - 1) < 0.05


@pytest.mark.parametrize(
    ("name", "arguments"), [("seed", (-1, 0, 0)), ("epoch", (0, 2**64, 0)), ("sample", (0, 0, -3))]
)
def test_a_key_out_of_range_is_named(name, arguments):
    with pytest.raises(ValueError, match=name):
        generator(*arguments, Stream.MASK)


def test_a_stream_is_one_of_those_that_have_a_number():
    for stream in (3, "MASK"):
        with pytest.raises(TypeError, match="stream must be a Stream"):
            generator(0, 0, 0, stream)
