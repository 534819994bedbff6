"""The order of an epoch: a permutation, every one as likely as another, and batches that follow it."""

import numpy as np

import fastbp as fb


def test_an_epochs_order_is_a_permutation_on_every_backend(any_backend):
    from fastbp.core import reference
    from fastbp.data.sampling import epoch_rows

    for samples in (1, 2, 3, 5, 255, 256, 257, 1000, 65_537):
        rows = epoch_rows(0, samples, samples, 12345678901234567890)
        assert np.array_equal(np.sort(rows), np.arange(samples))
        assert np.array_equal(epoch_rows(samples // 3, 7, samples, 12345678901234567890), rows[samples // 3 :][:7])
        expected = np.empty(samples, np.int64)
        reference.batch_order(expected, 0, samples, 12345678901234567890)
        assert np.array_equal(rows, expected)
        assert np.array_equal(epoch_rows(0, samples, samples, None), np.arange(samples))


def test_all_orders_of_four_samples_are_equally_likely():
    """24 cells over 4,800 keys: chi-square with 23 degrees of freedom exceeds 49.7 once in a thousand."""
    from fastbp.data.sampling import epoch_rows

    keys = np.random.default_rng(0).integers(2**64, size=4800, dtype=np.uint64)
    _, counts = np.unique([epoch_rows(0, 4, 4, int(key)) for key in keys], axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7


def test_batches_cover_every_sample_once():
    X, y = np.arange(23)[:, None], np.arange(23)
    dealt = list(fb.batches(X, y, 5, seed=0))
    assert [len(xb) for xb, _ in dealt] == [5, 5, 5, 5, 3]
    assert sorted(np.concatenate([yb for _, yb in dealt])) == list(range(23))
    assert all((xb[:, 0] == yb).all() for xb, yb in dealt)
    assert np.array_equal(np.concatenate([yb for _, yb in fb.batches(X, y, 5, shuffle=False)]), y)
    again = [yb for _, yb in fb.batches(X, y, 5, seed=0)]
    assert all(np.array_equal(a, b) for (_, a), b in zip(dealt, again, strict=True))
