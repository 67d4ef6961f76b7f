"""Spend a budget of bytes on the triplets of many matrices.

The gain of a matrix is concave in its rank, so taking triplets by gain per byte is optimal up to the item that no
longer fits. Storing a matrix whole breaks that: in the end it gains all that is left for at most a triplet's price. The
steps that lead there are bought as one item, which makes the gain concave again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Goods:
    """The gains and prices of one matrix.

    Attributes:
        gains: Gain of each triplet, (k,) float64, descending.
        price: Bytes of a triplet.
        whole_price: Bytes of the matrix stored whole, which gains as much as all triplets.
    """

    gains: Tensor
    price: int
    whole_price: int


def spend(goods: Sequence[Goods], nbytes: int) -> list[int | None]:
    """Return how many triplets of each matrix to buy; None for a matrix to be stored whole.

    Ties go to the matrix that comes first.
    """
    offers = [_offer(one, allow_whole=True) for one in goods]
    while offers:
        bought, refused = _greedy(offers, nbytes)
        if refused is None:
            ranks: list[int | None] = []
            for offer, items in zip(offers, bought, strict=True):
                is_whole = offer.ends_whole and items == len(offer.gains)
                ranks.append(None if is_whole else items)
            return ranks
        # The next item by gain per byte is a whole matrix that is too large: its triplets may still fit one by one.
        offers[refused] = _offer(goods[refused], allow_whole=False)
    return []


@dataclass(frozen=True)
class _Offer:
    """The items of one matrix, in the order in which they can be bought: triplets one by one, then maybe the rest.

    Attributes:
        gains: Gain of each item, float64; gain per byte never rises from item to item.
        costs: Bytes of each item, int64.
        ends_whole: True if the last item is the whole matrix, which replaces the triplets bought before.
    """

    gains: Tensor
    costs: Tensor
    ends_whole: bool


def _offer(goods: Goods, *, allow_whole: bool) -> _Offer:
    gains, price = goods.gains, goods.price
    factored = min(len(gains), (goods.whole_price - 1) // price)  # largest rank that costs less than the whole
    costs = torch.full((factored,), price)
    if factored == len(gains) or not allow_whole:
        return _Offer(gains[:factored], costs, ends_whole=False)
    rest = gains.flip(0).cumsum(0).flip(0)[: factored + 1]  # gain of the whole over each rank
    rest_costs = goods.whole_price - price * torch.arange(factored + 1)
    # The whole is the next item from the first rank where it gains at least as much per byte as the next triplet.
    # That holds for the last rank at least.
    is_better = rest * price >= gains[: factored + 1] * rest_costs
    start = int(is_better.nonzero()[0])
    return _Offer(
        torch.cat([gains[:start], rest[start : start + 1]]),
        torch.cat([costs[:start], rest_costs[start : start + 1]]),
        ends_whole=True,
    )


def _greedy(offers: Sequence[_Offer], left: int) -> tuple[list[int], int | None]:
    """Choose how many items of each matrix to buy.

    Returns:
        The counts, and the first matrix that did not fit as a whole, which has to be bought in smaller steps; None if
        there is none.
    """
    counts = torch.tensor([len(offer.gains) for offer in offers])
    owners = torch.repeat_interleave(torch.arange(len(offers)), counts)  # (items,)
    costs = torch.cat([offer.costs for offer in offers])  # (items,)
    rates = torch.cat([offer.gains / offer.costs for offer in offers])  # (items,)
    # A stable sort keeps the order of each matrix's own items, because a later one is never worth more per byte.
    order = torch.sort(rates, descending=True, stable=True).indices
    fitting = int(torch.searchsorted(costs[order].cumsum(0), left, right=True))
    bought = torch.bincount(owners[order[:fitting]], minlength=len(offers)).tolist()
    left -= int(costs[order[:fitting]].sum())
    return bought, _fill(offers, owners[order[fitting:]].tolist(), bought, left)


def _fill(offers: Sequence[_Offer], owners: Iterable[int], bought: list[int], left: int) -> int | None:
    """Spend what is left on the next items that fit, adding to `bought`; return `_greedy`'s second result."""
    closed: set[int] = set()
    for owner in owners:
        if owner in closed:
            continue
        item, offer = bought[owner], offers[owner]
        price = int(offer.costs[item])
        if price <= left:
            bought[owner] = item + 1
            left -= price
        elif offer.ends_whole and item == len(offer.gains) - 1:
            return owner
        else:
            closed.add(owner)  # its later items can't be bought without this one
            if len(closed) == len(offers):
                break
    return None
