"""Bookkeeping on real tensors whose sizes are known."""

from __future__ import annotations

import torch
from torch import UntypedStorage

from yarn_train.plan.ledger import GRADIENTS, SAVED, TEMPORARY, Ledger, Moment

KIB = 1024


def kib(count: int) -> torch.Tensor:
    return torch.empty(count * KIB, dtype=torch.uint8)


def by_part(ledger: Ledger, without: tuple[str, ...] = ()) -> dict[str, dict[str, int]]:
    """{part: {category: KiB}} at its fullest instant."""
    moments = ledger.moments(without)
    return {m.part: {category: size // KIB for category, size in m.live.items() if size} for m in moments}


def test_the_fullest_instant_of_each_part() -> None:
    with Ledger() as ledger:
        with ledger.part("forward"):
            first = kib(3)
            second = kib(2)
            del first
        with ledger.part("backward"):
            third = kib(4)
            del second, third
            kib(1)
    assert by_part(ledger) == {"forward": {TEMPORARY: 5}, "backward": {TEMPORARY: 6}}


def test_views_are_counted_once_and_storages_die_with_their_last_view() -> None:
    with Ledger() as ledger, ledger.part("step"):
        whole = kib(4)
        half = whole[: 2 * KIB].view(2, KIB)
        del whole
        assert ledger.live() == {TEMPORARY: 4 * KIB}
        del half
        assert ledger.live() == {}
        kib(3)
    assert by_part(ledger) == {"step": {TEMPORARY: 4}}


def test_a_category_learnt_late_holds_from_the_first_byte_on() -> None:
    with Ledger() as ledger:
        with ledger.part("backward"):
            gradient, other = kib(2), kib(1)
            del other
        ledger.label([gradient], GRADIENTS)
        with ledger.part("next"):
            kept = kib(5)
        ledger.label_live(TEMPORARY, SAVED)
        del kept
    assert by_part(ledger) == {"backward": {GRADIENTS: 2, TEMPORARY: 1}, "next": {GRADIENTS: 2, SAVED: 5}}


def test_what_lives_elsewhere_is_listed_but_makes_no_instant_fuller() -> None:
    with Ledger() as ledger, ledger.part("step"):
        away = kib(9)
        ledger.label([away], "host")
        first = kib(1)
        del away
        second = kib(1)
    del first, second
    assert by_part(ledger) == {"step": {"host": 9, TEMPORARY: 1}}
    assert by_part(ledger, without=("host",)) == {"step": {TEMPORARY: 2}}


def test_a_storage_that_is_emptied_and_refilled_as_sharding_engines_do() -> None:
    with Ledger() as ledger:
        with ledger.part("gathered"):
            tensor = kib(4)
        tensor.untyped_storage().resize_(0)
        with ledger.part("without"):
            kib(1)
        with ledger.part("again"):
            tensor.untyped_storage().resize_(4 * KIB)
    assert by_part(ledger) == {"gathered": {TEMPORARY: 4}, "without": {TEMPORARY: 1}, "again": {TEMPORARY: 4}}
    assert UntypedStorage.resize_.__name__ == "resize_"  # torch's own again


def test_memory_inside_of_an_operator_is_taken_and_given_back() -> None:
    with Ledger(lambda name, args: (8 * KIB, 3) if name == "aten::mm" else (0, 0)) as ledger, ledger.part("step"):
        a = torch.ones(16, 16)
        b = a @ a
    del a, b
    assert by_part(ledger) == {"step": {TEMPORARY: 9}}
    assert ledger.sent["mm"] == 3


def test_traffic_counts_pointwise_kernels_but_neither_views_nor_matrix_products() -> None:
    with Ledger() as ledger:
        a = torch.ones(16, 16)  # written: 1 KiB
        a.t()
        a @ a
        assert ledger.moved == KIB
        a.add_(a)  # read twice, written once
        assert ledger.moved == 4 * KIB


def test_a_moment_totals_what_is_on_the_device() -> None:
    assert Moment("x", {"a": 1, "b": 2}).total() == 3
    assert Moment("x", {"a": 1, "b": 2}).total({"b"}) == 1
