"""Spend a budget of bytes on the triplets of many matrices.

The gain of a matrix is concave in its rank, so taking triplets by gain per byte is optimal up to the item that no
longer fits. Storing a matrix whole breaks that: it gains all that is left for less than a triplet. The steps that lead
there are bought as one item, which makes the gain concave again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Goods:
    """What can be bought of one matrix.

    Attributes:
        gains: What each triplet gains, (k,) float64, descending.
        price: Bytes of a triplet.
        whole_price: Bytes of the matrix stored whole, which gains as much as all triplets.
    """

    gains: Tensor
    price: int
    whole_price: int


def spend(goods: Sequence[Goods], nbytes: int) -> list[int | None]:
    """How many triplets of each matrix to buy; None for a matrix to be stored whole.

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
        # What came next by gain per byte is a matrix as a whole, and too large: its triplets may still fit one by one.
        offers[refused] = _offer(goods[refused], allow_whole=False)
    return []


@dataclass(frozen=True)
class _Offer:
    """The items of one matrix, in the order in which they can be bought: triplets one by one, then maybe the rest.

    Attributes:
        gains: Per item, float64; gain per byte falls from item to item.
        costs: Per item, int64.
        ends_whole: Whether the last item is the matrix as a whole, in the place of the triplets bought before.
    """

    gains: Tensor
    costs: Tensor
    ends_whole: bool


def _offer(goods: Goods, *, allow_whole: bool) -> _Offer:
    gains, price = goods.gains, goods.price
    factored = min(len(gains), (goods.whole_price - 1) // price)  # ranks cheaper than the whole
    costs = torch.full((factored,), price)
    if factored == len(gains) or not allow_whole:
        return _Offer(gains[:factored], costs, ends_whole=False)
    rest = gains.flip(0).cumsum(0).flip(0)[: factored + 1]  # gained by the whole from each rank on
    rest_costs = goods.whole_price - price * torch.arange(factored + 1)
    # From the first rank on from where the whole gains more per byte than the next triplet, it is the next item.
    # That is true of the last rank at least.
    is_better = rest * price >= gains[: factored + 1] * rest_costs
    start = int(is_better.nonzero()[0])
    return _Offer(
        torch.cat([gains[:start], rest[start : start + 1]]),
        torch.cat([costs[:start], rest_costs[start : start + 1]]),
        ends_whole=True,
    )


def _greedy(offers: Sequence[_Offer], left: int) -> tuple[list[int], int | None]:
    """How many items of each matrix to buy.

    Returns:
        The counts, and the matrix whose item as a whole was the first that did not fit: it has to be bought in
        smaller steps; None when there is none.
    """
    counts = torch.tensor([len(offer.gains) for offer in offers])
    owners = torch.repeat_interleave(torch.arange(len(offers)), counts)  # (items,)
    costs = torch.cat([offer.costs for offer in offers])  # (items,)
    rates = torch.cat([offer.gains / offer.costs for offer in offers])  # (items,)
    # A stable sort keeps the order of a matrix's own items, of which a later one is never worth more.
    order = torch.sort(rates, descending=True, stable=True).indices
    fitting = int(torch.searchsorted(costs[order].cumsum(0), left, right=True))
    bought = torch.bincount(owners[order[:fitting]], minlength=len(offers)).tolist()
    left -= int(costs[order[:fitting]].sum())
    return bought, _fill(offers, owners[order[fitting:]].tolist(), bought, left)


def _fill(offers: Sequence[_Offer], owners: Iterable[int], bought: list[int], left: int) -> int | None:
    """Spend what is left on the next items that fit, adding to `bought`; returns what `_greedy` does besides."""
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
            closed.add(owner)  # its later items cost as much, and can't be had without this one
            if len(closed) == len(offers):
                break
    return None
