"""The order of examples, and their prefetch."""

import threading
import time

import numpy as np
import pytest

from train.data.image_set import ImageSet
from train.data.stream import PREFETCH, Order, Prefetch, items, padded_order

# --- the order ----------------------------------------------------------------------


def sequence(order: Order, steps: int) -> np.ndarray:
    return np.concatenate([order.indices(step) for step in range(steps)])


@pytest.mark.parametrize(
    ("examples", "batch_size"), [(10, 5), (10, 3), (7, 4), (3, 8), (1, 2), (100, 100)]
)
def test_each_epoch_has_every_example_once_and_epochs_leave_no_gap(
    examples, batch_size
):
    epochs = 5
    order = Order(examples, batch_size, seed=0)
    steps = -(-epochs * examples // batch_size)
    seen = sequence(order, steps)
    assert seen.dtype == np.int32
    assert len(seen) == steps * batch_size
    for epoch in range(epochs):
        part = seen[epoch * examples : (epoch + 1) * examples]
        assert sorted(part) == list(range(examples))
    assert order.steps_per_epoch == examples / batch_size


def test_a_step_does_not_depend_on_those_asked_for_before():
    """So a run goes on where it stopped, also in the middle of an epoch."""
    wanted = [Order(50, 16, seed=4).indices(step) for step in range(40)]
    order = Order(50, 16, seed=4)
    for step in (39, 0, 17, 3, 39, 4, 3):
        np.testing.assert_array_equal(order.indices(step), wanted[step])


def test_the_batch_size_only_cuts_the_sequence():
    small, large = Order(50, 4, seed=1), Order(50, 20, seed=1)
    np.testing.assert_array_equal(sequence(small, 50), sequence(large, 10))


@pytest.mark.parametrize(("examples", "batch_size"), [(10, 5), (7, 4), (3, 8)])
def test_the_draw_of_each_example_is_its_epoch(examples, batch_size):
    order = Order(examples, batch_size, seed=0)
    seen = np.concatenate([order.draws(step) for step in range(6)])
    assert seen.tolist() == [i // examples for i in range(6 * batch_size)]
    assert seen.dtype == np.int32


def test_an_example_of_a_small_class_has_another_number_at_each_draw():
    """Else its random crop would be the same each time."""
    order = Order(60, 8, seed=3, classes=np.array([0] * 57 + [1] + [2] * 2))
    steps = range(30)  # four epochs, in each of which a class is drawn 20 times
    examples = np.concatenate([order.indices(step) for step in steps])
    draws = np.concatenate([order.draws(step) for step in steps])
    assert (examples == 57).sum() == 80
    pairs = set(zip(examples.tolist(), draws.tolist(), strict=True))
    assert len(pairs) == len(examples)


def test_classes_are_equally_often_in_a_balanced_order():
    """Classes of 9, 1 and 2 examples: 12 places are 4 for each."""
    classes = np.array([4] * 9 + [0] + [8] * 2)
    order = Order(12, 5, seed=3, classes=classes)
    seen = sequence(order, 24)
    assert seen.dtype == np.int32
    for epoch in seen.reshape(10, 12):
        for turn in classes[epoch].reshape(4, 3):
            assert sorted(turn) == [0, 4, 8]
        counts = np.bincount(epoch, minlength=12)
        assert counts[9] == 4
        assert counts[10:].tolist() == [2, 2]
        assert sorted(counts[:9]) == [0] * 5 + [1] * 4
    assert set(seen) == set(range(12))
    assert len({tuple(epoch) for epoch in seen.reshape(10, 12)}) == 10
    again = Order(12, 5, seed=3, classes=classes)
    np.testing.assert_array_equal(again.indices(17), order.indices(17))


def test_a_balanced_epoch_is_as_long_as_the_set():
    """Five places for two classes: the second turn of one of them is left out."""
    order = Order(5, 5, seed=0, classes=np.array([0, 0, 1, 1, 1]))
    extra = set()
    for step in range(20):
        ones = (order.indices(step) >= 2).sum()
        assert ones in (2, 3)
        extra.add(int(ones))
    assert extra == {2, 3}


def test_epochs_and_seeds_differ():
    orders = [Order(100, 100, seed).indices(e) for seed in (0, 1) for e in (0, 1, 2)]
    same = [(a == b).sum() for i, a in enumerate(orders) for b in orders[:i]]
    # Two permutations agree in one place on average; in 12, less than once in 10^8.
    assert max(same) < 12
    assert (orders[0] == np.arange(100)).sum() < 12


@pytest.mark.parametrize(
    ("examples", "batch_size", "steps"), [(10, 5, 2), (11, 5, 3), (3, 8, 1), (1, 1, 1)]
)
def test_every_example_is_evaluated_once(examples, batch_size, steps):
    order = padded_order(examples, batch_size)
    assert order.shape == (steps, batch_size)
    assert order.dtype == np.int32
    flat = order.ravel()
    assert flat[:examples].tolist() == list(range(examples))
    assert (flat[examples:] == -1).all()


# --- the items ----------------------------------------------------------------------


@pytest.fixture
def examples() -> ImageSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 4, 4, 3), np.uint8)
    return ImageSet(images, np.arange(9, dtype=np.int32) % 3, ("a", "b", "c"))


def test_items_of_a_resident_set_are_indices_alone():
    batch = items(np.array([[3, 1], [8, -1]]), None, 4)
    assert list(batch) == ["index"]
    assert batch["index"].dtype == np.int32
    assert batch["index"].tolist() == [[3, 1], [8, -1], [-1, -1], [-1, -1]]


