"""The Xet side of the loopback Hub: the content-addressed store (CAS) that `hf_xet` uploads to and downloads from.

Written by the protocol's description (https://huggingface.co/docs/xet): files are cut into chunks, chunks are packed
into xorbs, and a shard says of which chunks of which xorbs each file is made, and the file's sha256. It is served by
the CDN's port under its own tokens. Chunks have to come uncompressed: HF_XET_XORB_COMPRESSION_POLICY=none.
"""

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

CAS_TOKEN = "xet-token"  # what the Hub gives for a Hub token; the CAS must see no other
SHARD_HEADER = SHARD_ENTRY = 48
HAS_CHECKS, HAS_SHA256 = 1 << 31, 1 << 30
END = b"\xff" * 32


@dataclass(frozen=True)
class Term:
    """Chunks [first, end) of a xorb, which are the next `size` bytes of a file."""

    xorb: str
    size: int
    first: int
    end: int


@dataclass
class Xorb:
    """Chunks one after another, each behind eight bytes that tell its size."""

    data: bytes
    begins: list[int] = field(default_factory=list)  # of each chunk's header, and the end of the last chunk

    def __post_init__(self) -> None:
        at = 0
        while at < len(self.data) and self.data[at] == 0:  # the version; a footer, if there is one, begins otherwise
            self.begins.append(at)
            at += 8 + int.from_bytes(self.data[at + 1 : at + 4], "little")
            if self.data[self.begins[-1] + 4]:
                raise ValueError("a compressed chunk: set HF_XET_XORB_COMPRESSION_POLICY=none")
        self.begins.append(at)

    def content(self, first: int, end: int) -> bytes:
        return b"".join(self.data[self.begins[i] + 8 : self.begins[i + 1]] for i in range(first, end))


@dataclass
class Cas:
    """What the store holds: xorbs by hash, files by Xet hash, and the Xet hash of each sha256.

    `again` are the xorbs that were sent though a file here is made of them. One that no shard has named yet, as after
    a kill between the two, is sent again by the Xet library.
    """

    xorbs: dict[str, Xorb] = field(default_factory=dict)
    files: dict[str, list[Term]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)

    def add_xorb(self, name: str, data: bytes) -> bool:
        """Keep a xorb; whether it is new."""
        if any(term.xorb == name for terms in self.files.values() for term in terms):
            self.again.append(name)
        is_new = name not in self.xorbs
        self.xorbs[name] = Xorb(data)
        return is_new

    def add_shard(self, shard: bytes) -> None:
        """Learn the files of an uploaded shard.

        Raises:
            KeyError: it names a xorb that isn't there.
        """
        for file, sha256, terms in files_of_shard(shard):
            for term in terms:
                self.xorbs[term.xorb].content(term.first, term.end)
            self.files[file] = terms
            self.hashes[sha256] = file

    def read(self, sha256: str) -> bytes | None:
        """A file's bytes; None if it isn't there."""
        terms = self.files.get(self.hashes.get(sha256, ""))
        return terms and b"".join(self.xorbs[term.xorb].content(term.first, term.end) for term in terms)

    def reconstruction(self, file: str, url: str, begin: int, end: int) -> dict[str, Any]:
        """The terms that hold bytes [begin, end) of a file, and the addresses from which their xorbs can be had."""
        terms, skipped, at = [], 0, 0
        for term in self.files[file]:
            if at < end and at + term.size > begin:
                skipped = skipped if terms else begin - at
                terms.append(term)
            at += term.size
        if not terms:
            raise IndexError(begin)
        parts: dict[str, list[dict[str, Any]]] = {}
        for term in terms:
            begins = self.xorbs[term.xorb].begins
            parts.setdefault(term.xorb, []).append({
                "url": f"{url}/{term.xorb}", "range": {"start": term.first, "end": term.end},
                "url_range": {"start": begins[term.first], "end": begins[term.end] - 1},
            })  # fmt: skip
        told = [{"hash": t.xorb, "unpacked_length": t.size, "range": {"start": t.first, "end": t.end}} for t in terms]
        return {"offset_into_first_range": max(0, skipped), "terms": told, "fetch_info": parts}


def files_of_shard(shard: bytes) -> Iterator[tuple[str, str, list[Term]]]:
    """Xet hash, sha256 and terms of every file that a shard describes."""
    at = SHARD_HEADER
    while shard[at : at + 32] != END:
        file, (flags, count) = as_hex(shard[at : at + 32]), struct.unpack_from("<II", shard, at + 32)
        terms = []
        for i in range(1, count + 1):
            entry = at + i * SHARD_ENTRY
            _, size, first, end = struct.unpack_from("<IIII", shard, entry + 32)
            terms.append(Term(as_hex(shard[entry : entry + 32]), size, first, end))
        at += SHARD_ENTRY * (1 + count * (2 if flags & HAS_CHECKS else 1))
        if flags & HAS_SHA256:
            yield file, as_hex(shard[at : at + 32]), terms
            at += SHARD_ENTRY


def as_hex(hash_: bytes) -> str:
    """A hash as the protocol writes it: four little-endian numbers of eight bytes."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash_))


def token(url: str) -> dict[str, Any]:
    """The Hub's answer to a person who may read or write: the store's address, and a token for it."""
    return {"casUrl": url, "exp": int(time.time()) + 3600, "accessToken": CAS_TOKEN}