def test_items_of_a_fed_set_have_images_and_labels(examples):
    batch = items(np.array([[3, 1], [8, -1]]), examples, 3)
    assert batch["index"].tolist() == [[3, 1], [8, -1], [-1, -1]]
    assert batch["images"].shape == (3, 2, 4, 4, 3)
    assert batch["images"].dtype == np.uint8
    assert batch["labels"].dtype == np.int32
    for place, i in ((0, 0), 3), ((0, 1), 1), ((1, 0), 8):
        np.testing.assert_array_equal(batch["images"][place], examples.images[i])
        assert batch["labels"][place] == i % 3
    assert ((batch["labels"] >= 0) & (batch["labels"] < 3)).all()  # also where none is


def test_items_without_padding(examples):
    batch = items(np.array([[2, 4, 6]]), examples, 1)
    assert batch["index"].tolist() == [[2, 4, 6]]
    np.testing.assert_array_equal(batch["images"][0], examples.images[[2, 4, 6]])


def test_the_draws_of_a_fed_set_go_with_its_examples():
    class Asked:
        def batch(self, positions, draws=None):
            asked.append((positions.tolist(), draws if draws is None else [*draws]))
            return np.zeros((len(positions), 2, 2, 3), np.uint8), positions * 0

    asked: list = []
    index = np.array([[3, 1], [8, 2]])
    items(index, Asked(), 3)
    items(index, Asked(), 3, np.array([[0, 0], [0, 1]]))
    assert [positions for positions, _ in asked] == [[3, 1, 8, 2, -1, -1]] * 2
    assert asked[0][1] is None
    assert asked[1][1][:4] == [0, 0, 0, 1]


# --- the thread ---------------------------------------------------------------------

PATIENCE = 30.0  # seconds that a loaded machine may take for what is done at once


def wait_for(condition) -> bool:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


@pytest.fixture
def threads():
    """Returns a function that counts the threads started since."""
    before = set(threading.enumerate())
    return lambda: len(set(threading.enumerate()) - before)


def test_what_is_prepared_comes_in_order(threads):
    received = list(Prefetch(lambda x: -x, range(100)))
    assert received == [(x, -x) for x in range(100)]
    assert wait_for(lambda: threads() == 0)


def test_nothing_to_prepare():
    assert list(Prefetch(lambda x: x, [])) == []


def test_preparation_is_on_another_thread_and_a_few_ahead():
    prepared = []
    prefetch = Prefetch(
        lambda x: prepared.append((x, threading.current_thread())), range(100)
    )
    try:
        # What waits in the queue, and one that waits for a place in it.
        assert wait_for(lambda: len(prepared) == PREFETCH + 1)
        time.sleep(0.05)
        assert len(prepared) == PREFETCH + 1
        assert threading.current_thread() not in {thread for _, thread in prepared}
    finally:
        prefetch.close()


def consume(prefetch: Prefetch, received: list) -> None:
    """Notes the requests as their items come."""
    for request, _ in prefetch:
        received.append(request)


def fail_at(number: int):
    def prepare(x: int) -> int:
        if x == number:
            raise OSError(f"no item {x}")
        return x

    return prepare


def test_an_error_reaches_the_consumer_after_what_was_ready(threads):
    received = []
    with pytest.raises(OSError, match="no item 3"):
        consume(Prefetch(fail_at(3), range(10)), received)
    assert received == [0, 1, 2]
    assert wait_for(lambda: threads() == 0)


def test_an_error_of_the_requests_reaches_the_consumer(threads):
    def requests():
        yield 1
        raise ValueError("no more")

    received = []
    with pytest.raises(ValueError, match="no more"):
        consume(Prefetch(str, requests()), received)
    assert received == [1]
    assert wait_for(lambda: threads() == 0)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_close_ends_the_thread_wherever_it_is(taken, threads):
    prefetch = Prefetch(lambda x: x, iter(int, 1))  # without end
    for _ in range(taken):
        next(iter(prefetch))
    assert threads() == 1
    prefetch.close()
    assert threads() == 0
    prefetch.close()


def test_close_after_the_end_and_after_an_error(threads):
    finished = Prefetch(lambda x: x, [1, 2])
    list(finished)
    finished.close()
    failed = Prefetch(fail_at(0), [0])
    assert wait_for(lambda: threads() == 0)
    failed.close()  # the error is not wanted any more


def test_close_waits_for_the_item_that_is_being_prepared(threads):
    started = threading.Event()
    done = []

    def prepare(x: int) -> None:
        started.set()
        time.sleep(0.05)
        done.append(x)

    prefetch = Prefetch(prepare, range(100))
    assert started.wait(PATIENCE)
    prefetch.close()
    assert threads() == 0
    assert done == [0]


def test_an_early_break_leaks_no_thread(threads):
    prefetch = Prefetch(lambda x: x, range(1000))
    try:
        for request, _ in prefetch:
            if request == 3:
                break
    finally:
        prefetch.close()
    assert threads() == 0


def test_waiting_for_a_slow_preparation_is_measured():
    pause, count = 0.03, 4

    def slow(x: int) -> int:
        time.sleep(pause)
        return x

    start = time.perf_counter()
    prefetch = Prefetch(slow, range(count))
    list(prefetch)
    # The thread is already at the first item when the consumer comes.
    assert prefetch.waited >= (count - 1) * pause
    assert prefetch.waited <= time.perf_counter() - start


def test_the_consumers_own_time_is_not_waiting():
    pause = 0.05
    start = time.perf_counter()
    prefetch = Prefetch(lambda x: x, range(4))
    for _ in prefetch:
        time.sleep(pause)
    assert 0 < prefetch.waited <= time.perf_counter() - start - 4 * pause
